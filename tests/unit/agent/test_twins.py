"""Which other holder of an identity is a twin: each alarm beside the honest course of events that looks most like it."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.agent import twins
from sidecar.agent.twins import MARGIN, MOST_KEYS, SURE, Holder, Own, elsewhere, moved, parse

START = 1_000_000
"""When our sidecar heard of holders first."""

LIFE = 3600
OURS = "aa"


def holder(serial: str, issued_at: int, seen_at: int | None = None, *, key: str = "", how: str = "secret") -> Holder:
    """Times are relative to :data:`START`."""
    seen = None if seen_at is None else START + seen_at
    return Holder(serial, key or f"b{serial}", how, START + issued_at, seen)


US = holder("1", 0, 10, key=OURS)


def twin(*others: Holder, at: int, instances: int = 1) -> list[str]:
    return [one.serial for one in elsewhere([US, *others], [OURS], START, START + at, instances)]


def past(*others: Holder, at: int, instances: int = 1) -> list[str]:
    return [one.serial for one in moved([US, *others], [OURS], START, START + at, instances)]


# -- alone -------------------------------------------------------------------------------------------------------------


def test_we_are_no_twin_of_ourselves() -> None:
    renewed = holder("2", 1800, 1805, key="cc")
    assert elsewhere([US, renewed], [OURS, "cc"], START, START + 2000, 1) == []
    assert moved([US, renewed], [OURS, "cc"], START, START + 2000, 1) == []


def test_a_lost_answer_leaves_nothing_foreign() -> None:
    """Its key was written down before the request."""
    lost = holder("2", 600, key="cc", how="renewal")
    assert elsewhere([US, lost], [OURS, "cc"], START, START + 2000, 1) == []
    assert elsewhere([US, lost], [OURS], START, START + 2000, 1) == [lost]


# -- a stolen secret or token ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seen", [None, 105, 1000])
def test_whoever_enrols_while_we_live_is_a_twin_polling_or_not(seen: int | None) -> None:
    thief = holder("2", 100, seen)
    assert twin(thief, at=100 + MARGIN) == ["2"]
    assert past(thief, at=200) == []


def test_it_is_not_told_within_the_margin() -> None:
    """A container that hands over has ended by then, and tells nothing."""
    assert twin(holder("2", 100), at=100 + MARGIN - 1) == []


def test_one_who_was_there_before_us_and_goes_on_is_a_twin() -> None:
    before = holder("2", -900, 30)
    assert twin(before, at=30 + MARGIN) == ["2"]
    assert past(before, at=100) == []


# -- our own past ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [None, -600, -1, MARGIN])
def test_a_life_that_ended_before_ours_is_our_past(last: int | None) -> None:
    """A restart with a state directory in memory, or a new container that was started before the old one was stopped."""
    old = holder("2", -900, last)
    assert twin(old, at=600) == []
    assert past(old, at=600) == ["2"]
    assert past(old, at=SURE) == ["2"]
    assert past(old, at=SURE - 1) == []  # it may go on, and not be noted yet


def test_many_restarts_are_many_lives_and_no_twin() -> None:
    lives = [holder(str(2 + number), -900 + 60 * number, -900 + 60 * number + 40) for number in range(10)]
    assert twin(*lives, at=600) == []
    assert len(past(*lives, at=600)) == 10


# -- a copied state directory ------------------------------------------------------------------------------------------


def test_a_copy_shows_at_its_first_renewal() -> None:
    """Both renewed from the same certificate, which is no tip any more: ours is known, the other's is not."""
    ours, copy = holder("3", 1800, 1900, key="cc", how="renewal"), holder("4", 1850, how="renewal")
    assert elsewhere([ours, copy], [OURS, "cc"], START, START + 1850 + MARGIN, 1) == [copy]


def test_a_copy_that_renews_first_shows_too() -> None:
    copy = holder("4", 1700, how="renewal")
    assert elsewhere([copy], [OURS], START, START + 1700 + MARGIN, 1) == [copy]


# -- several instances -------------------------------------------------------------------------------------------------


