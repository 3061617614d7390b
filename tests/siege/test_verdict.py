"""The bars: each is held at its edge, and failed just above it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.siege.figures import Flood, Memory
from tests.siege.verdict import Rate, Row, Run, Sort, judge, too_slow

MB = 1_000_000
SORT = Sort(quiet_p50=0.0005, quiet_p99=0.002, p50=0.001, p99=0.020, calls=100, lost=0)


def memory(*after: int, before: int = 60 * MB) -> Memory:
    return Memory(before, [Flood(200 * MB, one) for one in after])


GOOD = Run(
    sorts={"calls": SORT},
    stalls={"calls": (0.1, 1)},
    memory={"api": memory(70 * MB, 72 * MB, 74 * MB)},
    rates={"idle": Rate(50.0, 40.0)},
)


def failed(*runs: Run) -> list[str]:
    return [row.bar for row in judge(runs) if not row.held]


def with_sort(**changes: Any) -> Run:
    return replace(GOOD, sorts={"calls": replace(SORT, **changes)})


def test_a_siege_that_is_withstood_fails_no_bar() -> None:
    assert failed(GOOD) == []
    assert {row.bar for row in judge([GOOD])} == {
        "calls: calls lost",
        "calls: p99",
        "calls: longest stall",
        "api: memory after the last flood, to the first",
        "api: memory after the last flood, to the start",
        "processes that died, or did not end when told",
    }


def test_one_lost_call_fails_in_whichever_run() -> None:
    assert failed(with_sort(lost=1), GOOD, GOOD) == ["calls: calls lost"]


def test_no_call_at_all_fails() -> None:
    assert failed(with_sort(calls=0, p50=None, p99=None)) == ["calls: calls lost", "calls: p99"]


@pytest.mark.parametrize(
    ("quiet", "p99", "held"),
    [
        (0.002, 0.0200, True),
        (0.002, 0.0201, False),
        (0.010, 0.0300, True),
        (0.010, 0.0301, False),
        (None, 0.0200, True),
        (None, 0.0201, False),
    ],
)
def test_p99_is_at_most_three_times_that_without_a_siege_or_20_ms(quiet: float | None, p99: float, held: bool) -> None:
    assert (failed(with_sort(quiet_p99=quiet, p99=p99)) == []) is held


@pytest.mark.parametrize(("longest", "held"), [(0.100, True), (0.101, False)])
def test_no_stall_is_over_100_ms(longest: float, held: bool) -> None:
    assert (failed(replace(GOOD, stalls={"calls": (longest, 1)})) == []) is held


@pytest.mark.parametrize(
    ("after", "bars"),
    [
        ((70, 70, 77), []),
        ((70, 70, 78), ["api: memory after the last flood, to the first"]),
        ((90, 90, 90), []),
        ((90, 90, 91), ["api: memory after the last flood, to the start"]),
        ((70, 200, 70), []),
        ((91,), ["api: memory after the last flood, to the start"]),
    ],
)
def test_memory_after_the_last_flood(after: tuple[int, ...], bars: list[str]) -> None:
    assert failed(replace(GOOD, memory={"api": memory(*(one * MB for one in after))})) == bars


def test_a_process_that_died_fails() -> None:
    (row,) = [row for row in judge([GOOD, replace(GOOD, unended=["api"])]) if not row.held]
    assert row == Row("processes that died, or did not end when told", "api", "none", held=False)


def test_figures_are_medians_of_the_runs() -> None:
    bad = replace(with_sort(p99=9.0), stalls={"calls": (9.0, 9)}, memory={"api": memory(70 * MB, 70 * MB, 900 * MB)})
    assert failed(GOOD, bad, GOOD) == []
    assert failed(GOOD, bad, bad) == [
        "calls: p99",
        "calls: longest stall",
        "api: memory after the last flood, to the first",
        "api: memory after the last flood, to the start",
    ]


def test_attackers_below_their_least_make_it_invalid() -> None:
    lazy = replace(GOOD, rates={"idle": Rate(39.9, 40.0)})
    assert too_slow([lazy]) == ["idle: 39.9/s, and 40/s is the least"]
    assert too_slow([lazy, GOOD, GOOD]) == []
    assert too_slow([replace(GOOD, rates={"idle": Rate(40.0, 40.0)})]) == []
