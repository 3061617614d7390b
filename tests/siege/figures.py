"""Figures of one run: percentiles, stalls, memory. Pure. Times are seconds, sizes bytes."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True, slots=True)
class Call:
    """One honest call: the time when it was due, and how long from then until it was answered, so that a stall shows in
    every call that it delays. None: it was lost."""

    due: float
    took: float | None


@dataclass(frozen=True, slots=True)
class Stall:
    """A time in which a loop did nothing for others: when it began, and how much longer than the control process's."""

    began: float
    lasted: float


@dataclass(frozen=True, slots=True)
class Flood:
    """Memory of one process in one of the floods: the most during it, and at rest after it."""

    height: int
    after: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one process: before the first flood, and in each flood."""

    before: int
    floods: Sequence[Flood]

    @property
    def height(self) -> int:
        return max(flood.height for flood in self.floods)

    @property
    def last(self) -> int:
        """After the last flood."""
        return self.floods[-1].after


@dataclass(slots=True)
class Calls:
    """All calls of one sort, in the order in which they ended. ``begun``: how many were, so far."""

    sort: str
    made: list[Call] = field(default_factory=list)
    begun: int = 0

    def between(self, begin: float, end: float) -> list[Call]:
        """Those that were due then, in that order."""
        return sorted((call for call in self.made if begin <= call.due < end), key=lambda call: call.due)


def percentile(values: Iterable[float], part: float) -> float | None:
    """The smallest value that at least ``part`` (0 to 1) of all are not above (nearest rank); None of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else None


def times(calls: Iterable[Call]) -> list[float]:
    """How long each took; a lost one is none."""
    return [call.took for call in calls if call.took is not None]


def lost(calls: Iterable[Call]) -> int:
    return sum(call.took is None for call in calls)


def stalls(probes: Sequence[Call], control: Sequence[Call], longest: float) -> list[Stall]:
    """The stalls that probes show: each as much longer than the longest of the control's that were under way meanwhile.

    What held up the control process, on the same core and asked by the same program, was not the product. Probes that
    overlap show one stall, which is as long as the longest of them. A lost probe shows one of ``longest``: its deadline.
    """
    dues = [one.due for one in control]
    reach = max((one.took or longest for one in control), default=0.0)
    found: list[Stall] = []
    busy_until = -math.inf
    for probe in probes:
        took = longest if probe.took is None else probe.took
        ended = probe.due + took
        beside = control[bisect_left(dues, probe.due - reach) : bisect_left(dues, ended)]
        held_up = max((_took(one) for one in beside if one.due + _took(one) >= probe.due), default=0.0)
        stall = Stall(probe.due, max(0.0, took - held_up))
        if probe.due < busy_until and found:
            if stall.lasted > found[-1].lasted:
                found[-1] = Stall(found[-1].began, stall.lasted)
        else:
            found.append(stall)
        busy_until = max(busy_until, ended)
    return found


def _took(call: Call) -> float:
    return call.took or 0.0


def middle(values: Iterable[float | None]) -> float | None:
    """The median of those that are known."""
    known = [value for value in values if value is not None]
    return median(known) if known else None