def test_replicas_have_room_and_one_more_has_not() -> None:
    second, third = holder("2", 10, 600), holder("3", 20, 600)
    assert twin(second, third, at=620, instances=3) == []
    assert twin(second, third, at=620, instances=2) == ["2", "3"]
    assert twin(second, at=620, instances=2) == []


def test_a_thief_among_replicas_that_never_polls() -> None:
    second, thief = holder("2", 10, 600), holder("3", 300)
    assert twin(second, thief, at=620, instances=2) == ["2", "3"]
    assert twin(second, thief, at=620, instances=3) == []


def test_a_replica_that_restarts_again_and_again_is_one() -> None:
    """Each time with a new state directory: its lives follow one another."""
    second = holder("2", 10, 600)
    restarts = [holder(f"a{number}", 100 + 20 * number, 100 + 20 * number + 10) for number in range(20)]
    assert twin(second, *restarts, at=620, instances=3) == []
    assert twin(second, *restarts, at=620, instances=2) != []
    assert twin(*restarts, at=620, instances=2) == []


def test_replicas_that_ended_are_nothing_to_speak_of() -> None:
    assert past(holder("2", -900, -600), at=600, instances=2) == []


# -- what the CA answers -----------------------------------------------------------------------------------------------

ENTRY = {"serial": "1f", "key": "ab", "how": "secret", "issued_at": 5, "not_after": 9}


def test_an_answer() -> None:
    assert parse({"now": 7, "live": [ENTRY, {**ENTRY, "seen_at": 6, "more": 1}]}) == (
        7,
        [Holder("1f", "ab", "secret", 5, None), Holder("1f", "ab", "secret", 5, 6)],
    )
    assert parse({}) is None


@pytest.mark.parametrize(
    "change",
    [
        {"serial": "1F"}, {"serial": 3}, {"serial": "1f\n"}, {"key": ""}, {"key": "ab\x1b"}, {"how": "a" * 17},
        {"issued_at": "5"}, {"issued_at": True}, {"seen_at": 1.5}, {"issued_at": None},
    ],
)  # fmt: skip
def test_an_entry_that_is_none(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not as it should be"):
        parse({"now": 7, "live": [{**ENTRY, **change}]})


@pytest.mark.parametrize(
    "answer",
    [
        {"live": []}, {"now": "7", "live": []}, {"now": 7, "live": {}}, {"now": 7, "live": ["x"]}, {"now": 7, "live": [{}]},
        {"now": 7, "live": [ENTRY] * (twins.MOST_HOLDERS + 1)},
    ],
)  # fmt: skip
def test_an_answer_that_is_none(answer: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not as it should be"):
        parse(answer)


# -- what a state directory knows of itself ----------------------------------------------------------------------------


def test_own_keys_are_the_newest() -> None:
    own = Own().with_keys(*(f"{number:x}" for number in range(MOST_KEYS + 5)))
    assert len(own.keys) == MOST_KEYS
    assert own.keys[-1] == f"{MOST_KEYS + 4:x}"
    assert own.with_keys("7f").keys[-1] == "7f"
    assert len(own.with_keys("7f").keys) == MOST_KEYS


def test_the_first_answer_counts_and_a_clock_that_was_set_back() -> None:
    own = Own().heard(5)
    assert own.since == 5
    assert own.heard(9) is own
    assert own.heard(3).since == 3


def test_it_is_kept_and_read_again() -> None:
    own = Own(("ab", "cd"), 5)
    assert Own.from_dict(own.to_dict()) == own
    assert Own.from_dict(Own().to_dict()) == Own()


@pytest.mark.parametrize(
    "fields", [None, [], {}, {"keys": "ab", "since": 1}, {"keys": [1], "since": 1}, {"keys": ["x"], "since": 1},
               {"keys": [], "since": "1"}, {"keys": []}],
)  # fmt: skip
def test_what_is_damaged_is_said_so(fields: Any) -> None:
    with pytest.raises(ValueError, match="damaged"):
        Own.from_dict(fields)
