"""Summaries are written when their minute ends, and at the end; a log at rest wakes nobody."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from sidecar.identity.reasons import Reason, Refused
from sidecar.observe.folding import LINES, SECONDS
from sidecar.observe.logs import Log
from sidecar.observe.record import ConnectionRecord, Direction
from sidecar.observe.summaries import Summaries
from tests.beds.mesh import LogSink

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def stranger(direction: Direction = "inbound", reason: Reason = Reason.PLAINTEXT_REFUSED) -> ConnectionRecord:
    record = ConnectionRecord(direction, "api", "http", 0.0)
    if direction == "inbound":
        record.peer_address = "10.0.0.7:1"
    else:
        record.client_address, record.upstream = "10.0.0.7:1", "db:5432"
    record.refuse(Refused(reason, "met it"))
    return record


def made() -> tuple[Summaries, LogSink]:
    begun, sink = trio.current_time(), LogSink()
    clock = lambda: BEGIN + timedelta(seconds=trio.current_time() - begun)  # noqa: E731
    return Summaries("api", Log(sink, "json"), clock), sink


async def test_a_summary_is_written_when_its_minute_ends(mock_clock: MockClock) -> None:
    summaries, sink = made()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(summaries.run)
        for minute in (1, 2):
            assert not any(summaries.fold(stranger()) for _ in range(LINES))
            mock_clock.jump(10)
            assert all(summaries.fold(stranger()) for _ in range(3))
            mock_clock.jump(10)
            assert summaries.fold(stranger())
            await wait_all_tasks_blocked()
            assert len(sink.lines) == minute - 1
            mock_clock.jump(SECONDS - 20)
            await wait_all_tasks_blocked()
            assert len(sink.lines) == minute
        nursery.cancel_scope.cancel()
    line = sink.lines[0]
    del line["time"], line["message"]
    assert line == {
        "level": "warning",
        "event": "connection_summary",
        "direction": "inbound",
        "service": "api",
        "port": "http",
        "peer_address": "10.0.0.7",
        "upstream": None,
        "reason": "plaintext_refused",
        "count": 4,
        "since": "2026-01-01T00:00:10Z",
        "until": "2026-01-01T00:00:20Z",
    }
    assert sink.lines[1]["since"] == "2026-01-01T00:01:10Z"
    summaries.write_all()
    assert len(sink.lines) == 2


async def test_what_is_left_is_written_at_the_end(mock_clock: MockClock) -> None:
    summaries, sink = made()
    for _ in range(LINES + 5):
        summaries.fold(stranger(reason=Reason.PROBE))
    for _ in range(LINES + 6):
        summaries.fold(stranger("outbound", Reason.POLICY_DENIED))
    summaries.write_all()
    summaries.write_all()
    probes, denied = sink.lines
    assert (probes["count"], probes["level"], probes["peer_address"]) == (5, "info", "10.0.0.7")
    assert (denied["count"], denied["level"], denied["client_address"]) == (6, "warning", "10.0.0.7")
    assert denied["upstream"] == "db:5432"


async def test_without_strangers_there_is_no_timer(mock_clock: MockClock) -> None:
    summaries, sink = made()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(summaries.run)
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == float("inf")
        summaries.fold(stranger())
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == SECONDS
        mock_clock.jump(SECONDS)
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == float("inf")
        nursery.cancel_scope.cancel()
    assert sink.lines == []
