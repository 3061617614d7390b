"""The way of every alarm: into the log at once, its count later, and whoever waits for news wakes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trio
import trio.testing

from sidecar.observe.alarm_log import MOST_KINDS, MOST_WAITING, AlarmLog
from sidecar.observe.alarms import Severity
from sidecar.observe.logs import Log
from tests.beds.patience import PATIENCE

NOW = datetime(2026, 11, 30, 6, 0, tzinfo=UTC)


class Site:
    def __init__(self, directory: Path | None = None) -> None:
        self._stream = io.StringIO()
        self.alarms = AlarmLog(Log(self._stream, "json"), lambda: NOW, directory)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._stream.getvalue().splitlines()]

    def met(self, **fields: Any) -> None:
        self.alarms.report("refused: api met web", service="api", reason="unexpected_peer", **fields)


async def test_an_alarm_is_logged_at_once_with_all_that_is_known() -> None:
    site = Site()
    site.met(upstream="db:5432", presented={"sha256": "aa"}, next="look")
    (line,) = site.lines
    assert (line["event"], line["level"], line["message"]) == ("mitm_suspected", "error", "refused: api met web")
    assert (line["count"], line["first"], line["next"]) == (1, "2026-11-30T06:00:00Z", "look")
    assert line["id"] == site.alarms.alarms.current()[0]["id"]


async def test_a_notice_is_no_error() -> None:
    site = Site()
    site.met(event="neighbour_met", severity=Severity.NOTICE)
    assert [(line["event"], line["level"]) for line in site.lines] == [("neighbour_met", "warning")]


async def test_the_count_is_told_when_it_is_due(autojump_clock: trio.testing.MockClock, nursery: trio.Nursery) -> None:
    site = Site()
    nursery.start_soon(site.alarms.run)
    await trio.sleep(1)
    for _ in range(5):
        site.met()
    assert len(site.lines) == 1
    await trio.sleep(61)
    assert [line["count"] for line in site.lines] == [1, 5]
    assert site.lines[1]["message"] == "refused: api met web; met 5 times since 2026-11-30T06:00:00Z"
    await trio.sleep(10_000)
    assert len(site.lines) == 2
    nursery.cancel_scope.cancel()


async def test_each_time_is_counted_for_the_metrics_beginning_with_none() -> None:
    site = Site()
    assert site.alarms.counts == {("mitm_suspected", "alarm"): 0}
    site.met()
    site.met()
    site.met(event="neighbour_met", severity=Severity.NOTICE)
    assert site.alarms.counts == {("mitm_suspected", "alarm"): 2, ("neighbour_met", "notice"): 1}


async def test_so_many_kinds_are_counted_apart_and_no_more() -> None:
    site = Site()
    for number in range(100):
        site.met(event=f"made_up_{'x' * number}")
    site.met()
    assert len(site.alarms.counts) == MOST_KINDS + 1
    assert site.alarms.counts["others", "alarm"] == 100 - MOST_KINDS + 1
    assert site.alarms.counts["mitm_suspected", "alarm"] == 1, "what is known keeps its own"
    assert site.alarms.counts.total() == 101


async def test_the_end_tells_the_count() -> None:
    site = Site()
    site.met()
    site.met()
    site.alarms.write_all()
    site.alarms.write_all()
    assert [line["count"] for line in site.lines] == [1, 2]


async def test_news_is_a_new_alarm_and_no_repeat(autojump_clock: trio.testing.MockClock, nursery: trio.Nursery) -> None:
    site = Site()
    woken: list[float] = []

    async def wait() -> None:
        while True:
            await site.alarms.news()
            woken.append(trio.current_time())

    nursery.start_soon(wait)
    for upstream in ("a", "a", "b"):
        await trio.sleep(1)
        site.met(upstream=upstream)
    await trio.sleep(1)
    assert len(woken) == 2
    nursery.cancel_scope.cancel()


# -- evidence ----------------------------------------------------------------------------------------------------------


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 (a file is written by a thread)
            await trio.sleep(0.01)


async def test_what_was_presented_is_kept_once(tmp_path: Path, nursery: trio.Nursery) -> None:
    site = Site(tmp_path / "evidence")
    nursery.start_soon(site.alarms.run)
    site.met(chain=(b"der",))
    await until(lambda: "evidence" in site.alarms.alarms.current()[0])
    site.met(chain=(b"another",))
    (file,) = (tmp_path / "evidence").iterdir()
    assert site.alarms.alarms.current()[0]["evidence"] == str(file)
    assert [(line["event"], line.get("message")) for line in site.lines[1:]] == [("evidence_kept", str(file))]
    assert "another" not in file.read_text()
    nursery.cancel_scope.cancel()


async def test_evidence_that_cannot_be_kept_changes_nothing_else(tmp_path: Path, nursery: trio.Nursery) -> None:
    site = Site(tmp_path / "nowhere" / "evidence")
    nursery.start_soon(site.alarms.run)
    site.met(chain=(b"der",))
    await until(lambda: len(site.lines) == 2)
    assert [line["event"] for line in site.lines] == ["mitm_suspected", "evidence_lost"]
    assert "evidence" not in site.alarms.alarms.current()[0]
    site.met(upstream="another", chain=(b"der",))
    await until(lambda: len(site.lines) == 4)
    nursery.cancel_scope.cancel()


async def test_without_a_place_for_it_none_is_kept(nursery: trio.Nursery) -> None:
    site = Site()
    nursery.start_soon(site.alarms.run)
    site.met(chain=(b"der",))
    await trio.testing.wait_all_tasks_blocked()
    assert len(site.lines) == 1
    nursery.cancel_scope.cancel()


async def test_more_than_can_wait_is_said_to_be_lost(tmp_path: Path) -> None:
    site = Site(tmp_path)
    for number in range(MOST_WAITING + 1):
        site.met(upstream=str(number), chain=(b"der",))
    assert [line["event"] for line in site.lines].count("evidence_lost") == 1
