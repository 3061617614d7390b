"""Token buckets: what comes at once, what comes in the long run, and what odd clocks and many keys do to it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from certs.service.limits import Buckets, Rate

RATE = Rate(burst=3, per_second=0.5)


def taken(buckets: Buckets, key: str, now: float, times: int) -> int:
    return sum(buckets.take(key, now) for _ in range(times))


def test_a_burst_and_then_no_more_until_time_passes() -> None:
    buckets = Buckets(RATE)
    assert taken(buckets, "a", 0, 10) == 3
    assert not buckets.take("a", 1.9)
    assert buckets.take("a", 2)
    assert not buckets.take("a", 2)


def test_one_key_s_bucket_is_not_another_s() -> None:
    buckets = Buckets(RATE)
    assert taken(buckets, "a", 0, 10) == 3
    assert taken(buckets, "b", 0, 10) == 3


def test_it_fills_up_to_its_burst_and_no_further() -> None:
    buckets = Buckets(RATE)
    taken(buckets, "a", 0, 3)
    assert buckets.left("a", 4) == 2
    assert buckets.left("a", 1e9) == 3


def test_looking_takes_nothing() -> None:
    buckets = Buckets(RATE)
    assert [buckets.left("a", 0) for _ in range(5)] == [3] * 5


def test_what_was_refused_costs_nothing() -> None:
    buckets = Buckets(RATE)
    taken(buckets, "a", 0, 100)
    assert buckets.take("a", 2), "a hundred tries did not put the next turn off"


def test_a_clock_that_goes_back_empties_none() -> None:
    buckets = Buckets(RATE)
    buckets.take("a", 7200)
    assert buckets.left("a", 0) == 2
    assert taken(buckets, "a", 0, 10) == 2
    assert buckets.take("a", 2), "and from there on it counts as ever"


def test_a_clock_that_goes_forward_fills_no_more_than_a_burst() -> None:
    buckets = Buckets(RATE)
    taken(buckets, "a", 0, 3)
    assert taken(buckets, "a", 1e12, 10) == 3


def test_the_longest_unused_is_forgotten_and_then_full() -> None:
    buckets = Buckets(RATE, most=2)
    taken(buckets, "a", 0, 3)
    taken(buckets, "b", 0, 3)
    assert not buckets.take("a", 0), "still remembered, and used last"
    buckets.take("c", 0)
    assert buckets.left("b", 0) == 3
    assert buckets.left("a", 0) == 0


@settings(deadline=None)
@given(
    st.floats(0.1, 50),
    st.floats(0, 50),
    st.lists(st.floats(0, 10), max_size=60),
)
def test_never_more_than_the_burst_and_what_time_gave(burst: float, per_second: float, waits: list[float]) -> None:
    buckets, now, got = Buckets(Rate(burst, per_second)), 0.0, 0
    for wait in waits:
        now += wait
        got += buckets.take("a", now)
        assert got <= burst + now * per_second + 1e-6
