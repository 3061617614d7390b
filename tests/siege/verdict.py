"""The bars, and whether a siege was withstood. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from tests.siege.figures import Memory, middle

P99_FACTOR, P99_FLOOR = 3.0, 0.020
STALL = 0.100
MEMORY_FACTOR, MEMORY_GROWTH = 1.10, 30_000_000
TOLD = 0.050
"""Stalls from here on are counted and printed; only those over :data:`STALL` break a bar."""


@dataclass(frozen=True, slots=True)
class Sort:
    """One sort of honest calls in one run: without the siege and under it. ``p99``: None if no call was answered."""

    quiet_p50: float | None
    quiet_p99: float | None
    p50: float | None
    p99: float | None
    calls: int
    lost: int


@dataclass(frozen=True, slots=True)
class Rate:
    """How often a second attackers of one kind did it, and the least that makes the run count."""

    achieved: float
    least: float


@dataclass(frozen=True, slots=True)
class Run:
    """What one run found. ``stalls``: the longest and the number over :data:`TOLD`, by what was probed. ``unended``: the
    processes that died under siege, or did not end when they were told to. ``control``: the idle process, asked as often as
    the first sort; what it shows is the machine's."""

    sorts: Mapping[str, Sort]
    stalls: Mapping[str, tuple[float, int]]
    memory: Mapping[str, Memory]
    rates: Mapping[str, Rate]
    unended: Sequence[str] = ()
    control: Sort | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One bar: what was measured, the figure, the most that it may be, both as people read them."""

    bar: str
    measured: str
    allowed: str
    held: bool


def too_slow(runs: Sequence[Run]) -> list[str]:
    """The kinds of attackers that did less than their least, which makes the runs invalid."""
    return [
        f"{kind}: {achieved:.1f}/s, and {runs[0].rates[kind].least:g}/s is the least"
        for kind in (runs[0].rates if runs else ())
        if (achieved := median(run.rates[kind].achieved for run in runs)) < runs[0].rates[kind].least
    ]


def judge(runs: Sequence[Run]) -> list[Row]:
    """A row for each bar. Each figure is the median of the runs', but for lost calls and processes: none may be lost in
    any run."""
    first = runs[0]
    rows = []
    for name in first.sorts:
        each = [run.sorts[name] for run in runs]
        gone, calls = sum(sort.lost for sort in each), sum(sort.calls for sort in each)
        rows.append(Row(f"{name}: calls lost", f"{gone} of {calls}", "0", gone == 0 and calls > 0))
        quiet, p99 = middle(sort.quiet_p99 for sort in each), middle(sort.p99 for sort in each)
        allowed = max(P99_FACTOR * (quiet or 0.0), P99_FLOOR)
        held = p99 is not None and p99 <= allowed
        rows.append(Row(f"{name}: p99", _ms(p99), _ms(allowed), held))
    for name in first.stalls:
        longest = median(run.stalls[name][0] for run in runs)
        rows.append(Row(f"{name}: longest stall", _ms(longest), _ms(STALL), longest <= STALL))
    for name in first.memory:
        rows += _memory_rows(name, [run.memory[name] for run in runs])
    unended = sorted({name for run in runs for name in run.unended})
    rows.append(Row("processes that died, or did not end when told", ", ".join(unended) or "none", "none", not unended))
    return rows


def _memory_rows(name: str, each: Sequence[Memory]) -> list[Row]:
    last = median(memory.last for memory in each)
    start = median(memory.before for memory in each)
    rows = []
    if len(each[0].floods) > 1:
        once = median(memory.floods[0].after for memory in each)
        allowed = once * MEMORY_FACTOR
        rows.append(Row(f"{name}: memory after the last flood, to the first", _mb(last), _mb(allowed), last <= allowed))
    allowed = start + MEMORY_GROWTH
    rows.append(Row(f"{name}: memory after the last flood, to the start", _mb(last), _mb(allowed), last <= allowed))
    return rows


def _ms(seconds: float | None) -> str:
    return "none answered" if seconds is None else f"{seconds * 1e3:.1f} ms"


def _mb(size: float) -> str:
    return f"{size / 1e6:.1f} MB"
