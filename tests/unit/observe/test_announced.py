"""Which connections are `sidecar verify`'s: those that were announced, for as long as that holds, and nobody else's."""

from __future__ import annotations

import pytest

from sidecar.identity.reasons import Reason, Refused
from sidecar.observe.announced import MAX_FINGERPRINTS, MAX_RECORDS, MAX_SECONDS, Announced
from sidecar.observe.record import ConnectionRecord

CALLER, STRANGER, OTHER = "a" * 64, "b" * 64, "c" * 64


def announced(seconds: float = 60) -> Announced:
    one = Announced()
    one.announce([CALLER], [STRANGER], seconds, now=100)
    return one


def record(direction: str = "inbound") -> ConnectionRecord:
    one = ConnectionRecord(direction, "api", "http", 0, peer_address="10.0.0.1:5000")  # type: ignore[arg-type]
    one.refuse(Refused(Reason.NO_CERTIFICATE, "met nobody" * 100))
    return one


def test_who_was_announced_is_expected_and_nobody_else() -> None:
    one = announced()
    assert one.is_stranger(STRANGER, 100)
    assert not one.is_stranger(CALLER, 100)
    assert [one.is_caller(it, 100) for it in (CALLER, STRANGER, OTHER)] == [True, True, False]


def test_nobody_is_expected_before_or_afterwards() -> None:
    assert not Announced().is_open(0)
    one = announced()
    assert (one.is_open(159.9), one.is_open(160)) == (True, False)
    assert not one.is_stranger(STRANGER, 160)
    assert not one.is_caller(CALLER, 160)


def test_another_announcement_adds_to_one_that_holds_and_replaces_one_that_is_over() -> None:
    one = announced()
    one.announce([OTHER], [], 10, now=110)
    assert one.is_caller(CALLER, 159)
    assert one.is_caller(OTHER, 159)
    one.announce([OTHER], [], 10, now=170)
    assert not one.is_caller(CALLER, 171)


@pytest.mark.parametrize("seconds", [0, -1, MAX_SECONDS + 1, float("nan"), float("inf")])
def test_it_holds_for_ten_minutes_at_most(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds"):
        announced(seconds)


@pytest.mark.parametrize("text", ["", "A" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n"])
def test_what_is_no_fingerprint_is_refused(text: str) -> None:
    one = Announced()
    with pytest.raises(ValueError, match="64 hex digits"):
        one.announce([], [text], 60, now=0)
    assert not one.is_open(0)


def test_how_many_are_expected_is_bounded() -> None:
    one = announced(MAX_SECONDS)
    one.announce([f"{number:064x}" for number in range(MAX_FINGERPRINTS - 2)], [], 60, now=100)
    with pytest.raises(ValueError, match="at most"):
        one.announce([f"{number:064x}" for number in range(MAX_FINGERPRINTS)], [], 60, now=100)


def test_what_became_of_inbound_connections_is_kept_while_it_holds() -> None:
    one = announced()
    one.note(record(), 101)
    one.note(record("outbound"), 101)
    (kept,) = one.records(101)
    assert (kept["reason"], kept["peer_address"], kept["probe"]) == ("no_certificate", "10.0.0.1:5000", False)
    assert len(kept["message"]) == 500
    assert one.records(160) == []


def test_nothing_is_kept_without_an_announcement() -> None:
    one = Announced()
    one.note(record(), 1)
    assert not one._records
    one.announce([], [], 60, now=2)
    assert one.records(3) == []


def test_how_much_is_kept_is_bounded() -> None:
    one = announced()
    for _ in range(MAX_RECORDS + 5):
        one.note(record(), 101)
    assert len(one.records(101)) == MAX_RECORDS
