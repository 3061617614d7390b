"""Counters become rates: of the last half minute, never negative, and none where nothing is known."""

from __future__ import annotations

from sidecar.dashboard.rates import STALE, WINDOW, Rates


def test_of_two_reports() -> None:
    rates = Rates()
    rates.take({"a": (100.0, (10, 1000))})
    assert rates.of("a", 100) is None
    rates.take({"a": (105.0, (20, 6000))})
    assert rates.of("a", 105) == (2.0, 1000.0)


def test_of_the_last_half_minute() -> None:
    rates = Rates()
    for at in range(0, 100, 5):
        rates.take({"a": (float(at), (at if at < 50 else 50,))})
    assert rates.of("a", 95) == (0.0,)
    assert WINDOW < 45


def test_the_same_report_twice_is_one() -> None:
    rates = Rates()
    for at in (100.0, 105.0, 105.0):
        rates.take({"a": (at, (int(at),))})
    assert rates.of("a", 107) == (1.0,)


def test_a_counter_that_falls_begins_again() -> None:
    rates = Rates()
    for at, count in ((100.0, 500), (105.0, 3), (110.0, 13)):
        rates.take({"a": (at, (count,))})
    assert rates.of("a", 110) == (2.0,)


def test_of_which_nothing_was_heard_for_long() -> None:
    rates = Rates()
    rates.take({"a": (100.0, (1,))})
    rates.take({"a": (105.0, (2,))})
    assert rates.of("a", 105 + STALE) == (0.2,)
    assert rates.of("a", 106 + STALE) is None


def test_a_clock_that_was_set_back_begins_anew() -> None:
    rates = Rates()
    rates.take({"a": (1000.0, (1,))})
    rates.take({"a": (100.0, (5,))})
    assert rates.of("a", 100) is None
    rates.take({"a": (110.0, (25,))})
    assert rates.of("a", 110) == (2.0,)


def test_what_is_gone_is_forgotten() -> None:
    rates = Rates()
    rates.take({"a": (100.0, (1,))})
    rates.take({"b": (101.0, (1,))})
    rates.take({"a": (105.0, (2,))})
    assert rates.of("a", 105) is None
    assert rates.of("b", 105) is None
