"""Alarms: the same thing is one alarm, nothing is hidden, and the number that is kept is bounded."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.observe import alarms
from sidecar.observe.alarms import INTERVALS, MAX_ALARMS, MAX_PLACES, Alarm, Alarms, Severity, alarm_lines

START = datetime(2026, 11, 30, 6, 0, tzinfo=UTC)


def met(now: float = 0.0, **fields: Any) -> Alarm:
    at = START + timedelta(seconds=now)
    values = {
        "event": alarms.MITM_SUSPECTED,
        "service": "api",
        "message": "refused: api met web",
        "upstream": "db:5432",
        "reason": "unexpected_peer",
        "peer_address": "10.0.0.7:5432",
        "expected": "spiffe://shop.internal/db",
        "presented": {"sha256": "aa", "subject": "CN=web"},
        "next": "find out who has the address",
    }
    return Alarm(first=at, last=at, **{**values, **fields})


def test_the_first_is_told_at_once() -> None:
    kept = Alarms()
    (told,) = kept.add(met(), 0)
    assert (told.count, told.first, told.last) == (1, START, START)
    assert met().id in kept


def test_repeats_are_one_alarm_told_at_growing_intervals() -> None:
    """One each second for two hours: told at 0, 60, 360, 1260, and 4860 s."""
    kept, told = Alarms(), []
    for now in range(7200):
        told += [(now, one.count) for one in kept.add(met(now), now)]
    assert told == [(0, 1), (60, 61), (360, 361), (1260, 1261), (4860, 4861)]
    (only,) = kept.current()
    assert (only["count"], only["first"], only["last"]) == (7200, "2026-11-30T06:00:00Z", "2026-11-30T07:59:59Z")


def test_a_count_is_told_when_nothing_repeats_any_more() -> None:
    kept = Alarms()
    kept.add(met(), 0)
    assert kept.next_due == float("inf")
    assert kept.add(met(1), 1) == []
    assert kept.next_due == INTERVALS[0]
    assert kept.take_due(59.9) == []
    assert [one.count for one in kept.take_due(60)] == [2]
    assert kept.take_due(60) == []


def test_the_end_tells_what_is_untold_and_nothing_else() -> None:
    kept = Alarms()
    kept.add(met(), 0)
    kept.add(met(upstream="cache:6379"), 0)
    kept.add(met(1), 1)
    assert [(one.upstream, one.count) for one in kept.take_all(2)] == [("db:5432", 2)]
    assert kept.take_all(2) == []


def test_after_an_hour_of_quiet_the_intervals_begin_again() -> None:
    kept = Alarms()
    told = [(now, one.count) for now in (0, 61, 3700, 3701, 3761) for one in kept.add(met(now), now)]
    assert told == [(0, 1), (61, 2), (3700, 3), (3761, 5)]


@pytest.mark.parametrize(
    "change",
    [
        {"event": "identity_elsewhere"}, {"service": "web"}, {"upstream": "cache:6379"}, {"reason": "unknown_ca"},
        {"peer_address": "10.0.0.8:5432"}, {"expected": "spiffe://shop.internal/x"}, {"presented": {"serial": "7"}},
    ],
)  # fmt: skip
def test_another_thing_is_another_alarm(change: dict[str, Any]) -> None:
    assert met(**change).id != met().id
    kept = Alarms()
    kept.add(met(), 0)
    assert len(kept.add(met(**change), 0)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"presented": {"sha256": "bb", "subject": "CN=other"}}, {"message": "other"}, {"connection_id": "12"},
        {"evidence": "/x"},
    ],
)  # fmt: skip
def test_what_an_attacker_can_change_at_will_gives_no_new_alarm(change: dict[str, Any]) -> None:
    assert met(**change).id == met().id
    kept = Alarms()
    kept.add(met(), 0)
    assert kept.add(met(**change), 0) == []


def test_where_else_the_same_certificate_was_met() -> None:
    kept = Alarms()
    kept.add(met(), 0)
    (other,) = kept.add(met(service="web", peer_address="10.0.0.9:5432"), 0)
    (unlike,) = kept.add(met(service="web", upstream="cache:1", presented={"sha256": "bb"}), 0)
    assert other.elsewhere == ("api -> db:5432 at 10.0.0.7:5432",)
    assert unlike.elsewhere == ()
    kept.add(met(1), 1)
    assert kept.current()[-1]["elsewhere"] == ["web -> db:5432 at 10.0.0.9:5432"]


def test_nothing_presented_was_met_nowhere_else() -> None:
    kept = Alarms()
    kept.add(met(presented={}), 0)
    (other,) = kept.add(met(presented={}, service="web"), 0)
    assert other.elsewhere == ()


def test_places_are_bounded() -> None:
    kept = Alarms()
    for number in range(40):
        kept.add(met(upstream=f"s{number}:1"), 0)
    (last,) = kept.add(met(upstream="last:1"), 0)
    assert len(last.elsewhere) == MAX_PLACES
    assert "api -> s39:1 at 10.0.0.7:5432" in last.elsewhere
    for number in range(MAX_ALARMS):
        kept.add(met(presented={"sha256": str(number)}, upstream="x"), 0)
    assert len(kept._places) == MAX_ALARMS


def test_too_many_alarms_give_way_with_their_counts() -> None:
    kept = Alarms()
    kept.add(met(upstream="a"), 0)
    kept.add(met(upstream="a"), 1)
    for number in range(MAX_ALARMS - 1):
        kept.add(met(upstream=f"s{number}"), 2)
    gone, new = kept.add(met(upstream="z"), 3)
    assert (gone.upstream, gone.count, new.upstream) == ("a", 2, "z")
    assert len(kept.current()) == MAX_ALARMS
    (new,) = kept.add(met(upstream="y"), 3)  # the next to go has been told
    assert new.upstream == "y"


def test_notices_give_way_first() -> None:
    kept = Alarms()
    for number in range(MAX_ALARMS - 1):
        kept.add(met(upstream=f"s{number}"), 0)
    kept.add(met(upstream="honest", severity=Severity.NOTICE), 1)
    kept.add(met(upstream="z"), 2)
    assert "honest" not in [one["upstream"] for one in kept.current()]
    assert len(kept.current()) == MAX_ALARMS


def test_evidence_stays_with_its_alarm() -> None:
    kept = Alarms()
    kept.add(met(), 0)
    before = kept.version
    kept.keep_evidence(met().id, "/var/lib/sidecar/evidence/x.pem")
    kept.keep_evidence("another", "/y")
    assert kept.version == before + 1
    kept.add(met(1), 1)
    assert kept.current()[0]["evidence"] == "/var/lib/sidecar/evidence/x.pem"


def test_the_version_rises_with_each_change() -> None:
    kept = Alarms()
    kept.add(met(), 0)
    kept.add(met(), 1)
    assert kept.version == 2


def test_as_json_without_what_is_not_known() -> None:
    kept = Alarms()
    kept.add(Alarm("identity_moved", "api", "enrolled again", START, START), 0)
    (one,) = json.loads(json.dumps(kept.current()))
    assert one == {
        "id": one["id"], "event": "identity_moved", "severity": "alarm", "service": "api", "count": 1,
        "first": "2026-11-30T06:00:00Z", "last": "2026-11-30T06:00:00Z", "message": "enrolled again",
    }  # fmt: skip


def test_an_alarm_for_people() -> None:
    kept = Alarms()
    kept.add(met(), 0)
    kept.keep_evidence(met().id, "/e.pem")
    kept.add(met(service="web"), 0)
    first, second = kept.current()
    assert alarm_lines(first) == [
        "  ALARM mitm_suspected at 2026-11-30T06:00:00Z: refused: api met web",
        "    evidence: /e.pem",
        "    next: find out who has the address",
    ]
    assert "    also met: api -> db:5432 at 10.0.0.7:5432" in alarm_lines(second)
    assert alarm_lines({**first, "count": 3, "severity": "notice", "next": None})[0].startswith(
        "  notice mitm_suspected 3 times since 2026-11-30T06:00:00Z, last at 2026-11-30T06:00:00Z: "
    )
    assert met(upstream=None, peer_address=None).place == "api"


@given(st.lists(st.tuples(st.integers(0, 80), st.floats(0, 4000)), max_size=300))
def test_the_lines_and_what_is_untold_add_up(steps: list[tuple[int, float]]) -> None:
    """Invariant: every sighting is told: the last line of each alarm has its whole count, at the latest at the end."""
    kept, now = Alarms(), 0.0
    told: dict[str, int] = {}
    total: dict[str, int] = {}
    lost: dict[str, int] = {}
    for which, pause in steps:
        now += pause
        one = met(now, upstream=str(which))
        if one.id not in kept and one.id in total:  # it gave way, and begins again
            lost[one.id] = lost.get(one.id, 0) + told.pop(one.id)
        total[one.id] = total.get(one.id, 0) + 1
        for line in [*kept.add(one, now), *kept.take_due(now)]:
            told[line.id] = line.count
    for line in kept.take_all(now):
        told[line.id] = line.count
    assert {key: told[key] + lost.get(key, 0) for key in total} == total
