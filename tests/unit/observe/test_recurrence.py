"""Once is an accident, and so is twice; the third time at one place within ten minutes is not."""

from __future__ import annotations

from sidecar.observe.recurrence import FEW, MAX_PLACES, SECONDS, Recurrence


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
