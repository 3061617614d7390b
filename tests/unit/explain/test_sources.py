"""Where a connection's lines come from: files, a pipe, Compose (a program of our own stands in), a running sidecar."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from sidecar.explain import sources
from sidecar.explain.records import Entry
from sidecar.identity.reasons import UsageError
from sidecar.inject.composecli import Compose
from sidecar.inject.injection import OVERRIDE, inject
from sidecar.observe import probe
from sidecar.observe.logs import json_line
from tests.inject.applications import inputs

ID = "9ff9410d905a0f96"
LINE = json_line("warning", "connection", {"direction": "inbound", "connection_id": ID, "reason": "expired"})


def test_files_and_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(b"\xff\xfe\n" + f"other program\n{LINE}\n{LINE[:40]}".encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"x | {LINE}".encode())))
    found = list(sources.in_files([log, Path("-")], ID))
    assert [one.source for one in found] == [str(log), "stdin"]
    assert {one.get("reason") for one in found} == {"expired"}
    assert list(sources.in_files([log], "0" * 16)) == []


@pytest.mark.parametrize("name", ["missing.log", "."])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"^--log .*: cannot be read: "):
        list(sources.in_files([tmp_path / name], ID))


# -- Compose -----------------------------------------------------------------------------------------------------------


def project(directory: Path) -> Path:
    made = inject(inputs({"web": {"image": "x", "depends_on": ["api"]}, "api": {"image": "x", "expose": ["80"]}}))
    for name, text in made.files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def compose(directory: Path, text: str) -> Compose:
    path = directory / "c"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return Compose((str(path),), (9, 9, 9))


def test_a_project(tmp_path: Path) -> None:
    assert not sources.is_project(tmp_path)
    assert sources.is_project(project(tmp_path))
    text = f"echo \"$@\" >{tmp_path}/asked; cat <<'END'\n{LINE}\nEND"
    (found,) = sources.in_compose(tmp_path, ID, {}, compose(tmp_path, text))
    assert (found.source, found.get("reason")) == ("docker compose logs", "expired")
    asked = (tmp_path / "asked").read_text()
    assert f"-f {tmp_path / OVERRIDE}" in asked
    assert "logs --no-color --no-log-prefix api-mesh web-mesh" in asked


def test_a_project_whose_logs_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"docker compose logs .*: no engine"):
        list(sources.in_compose(project(tmp_path), ID, {}, compose(tmp_path, "echo no engine >&2; exit 1")))


# -- a running sidecar -------------------------------------------------------------------------------------------------


def told(monkeypatch: pytest.MonkeyPatch, answer: object) -> list[Entry]:
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    monkeypatch.setattr(probe, "ask", lambda *_: (200, body))
    return list(sources.in_status("127.0.0.1:1", ID))


REFUSAL: dict[str, Any] = {
    "at": "2026-11-30T06:00:00Z", "direction": "inbound", "port": "http", "reason": "expired", "message": "x\x1b[2J",
    "connection_id": ID,
}  # fmt: skip


def test_the_refusals_that_a_sidecar_remembers(monkeypatch: pytest.MonkeyPatch) -> None:
    other = REFUSAL | {"connection_id": "0" * 16}
    (found,) = told(monkeypatch, {"service": "api", "refused_lately": [other, REFUSAL, {"at": "x"}]})
    assert found.source == "status of api"
    assert found.fields == {
        "time": "2026-11-30T06:00:00Z", "event": "connection", "direction": "inbound", "service": "api", "port": "http",
        "decision": "deny", "reason": "expired", "message": "x\\x1b[2J", "connection_id": ID,
    }  # fmt: skip


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[" * 99_999,
        [],
        {},
        {"service": "a"},
        {"service": "a", "refused_lately": [5]},
        {"service": "a", "refused_lately": 5},
    ],
)
def test_what_answers_is_no_sidecar(monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
    with pytest.raises(UsageError):
        told(monkeypatch, answer)


def test_nothing_answers() -> None:
    with pytest.raises(UsageError, match="no sidecar answers at unix:/nowhere"):
        list(sources.in_status("unix:/nowhere", ID))
