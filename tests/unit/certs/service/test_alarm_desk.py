"""The desk: what sidecars report is one list, folded, bounded, and never taken for more than a claim."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from certs.service.alarm_desk import MOST_ALARMS, NEW, AlarmDesk
from sidecar.observe.logs import Log
from tests.beds.clock import NOW
from tests.beds.mesh import LogSink

API, WEB = "spiffe://shop.internal/api", "spiffe://shop.internal/web"


class Site:
    def __init__(self) -> None:
        self.log = LogSink()
        self.posted: list[Mapping[str, Any]] = []
        self.desk = AlarmDesk(Log(self.log, "json"), lambda: NOW, lambda _key, alarm: self.posted.append(alarm))

    def report(self, *alarms: Any, service: str = "api", instance: str = "1" * 32) -> None:
        self.desk.take(f"spiffe://shop.internal/{service}", service, instance, alarms)


def alarm(**more: Any) -> dict[str, Any]:
    return {
        "id": "0" * 16,
        "event": "mitm_suspected",
        "severity": "alarm",
        "service": "api",
        "upstream": "db:5432",
        "reason": "unexpected_peer",
        "peer_address": "10.0.0.7:5432",
        "message": "refused: api met web",
        "presented": {"sha256": "aa"},
        "first": "2020-01-01T00:00:00Z",
        "last": "2020-01-01T00:00:00Z",
        "count": 1,
        **more,
    }


async def test_an_alarm_is_kept_logged_and_posted_once() -> None:
    site = Site()
    for _ in range(3):
        site.report(alarm())
    (kept,) = site.desk.current()
    assert (kept["reported_by"], kept["count"], kept["message"]) == (API, 1, "refused: api met web")
    assert kept["first"] == "2020-01-01T00:00:00Z"
    assert site.posted == [kept]
    assert [line["event"] for line in site.log.lines] == ["mitm_suspected"]


async def test_counts_add_up_over_reports_instances_and_restarts() -> None:
    site = Site()
    site.report(alarm(count=1))
    site.report(alarm(count=4))
    site.report(alarm(count=2), instance="2" * 32)
    site.report(alarm(count=3))  # it was restarted
    assert site.desk.current()[0]["count"] == 1 + 3 + 2 + 3
    assert len(site.posted) == 1


async def test_the_same_certificate_at_two_sidecars_is_seen_to_be_one() -> None:
    site = Site()
    site.report(alarm())
    site.report(alarm(), service="web")
    assert site.posted[1]["elsewhere"] == ["api -> db:5432 at 10.0.0.7:5432"]


async def test_a_notice_is_kept_and_not_posted() -> None:
    site = Site()
    site.report(alarm(event="neighbour_met", severity="notice"))
    assert site.desk.current()[0]["severity"] == "notice"
    assert site.posted == []


async def test_who_reports_is_what_its_certificate_says() -> None:
    site = Site()
    site.report(alarm(service="db", reported_by="spiffe://shop.internal/db"), service="web")
    (kept,) = site.desk.current()
    assert (kept["service"], kept["reported_by"]) == ("web", WEB)


@pytest.mark.parametrize(
    "broken",
    [
        None, "x", [], {}, alarm(event="X"), alarm(event=3), alarm(count=0), alarm(count=True), alarm(count="1"),
        alarm(count=2**53), alarm(message=None), alarm(presented=[]), alarm(event="a" * 41),
    ],
)  # fmt: skip
async def test_what_is_no_alarm_is_left_out(broken: Any) -> None:
    site = Site()
    site.report(broken, alarm())
    assert len(site.desk.current()) == 1


async def test_texts_are_escaped_and_bounded() -> None:
    site = Site()
    evil = "\x1b[2J" * 1000
    site.report(alarm(message=evil, next=evil, upstream=evil, presented={evil: evil, "subject": evil, "n": 3}))
    (kept,) = site.desk.current()
    texts = [kept["message"], kept["next"], kept["upstream"], *kept["presented"], *kept["presented"].values()]
    assert all(text.isprintable() and len(text) < 5000 for text in texts)
    assert len(kept["presented"]) == 2


@pytest.mark.parametrize("wrong", [None, 3, "yesterday", "2020-01-01T00:00:00", "9999-01-01T00:00:00Z"])
async def test_a_time_that_is_none_or_to_come_is_now(wrong: Any) -> None:
    site = Site()
    site.report(alarm(first=wrong, last=wrong))
    assert site.desk.current()[0]["first"] == f"{NOW:%FT%TZ}"


async def test_one_sidecar_cannot_flood_the_desk() -> None:
    site = Site()
    for number in range(500):
        site.report(alarm(upstream=f"s{number}"))
    assert len(site.posted) == NEW.burst + 1
    assert site.posted[-1]["event"] == "too_many_alarms"
    assert site.posted[-1]["reported_by"] == API
    site.report(alarm(upstream="other"), service="web")
    assert site.posted[-1]["reported_by"] == WEB
    assert len(site.desk.current()) <= MOST_ALARMS
