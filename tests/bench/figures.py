"""From readings to figures: medians over the rounds, and ratios to the first peer. Pure.

A ratio is the median of the rounds' ratios, not the ratio of the medians: what a busy machine does to one round, it does to
all contestants of that round.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from tests.bench.outputs import Done

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reading:
    """One load on one pair in one round. ``cpu_caller`` and ``cpu_callee``: seconds of CPU of the two proxies."""

    load: str
    contestant: str
    group: str
    round: int
    cpu_caller: float
    cpu_callee: float
    done: Done

    @property
    def cost(self) -> float:
        """Seconds of CPU of the pair for one unit of work."""
        return (self.cpu_caller + self.cpu_callee) / self.done.units

    @property
    def rate(self) -> float:
        """Units of work a second."""
        return self.done.units / self.done.seconds


@dataclass(frozen=True, slots=True)
class Figures:
    """One contestant's row. ``ratio`` compares ``cost`` with the first peer's, below 1 is cheaper; None if that one has
    no readings. ``cheapest`` and ``dearest`` are the rounds' extremes."""

    contestant: str
    cost: float
    cheapest: float
    dearest: float
    ratio: float | None
    rate: float
    p50: float | None
    p99: float | None


def summarise(readings: Iterable[Reading], load: str, group: str, first_peer: str) -> list[Figures]:
    """The rows of one load at one group, in the order in which the contestants were first met."""
    rows: dict[str, list[Reading]] = {}
    for reading in sorted(readings, key=lambda reading: reading.round):
        if (reading.load, reading.group) == (load, group):
            rows.setdefault(reading.contestant, []).append(reading)
    reference = {reading.round: reading.cost for reading in rows.get(first_peer, [])}
    return [_figures(contestant, row, reference) for contestant, row in rows.items()]


def _figures(contestant: str, row: Sequence[Reading], reference: dict[int, float]) -> Figures:
    costs = [reading.cost for reading in row]
    ratios = [reading.cost / reference[reading.round] for reading in row if reference.get(reading.round)]
    return Figures(
        contestant,
        cost=median(costs),
        cheapest=min(costs),
        dearest=max(costs),
        ratio=median(ratios) if ratios else None,
        rate=median(reading.rate for reading in row),
        p50=_median(reading.done.p50 for reading in row),
        p99=_median(reading.done.p99 for reading in row),
    )


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def rotated(items: Sequence[T], by: int) -> list[T]:
    """The same order, begun elsewhere: nobody is always first, or always behind the same neighbour's heat."""
    start = by % len(items) if items else 0
    return [*items[start:], *items[:start]]
