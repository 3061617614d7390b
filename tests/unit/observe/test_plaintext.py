"""The inventory of callers without TLS: bounded, kept, and never more than addresses."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sidecar.observe.plaintext import (
    KEPT_DAYS,
    MAX_CALLERS,
    MAX_NAME,
    RECENT_DAYS,
    PlaintextCallers,
    callers_of,
    listed,
)

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


def at(number: int) -> str:
    return f"10.0.{number // 250}.{number % 250 + 1}:40000"


def test_a_caller_is_an_address_at_a_port() -> None:
    callers = PlaintextCallers()
    callers.note("http", "10.0.0.1:1111", NOW, allowed=False)
    callers.note("http", "10.0.0.1:2222", NOW + timedelta(hours=1), allowed=True)
    callers.note("tls", "10.0.0.1:3333", NOW, allowed=False)
    callers.note("http", "[fd00::1]:4444", NOW, allowed=False)
    callers.note("http", None, NOW, allowed=False)
    assert [(one.port, one.address, one.count, one.allowed) for one in callers.current()] == [
        ("http", "10.0.0.1", 2, True),
        ("tls", "10.0.0.1", 1, False),
        ("http", "fd00::1", 1, False),
        ("http", "unknown", 1, False),
    ]
    assert callers.current()[0].as_json() == {
        "port": "http", "address": "10.0.0.1", "name": "", "count": 2, "first": "2026-06-01T12:00:00Z",
        "last": "2026-06-01T13:00:00Z", "allowed": True, "let_in": "2026-06-01T13:00:00Z",
    }  # fmt: skip


def test_refused_ones_push_out_refused_ones_and_nobody_who_was_let_in() -> None:
    callers = PlaintextCallers()
    for number in range(MAX_CALLERS - 1):
        callers.note("http", at(number), NOW, allowed=True)
    for number in range(1000, 1003):
        callers.note("http", at(number), NOW + timedelta(seconds=number), allowed=False)
    current = callers.current()
    assert (len(current), callers.unlisted) == (MAX_CALLERS, 2)
    assert [one.address for one in current if not one.allowed] == [at(1002).partition(":")[0]]
    callers.note("http", at(2000), NOW, allowed=True)
    callers.note("http", at(2001), NOW, allowed=False)  # all places are of such that were let in
    assert (sum(one.allowed for one in callers.current()), callers.unlisted) == (MAX_CALLERS, 4)


def test_of_those_who_were_let_in_the_one_that_was_longest_away_makes_room() -> None:
    callers = PlaintextCallers()
    for number in range(MAX_CALLERS):
        callers.note("http", at(number), NOW + timedelta(seconds=number), allowed=True)
    callers.note("http", at(0), NOW + timedelta(hours=1), allowed=True)
    callers.note("http", at(999), NOW + timedelta(hours=2), allowed=True)
    addresses = {one.address for one in callers.current()}
    assert at(1).partition(":")[0] not in addresses
    assert {at(0).partition(":")[0], at(999).partition(":")[0]} <= addresses


@pytest.mark.parametrize("allowed", [True, False])
def test_many_addresses_of_one_network_push_out_each_other_and_nobody_else(allowed: bool) -> None:
    callers = PlaintextCallers()
    callers.note("http", "10.0.0.1:40000", NOW, allowed=allowed)
    callers.note("http", "[fd00:0:0:1::1]:40000", NOW, allowed=allowed)
    for number in range(2 * MAX_CALLERS):
        callers.note("http", f"[fd00::{number:x}]:40000", NOW + timedelta(seconds=number), allowed=allowed)
    addresses = {one.address for one in callers.current()}
    assert {"10.0.0.1", "fd00:0:0:1::1"} <= addresses
    assert len(addresses) == MAX_CALLERS


def test_who_did_not_come_for_long_is_forgotten_and_makes_room() -> None:
    callers = PlaintextCallers()
    for number in range(MAX_CALLERS):
        callers.note("http", at(number), NOW, allowed=True)
    later = NOW + timedelta(days=KEPT_DAYS, seconds=1)
    callers.note("http", at(999), later, allowed=False)
    assert [one.address for one in callers.current()] == [at(999).partition(":")[0]]
    changes = callers.changes
    callers.forget(later)
    assert callers.changes == changes


def test_who_would_be_cut() -> None:
    callers = PlaintextCallers()
    callers.note("http", at(1), NOW, allowed=True)
    callers.note("http", at(2), NOW, allowed=False)
    callers.note("tls", at(3), NOW, allowed=True)
    assert [one.address for one in callers.recent("http", NOW + timedelta(days=RECENT_DAYS))] == ["10.0.0.2"]
    assert callers.recent("http", NOW + timedelta(days=RECENT_DAYS, seconds=1)) == []


def test_one_that_was_let_in_and_is_refused_now_is_still_named_and_keeps_its_place() -> None:
    callers = PlaintextCallers()
    callers.note("http", at(1), NOW, allowed=True)
    callers.note("http", at(1), NOW + timedelta(days=1), allowed=False)
    assert [one.address for one in callers.recent("http", NOW + timedelta(days=RECENT_DAYS))] == ["10.0.0.2"]
    assert callers.recent("http", NOW + timedelta(days=RECENT_DAYS, seconds=1)) == []
    for number in range(2 * MAX_CALLERS):
        callers.note("http", at(1000 + number), NOW + timedelta(days=1), allowed=False)
    assert callers.current()[0].address == "10.0.0.2"


def test_a_name_is_escaped_and_cut_and_asked_for_once() -> None:
    callers = PlaintextCallers()
    callers.note("http", at(1), NOW, allowed=True)
    [caller] = callers.unnamed()
    callers.name(caller, "\x1b[2Jévil" + "x" * 1000)
    assert (len(caller.name), caller.name[:10]) == (MAX_NAME, "?[2J?vilxx")
    assert str(caller).startswith("10.0.0.2 (?[2J")
    assert not list(callers.unnamed())
    callers.name(caller, "")
    assert (str(caller), list(callers.unnamed())) == ("10.0.0.2", [])


def test_it_is_kept_and_read_again() -> None:
    callers = PlaintextCallers()
    callers.note("http", at(1), NOW, allowed=True)
    callers.note("http", "[fd00::1]:9", NOW, allowed=False)
    callers.note("http", None, NOW, allowed=False)
    callers.name(callers.current()[0], "old.internal")
    again = PlaintextCallers()
    again.note("http", at(1), NOW + timedelta(hours=1), allowed=True)  # what came before it was read stays
    again.take_kept(callers_of(json.loads(json.dumps(callers.to_keep()))))
    assert [(one.address, one.last, one.count) for one in again.current()] == [
        ("10.0.0.2", NOW + timedelta(hours=1), 1), ("fd00::1", NOW, 1), ("unknown", NOW, 1),
    ]  # fmt: skip
    [kept, *_] = callers_of(callers.to_keep())
    assert (kept.name, kept.first, kept.allowed, kept.let_in) == ("old.internal", NOW, True, NOW)
    assert [one.let_in for one in callers_of(callers.to_keep())] == [NOW, None, None]


GOOD: dict[str, Any] = {
    "port": "http", "address": "10.0.0.1", "name": "", "count": 2, "first": "2026-06-01T12:00:00Z",
    "last": "2026-06-01T13:00:00Z", "allowed": True, "let_in": "2026-06-01T12:00:00Z",
}  # fmt: skip


@pytest.mark.parametrize(
    "kept",
    [
        None, [], {}, {"version": 2, "callers": []}, {"version": 1}, {"version": 1, "callers": {}},
        {"version": 1, "callers": ["x"]},
        *({"version": 1, "callers": [GOOD | wrong]} for wrong in (
            {"port": 5}, {"port": "\x1b[2J"}, {"port": "x" * 256}, {"address": "nowhere"}, {"address": "10.0.0.1\n"},
            {"name": "é"}, {"count": 0}, {"count": True}, {"count": "5"}, {"count": 2**53 + 1}, {"first": "yesterday"},
            {"last": None}, {"allowed": 1}, {"let_in": 5},
            {"let_in": "never"},
        )),
    ],
)  # fmt: skip
def test_what_is_no_inventory_is_refused(kept: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        callers_of(kept)
    assert len(callers_of({"version": 1, "callers": [GOOD]})) == 1


def test_callers_in_a_sentence() -> None:
    callers = PlaintextCallers()
    for number in range(10):
        callers.note("http", at(number), NOW, allowed=True)
    callers.note("http", at(0), NOW, allowed=True)
    text = listed(callers.current())
    assert text.startswith("10.0.0.1: 2 connections, last 2026-06-01 12:00, 10.0.0.10: 1 connection, last ")
    assert text.endswith(" and 2 more")
    assert listed([]) == ""
