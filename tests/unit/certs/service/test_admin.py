"""The CA's admin socket: the reports, to its own user alone; a directory that takes no socket stops nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import trio
from trio.testing import MockClock

from certs.protocol.looking import FOLLOW_PATH, REPORTS_PATH, SOCKET, Looker
from certs.service.admin import LATE_SECONDS, REST_SECONDS, Following, open_admin
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
        looker = Looker(tmp_path)
        found = await trio.to_thread.run_sync(looker.look)
        assert (found["reports"], found["alarms"], found["ca"]) == ([one], [], {})
        assert found["now"] == "2026-11-30T06:00:00Z"
        looker.close()
        assert (await asked(str(path), "/anything"))[0] == 404
        for known in (REPORTS_PATH, FOLLOW_PATH):
            assert (await asked(str(path), known, method="POST"))[0] == 405
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
        looker = Looker(tmp_path)
        found = await trio.to_thread.run_sync(looker.look)
        assert found == {"now": "2026-11-30T06:00:00Z", "ca": {}, "alarms": [{"id": "1"}], "reports": []}
        looker.close()
        nursery.cancel_scope.cancel()


async def test_who_follows_sees_a_report_with_the_next_line_and_not_before(tmp_path: Path) -> None:
    reports = Reports()
    server = open_admin(tmp_path, reports, lambda: NOW, Log(LogSink(), "json"))
    assert server is not None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        looker = Looker(tmp_path)
        assert (await trio.to_thread.run_sync(looker.look))["reports"] == []
        reports.take(Kept("spiffe://shop.internal/api", "0" * 32, "192.0.2.1:1", "1f", NOW, b'{"version":1}'))
        (one,) = (await trio.to_thread.run_sync(looker.look))["reports"]
        assert one["report"] == {"version": 1}
        looker.close()
        nursery.cancel_scope.cancel()


class Followed:
    """When each line came, on a virtual clock, and what it said."""

    def __init__(self) -> None:
        self.now = "before"
        self.lines: list[tuple[float, bytes]] = []
        self.made = 0
        self.following = Following(self.line)

    def line(self) -> bytes:
        self.made += 1
        return self.now.encode()

    async def follow(self) -> None:
        async for line in self.following.lines():
            self.lines.append((trio.current_time(), line))


async def test_a_line_comes_with_a_report_but_not_one_for_each(autojump_clock: MockClock) -> None:
    one, start = Followed(), trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.follow)
        await trio.sleep(REST_SECONDS)
        for _ in range(100):  # a sidecar that reports without end
            one.now = f"{trio.current_time() - start:g}"
            one.following.heard()
            await trio.sleep(0.25)
        nursery.cancel_scope.cancel()
    assert one.lines[:3] == [(start, b"before"), (start + 4, b"4"), (start + 8, b"8")]
    assert len(one.lines) == 8


async def test_without_a_report_a_line_comes_all_the_same(autojump_clock: MockClock) -> None:
    one, start = Followed(), trio.current_time()
    with trio.move_on_after(LATE_SECONDS * 2 + 1):
        await one.follow()
    assert [at - start for at, _ in one.lines] == [0, LATE_SECONDS, 2 * LATE_SECONDS]


async def test_while_nobody_follows_no_line_is_made(autojump_clock: MockClock) -> None:
    one = Followed()
    for _ in range(10):
        one.following.heard()
        await trio.sleep(REST_SECONDS)
    assert one.made == 0
