"""Percentiles and stalls."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.siege.figures import Call, Calls, Flood, Memory, lost, middle, percentile, stalls, times

DEADLINE = 5.0


def calls(*each: tuple[float, float | None]) -> list[Call]:
    return [Call(due, took) for due, took in each]


def steady(took: float, until: float = 1.0, every: float = 0.005) -> list[Call]:
    return [Call(number * every, took) for number in range(round(until / every))]


@pytest.mark.parametrize(("part", "expected"), [(0.0, 1), (0.5, 50), (0.99, 99), (0.991, 100), (1.0, 100)])
def test_a_percentile_is_one_of_the_values(part: float, expected: int) -> None:
    assert percentile(reversed(range(1, 101)), part) == expected


def test_nothing_has_no_percentile_and_no_median() -> None:
    assert percentile([], 0.99) is None
    assert middle([None, None]) is None
    assert middle([None, 3.0, 1.0, 2.0]) == 2.0


@given(st.lists(st.floats(0, 10), min_size=1), st.floats(0, 1))
def test_at_least_that_part_is_not_above_it(values: list[float], part: float) -> None:
    found = percentile(values, part)
    assert found is not None
    assert sum(value <= found for value in values) >= part * len(values) * (1 - 1e-9)


def test_lost_calls_are_counted_and_have_no_time() -> None:
    some = calls((0.0, 0.1), (0.1, None), (0.2, 0.3))
    assert lost(some) == 1
    assert times(some) == [0.1, 0.3]


def test_calls_are_found_by_when_they_were_due_not_by_when_they_ended() -> None:
    made = Calls("any", calls((0.3, 0.0), (0.1, 0.9), (0.2, None), (0.4, 0.0)))
    assert [call.due for call in made.between(0.1, 0.4)] == [0.1, 0.2, 0.3]


# -- stalls ------------------------------------------------------------------------------------------------------------


def longest(probes: list[Call], control: list[Call]) -> float:
    return max((stall.lasted for stall in stalls(probes, control, DEADLINE)), default=0.0)


def test_a_stall_of_the_product_is_one() -> None:
    probes = calls((0.0, 0.001), (0.1, 0.300), (0.2, 0.200), (0.3, 0.100), (0.4, 0.001))
    found = stalls(probes, steady(0.001), DEADLINE)
    (stall,) = [stall for stall in found if stall.lasted > 0.05]
    assert stall.began == 0.1
    assert stall.lasted == pytest.approx(0.299)


def test_a_stall_of_the_core_is_none() -> None:
    control = calls((0.0, 0.001), (0.1, 0.300), (0.2, 0.200), (0.3, 0.100), (0.4, 0.001))
    assert longest(control, control) == 0.0


def test_what_the_core_did_at_another_time_excuses_nothing() -> None:
    probes = calls((0.1, 0.300), (0.6, 0.001))
    assert longest(probes, calls((0.1, 0.001), (0.6, 0.300))) == pytest.approx(0.299)


def test_a_stall_of_the_core_that_began_earlier_counts_against_it() -> None:
    assert longest(calls((0.2, 0.200)), calls((0.1, 0.300))) == 0.0


def test_two_stalls_are_two() -> None:
    probes = calls((0.0, 0.1), (0.05, 0.05), (0.5, 0.2))
    assert [stall.lasted for stall in stalls(probes, steady(0.0), DEADLINE)] == pytest.approx([0.1, 0.2])


def test_a_lost_probe_is_a_stall_of_its_whole_deadline() -> None:
    assert longest(calls((0.0, None)), steady(0.001)) == pytest.approx(DEADLINE, abs=0.01)


def test_without_a_control_process_nothing_is_excused() -> None:
    assert longest(calls((0.0, 0.2)), []) == 0.2
    assert stalls([], steady(0.1), DEADLINE) == []


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=30),
    st.lists(st.floats(0, 1), min_size=1, max_size=30),
)
def test_a_stall_is_never_longer_than_a_probe_took_nor_negative(took: list[float], beside: list[float]) -> None:
    probes = [Call(number * 0.05, one) for number, one in enumerate(took)]
    control = [Call(number * 0.05, one) for number, one in enumerate(beside)]
    found = stalls(probes, control, DEADLINE)
    assert all(0.0 <= stall.lasted <= max(took) for stall in found)
    assert max(stall.lasted for stall in found) >= max(took) - max(beside) - 1e-9


def test_memory_knows_its_height_and_its_end() -> None:
    memory = Memory(10, [Flood(30, 12), Flood(50, 13), Flood(40, 14)])
    assert (memory.height, memory.last) == (50, 14)
