"""From readings to figures: medians over the rounds, and ratios to the first peer. Pure.

A ratio is the median of the rounds' ratios, not the ratio of the medians: what a busy machine does to one round, it does to
all contestants of that round. Where the rounds do not agree, or others took the machine, the figure does not count, and
:attr:`Figures.noise` says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import TypeVar

from tests.bench.outputs import Done

T = TypeVar("T")

FEWEST_ROUNDS = 3
MOST_SPREAD = 0.15
MOST_DISTURBED = 0.05
"""From when on a figure is too noisy to count: the middle half of the rounds is spread over more than this part of their
median, or this part of the machine's time went to others, or was taken by the host that it runs on, in half of the rounds.
"""


@dataclass(frozen=True, slots=True)
class Reading:
    """One load on one pair in one round. ``cpu_caller`` and ``cpu_callee``: seconds of CPU of the two proxies.
    ``disturbed``: the part of the machine's time, from 0 to 1, that neither we nor idleness had."""

    load: str
    contestant: str
    group: str
    round: int
    cpu_caller: float
    cpu_callee: float
    done: Done
    disturbed: float = 0.0

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
    """One contestant's row. ``ratio`` and ``p99_ratio`` compare with the first peer, below 1 is cheaper or faster; None if
    that one has no readings, or with another group. ``cheapest`` and ``dearest`` are the rounds' extremes. ``noise`` says
    why cost and ratio do not count, ``p99_noise`` why latency does not."""

    contestant: str
    group: str
    cost: float
    cheapest: float
    dearest: float
    ratio: float | None
    rate: float
    p50: float | None
    p99: float | None
    p99_ratio: float | None
    noise: str | None
    p99_noise: str | None


def summarise(readings: Iterable[Reading], load: str, first_peer: str) -> list[Figures]:
    """The rows of one load, in the order in which the contestants were first met."""
    rows: dict[str, list[Reading]] = {}
    for reading in sorted(readings, key=lambda reading: reading.round):
        if reading.load == load:
            rows.setdefault(reading.contestant, []).append(reading)
    reference = {(reading.round, reading.group): reading for reading in rows.get(first_peer, [])}
    return [_figures(contestant, row, reference, contestant == first_peer) for contestant, row in rows.items()]


def _figures(
    contestant: str, row: Sequence[Reading], reference: Mapping[tuple[int, str], Reading], is_reference: bool
) -> Figures:
    costs = [reading.cost for reading in row]
    beside = [(one, peer) for one in row if (peer := reference.get((one.round, one.group)))]
    ratios = [one.cost / peer.cost for one, peer in beside if peer.cost]
    p99s = [reading.done.p99 for reading in row if reading.done.p99 is not None]
    p99_ratios = [one.done.p99 / peer.done.p99 for one, peer in beside if one.done.p99 and peer.done.p99]
    disturbed = median(reading.disturbed for reading in row)
    return Figures(
        contestant,
        row[0].group,
        cost=median(costs),
        cheapest=min(costs),
        dearest=max(costs),
        ratio=_median(ratios),
        rate=median(reading.rate for reading in row),
        p50=_median(reading.done.p50 for reading in row),
        p99=_median(p99s),
        p99_ratio=_median(p99_ratios),
        noise=noise(costs if is_reference or not ratios else ratios, disturbed),
        p99_noise=noise(p99s if is_reference or not p99_ratios else p99_ratios, disturbed),
    )


def noise(values: Sequence[float], disturbed: float) -> str | None:
    """Why the median of the rounds does not count; None if it does."""
    if len(values) < FEWEST_ROUNDS:
        return f"fewer than {FEWEST_ROUNDS} rounds"
    if disturbed > MOST_DISTURBED:
        return f"others took {disturbed:.0%} of the machine"
    lower, _, upper = quantiles(values, n=4, method="inclusive")
    if upper - lower > MOST_SPREAD * median(values):
        return f"the rounds are spread over {(upper - lower) / median(values):.0%}"
    return None


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def rotated(items: Sequence[T], by: int) -> list[T]:
    """The same order, begun elsewhere: nobody is always first, or always behind the same neighbour's heat."""
    start = by % len(items) if items else 0
    return [*items[start:], *items[:start]]
