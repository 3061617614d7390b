"""``certs alarms``: for people, for programs, and as they come; what others wrote drives no terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from certs.cli import alarms as module
from sidecar.identity.reasons import UsageError
from tests.commands import ran, refused
from tests.unit.certs.cli.test_reports import answering

ALARM: dict[str, Any] = {
    "id": "0" * 16, "event": "mitm_suspected", "severity": "alarm", "service": "api", "count": 1,
    "first": "2026-11-30T06:00:00Z", "last": "2026-11-30T06:00:00Z", "message": "refused\x1b[2J", "next": "look",
    "reported_by": "spiffe://shop.internal/api", "elsewhere": ["web -> db:1 at 10.0.0.7:1"], "evidence": "/e.json",
}  # fmt: skip


def told(directory: Path, *entries: dict[str, Any], options: tuple[str, ...] = ()) -> str:
    with answering(directory, json.dumps({"alarms": entries}).encode()):
        return ran("alarms", str(directory), *options)


def test_for_people(tmp_path: Path) -> None:
    assert told(tmp_path, ALARM).splitlines() == [
        "ALARM mitm_suspected at 2026-11-30T06:00:00Z: refused\\x1b[2J",
        "  also met: web -> db:1 at 10.0.0.7:1",
        "  evidence: /e.json",
        "  next: look",
        "  reported by spiffe://shop.internal/api",
    ]


def test_none(tmp_path: Path) -> None:
    assert told(tmp_path) == "no alarms\n"


def test_for_programs(tmp_path: Path) -> None:
    assert json.loads(told(tmp_path, ALARM, options=("--json",))) == {"alarms": [ALARM]}


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"alarms": 3}', b"\xff"])
def test_what_is_no_answer_is_refused(tmp_path: Path, body: bytes) -> None:
    with answering(tmp_path, body):
        assert "no CA answers there" in refused("alarms", str(tmp_path))


def test_nobody_answers(tmp_path: Path) -> None:
    assert "is `certs serve" in refused("alarms", str(tmp_path))


class Enough(Exception):  # noqa: N818 (the end of what goes on for ever)
    pass


def followed(monkeypatch: pytest.MonkeyPatch, *answers: Any) -> list[str]:
    """What is shown of these answers, one after another."""
    said: list[str] = []
    coming = iter(answers)

    def ask(_where: Path, _path: str) -> list[dict[str, Any]]:
        try:
            answer = next(coming)
        except StopIteration:
            raise Enough from None
        if isinstance(answer, Exception):
            raise answer
        return list(answer)

    class Pause:
        def wait(self, _seconds: float) -> None:
            pass

    monkeypatch.setattr(module, "ask", ask)
    monkeypatch.setattr(module, "_PAUSE", Pause())
    monkeypatch.setattr(click, "echo", lambda text, **_: said.append(text))
    with pytest.raises(Enough):
        module.alarms.callback(Path(), as_json=True, follow=True)  # type: ignore[misc]
    return said


def test_what_is_new_or_met_again_is_shown_once(monkeypatch: pytest.MonkeyPatch) -> None:
    other, again = {**ALARM, "id": "1" * 16}, {**ALARM, "count": 2}
    said = followed(monkeypatch, [ALARM], [ALARM], [ALARM, other], [again, other])
    assert [(json.loads(line)["id"][0], json.loads(line)["count"]) for line in said] == [("0", 1), ("1", 1), ("0", 2)]


def test_a_ca_that_restarts_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    said = followed(monkeypatch, [ALARM], UsageError("no CA answers there"), [ALARM], [])
    assert len([line for line in said if line.startswith("{")]) == 1
    assert "trying again" in said[1]
