"""Once is an accident, and so is twice; the third time at one place within ten minutes is not."""

from __future__ import annotations

from sidecar.observe.recurrence import FEW, MAX_PLACES, SECONDS, Alternation, Recurrence


def test_the_third_time_counts_and_every_one_after_it() -> None:
    met = Recurrence[str]()
    assert [met.met("a", now) for now in (0, 1, 2, 3)] == [False, False, True, True]
    assert FEW == 3


def test_places_are_counted_apart() -> None:
    met = Recurrence[str]()
    assert not any(met.met(place, 0) for place in "abcabc")
    assert met.met("a", 0)


def test_what_is_long_ago_does_not_count() -> None:
    met = Recurrence[str]()
    assert [met.met("a", now) for now in (0, SECONDS, SECONDS + 1)] == [False, False, False]
    assert met.met("a", SECONDS + 2)
    assert Recurrence[str]().met("a", 0) is False


def test_within_means_ten_minutes_at_most() -> None:
    met = Recurrence[str]()
    assert [met.met("a", now) for now in (0, 1, SECONDS)] == [False, False, True]


def test_places_are_bounded() -> None:
    met = Recurrence[int]()
    met.met(0, 0)
    met.met(0, 0)
    for place in range(1, MAX_PLACES + 1):
        met.met(place, 0)
    assert not met.met(0, 0)  # it was forgotten
    assert met.met(MAX_PLACES, 0) is False
    assert met.met(MAX_PLACES, 0)


def test_whoever_comes_back_was_at_two_places() -> None:
    met = Alternation()
    assert [met.met("a", place) for place in "xxyyxxy"] == [None, None, None, None, "y", None, "x"]


def test_whoever_moves_on_was_at_one() -> None:
    met = Alternation()
    assert [met.met("a", place) for place in "xyzx"] == [None] * 4
    assert met.met("b", "z") is None


def test_what_is_kept_of_places_is_bounded() -> None:
    met = Alternation(most=2)
    for what in "abc":
        met.met(what, "x")
    assert [met.met("a", place) for place in "yx"] == [None, None]  # it was forgotten
