"""Logs and reports as they come: cut off, of other programs, wrapped by Docker; and what the application's files say."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sidecar.identity.reasons import UsageError
from sidecar.inject.edges import Edge
from sidecar.inject.injection import inject
from sidecar.inject.meshtext import Existing
from sidecar.learn import gather
from sidecar.learn.seen import Seen
from sidecar.policy.mesh import parse_mesh
from tests.inject.applications import inputs
from tests.unit.explain.test_sources import compose, project
from tests.unit.learn.lines import DOMAIN, inbound, outbound
from tests.unit.learn.test_merge import TEXT
from tests.unit.learn.test_rules import mesh
from tests.unit.learn.test_seen import WEB_API, call, edge

LINE = json.dumps(inbound("web", "api:http"))


def of_logs(*paths: Path) -> Seen:
    found = Seen(DOMAIN)
    gather.read_logs(paths, found)
    return found


def test_whatever_a_log_holds(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    wrapped = json.dumps({"log": LINE + "\n", "stream": "stdout"})
    text = f'other program, event\n{{"event": 7}}\n[]\n{LINE}\napi-sidecar-1  | {LINE}\n{wrapped}\n"event\n{LINE[:90]}'
    log.write_bytes(b"\xff\xfe event\n" + text.encode())
    found = of_logs(log)
    assert {one: tally.connections for one, tally in found.calls.items()} == {WEB_API: 3}


def test_several_logs_and_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.log").write_text(LINE)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(outbound("web", "db:sql")).encode())))
    assert of_logs(tmp_path / "a.log", Path("-")).calls.keys() == {WEB_API, call("web", "db:sql")}


def test_a_log_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^--log .*missing: cannot be read: "):
        of_logs(tmp_path / "missing")


def test_the_logs_of_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = compose(tmp_path, f"echo '{LINE}'")
    monkeypatch.setattr("sidecar.explain.sources.find_compose", lambda _environ: fake)
    found = Seen(DOMAIN)
    gather.read_compose(project(tmp_path), {}, found)
    assert list(found.calls) == [WEB_API]


# -- reports -----------------------------------------------------------------------------------------------------------

API, WEB = ("spiffe://shop.internal/api", "spiffe://shop.internal/web")


def status(identity: str, *edges: dict[str, Any]) -> dict[str, Any]:
    return {"identity": identity, "edges": list(edges), "alarms": []}


def of_reports(directory: Path, document: Any) -> Seen:
    (directory / "r.json").write_text(document if isinstance(document, str) else json.dumps(document))
    found = Seen(DOMAIN)
    gather.read_reports(directory / "r.json", found)
    return found


def test_the_status_of_one(tmp_path: Path) -> None:
    assert list(of_reports(tmp_path, status(API, edge("inbound", "web", "http"))).calls) == [WEB_API]


def test_the_reports_that_a_ca_has(tmp_path: Path) -> None:
    rows = [{"identity": API, "report": {"edges": [edge("inbound", "web", "http")]}}, {"identity": WEB, "report": {}}]
    assert list(of_reports(tmp_path, {"reports": rows}).calls) == [WEB_API]


def test_of_a_project_the_running_sidecars_count_and_of_the_others_the_reports(tmp_path: Path) -> None:
    rows = [{"identity": one, "report": {"edges": [edge("inbound", "cli", "http")]}} for one in (API, WEB)]
    running = {"api": status(API, edge("inbound", "web", "http")), "web": {"error": "does not answer"}}
    found = of_reports(tmp_path, {"sidecars": running, "ca": {}, "reports": rows})
    assert found.calls.keys() == {WEB_API, call("cli", "web:http")}


@pytest.mark.parametrize(
    "document",
    [
        "",
        "{",
        "[]",
        "7",
        "null",
        "{}",
        '{"reports": 7}',
        '{"reports": [7]}',
        '{"sidecars": {"a": 7}}',
        '{"edges": []}',
        "[" * 9999,
    ],
)
def test_what_is_no_report(tmp_path: Path, document: str) -> None:
    with pytest.raises(UsageError, match=r"^--reports .*: is not what `certs reports --json`"):
        of_reports(tmp_path, document)


def test_a_report_that_is_no_object(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^--reports .*: is not what"):
        of_reports(tmp_path, {"reports": [{"identity": API, "report": 7}]})


def test_too_many_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "MAX_REPORTS", 1 << 20)
    with pytest.raises(UsageError, match="is larger than 1 MiB"):
        of_reports(tmp_path, " " * (1 << 21))


# -- the application ---------------------------------------------------------------------------------------------------


def existing(*proposed: str, edited: bool = True) -> Existing:
    return Existing(TEXT, mesh(), edited, frozenset(proposed))


EDGE = Edge("web", "api", (80,), ("environment URL",))


def test_what_a_person_removed_of_the_proposed_rules() -> None:
    assert gather.removed([EDGE], existing("web->api:http"), mesh()) == {WEB_API}
    assert gather.removed([EDGE], existing("web->api:http", edited=False), mesh()) == frozenset()
    assert gather.removed([EDGE], existing("web->db"), mesh()) == frozenset()
    assert gather.removed([EDGE], None, mesh()) == frozenset()
    assert gather.removed([EDGE], Existing(TEXT, mesh(), edited=True, proposed=None), mesh()) == frozenset()
    assert gather.removed([Edge("gone", "api", (), ("x",))], existing("gone->api"), mesh()) == frozenset()


@pytest.mark.parametrize(
    ("one", "mentioned"),
    [
        (EDGE, [WEB_API]),
        (Edge("web", "api", (), ("depends_on",)), [WEB_API, call("web", "api:metrics")]),
        (Edge("web", "api", (81,), ("x",)), []),
        (Edge("api", "web", (), ("x",)), []),
    ],
)
def test_what_the_files_mention(one: Edge, mentioned: list[object]) -> None:
    calls = [
        WEB_API,
        call("web", "api:metrics"),
        call("cli", "api:http"),
        call("web", "api:mesh-admin"),
        call("batch/web", "api:http"),
    ]
    assert [it for it in calls if gather.mentions(one, it, parse_mesh(TEXT, "m"))] == mentioned


def test_the_evidence_of_a_project(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``inject`` infers it, here of an application that is given in place of Compose's answer."""
    services = {"web": {"environment": {"URL": "http://api:80"}}, "api": {"expose": ["80"]}, "db": {"expose": ["5432"]}}
    given = inputs(services)
    planned = SimpleNamespace(injection=inject(given), inputs=replace(given, existing=existing("web->api:http")))
    monkeypatch.setattr(gather, "plan", lambda *_: planned)
    found = gather.evidence_of_project(mesh(), {}, date(2026, 6, 1), {call("web", "db:sql")})
    assert found.mentions is not None
    assert found.mentions(WEB_API)
    assert not found.mentions(call("web", "db:sql"))
    assert (found.removed, found.commented) == ({WEB_API}, {call("web", "db:sql")})
