"""The CA's admin socket: the reports, to its own user alone; a directory that takes no socket stops nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import trio

from certs.protocol.looking import MESH_PATH, SOCKET
from certs.service.admin import REPORTS_PATH, open_admin
from certs.service.reports import Kept, Reports
from sidecar.observe.logs import Log
from tests.beds.admin import asked
from tests.beds.mesh import LogSink

NOW = datetime(2026, 11, 30, 6, tzinfo=UTC)


async def test_the_reports_that_are_kept(tmp_path: Path) -> None:
    reports = Reports()
    reports.take(Kept("spiffe://shop.internal/api", "0" * 32, "192.0.2.1:1", "1f", NOW, b'{"version":1}'))
    server = open_admin(tmp_path, reports, lambda: NOW, Log(LogSink(), "json"))
    assert server is not None
    path = tmp_path / SOCKET
    assert path.stat().st_mode & 0o777 == 0o600
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        status, body = await asked(str(path), REPORTS_PATH)
        assert status == 200
        (one,) = json.loads(body)["reports"]
        assert (one["identity"], one["fresh"], one["report"]) == ("spiffe://shop.internal/api", True, {"version": 1})
        status, body = await asked(str(path), MESH_PATH)
        found = json.loads(body)
        assert (status, found["reports"], found["alarms"], found["ca"]) == (200, [one], [], {})
        assert found["now"] == "2026-11-30T06:00:00Z"
        assert (await asked(str(path), "/anything"))[0] == 404
        assert (await asked(str(path), REPORTS_PATH, method="POST"))[0] == 405
        nursery.cancel_scope.cancel()
    assert not path.exists()


async def test_a_directory_that_takes_no_socket(tmp_path: Path) -> None:
    log = LogSink()
    assert open_admin(tmp_path / "gone", Reports(), lambda: NOW, Log(log, "json")) is None
    (line,) = log.events("admin_unavailable")
    assert "cannot listen on" in line["message"]


async def test_all_of_a_mesh_is_one_document_also_when_nothing_is_there(tmp_path: Path) -> None:
    server = open_admin(tmp_path, Reports(), lambda: NOW, Log(LogSink(), "json"), lambda: [{"id": "1"}])
    assert server is not None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        status, body = await asked(str(tmp_path / SOCKET), MESH_PATH)
        assert status == 200
        assert json.loads(body) == {"now": "2026-11-30T06:00:00Z", "ca": {}, "alarms": [{"id": "1"}], "reports": []}
        nursery.cancel_scope.cancel()
