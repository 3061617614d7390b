"""All figures on one page: a row for each thing that is measured, a column for each contestant, and the ratios to one of
them. Pure; what ``build/bench.json`` holds of it can be read again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.bench.figures import Figures, Reading, summarise
from tests.bench.idle import Footprint
from tests.bench.loads import LOADS, Load
from tests.bench.procfs import Memory

KEPT = 0.95
"""Of a fixed rate, at least."""


@dataclass(frozen=True, slots=True)
class Cell:
    """``ratio`` is None where there is nothing to compare with. ``noise`` says why the figure does not count."""

    value: float
    ratio: float | None
    noise: str | None


@dataclass(frozen=True, slots=True)
class Row:
    """``cells`` by contestant. Less is better in all of them."""

    title: str
    unit: str
    cells: Mapping[str, Cell]


@dataclass(frozen=True, slots=True)
class Overview:
    """``columns``: contestants and their versions. ``made``: when, on what, how."""

    made: str
    peer: str
    columns: Mapping[str, str]
    rows: Sequence[Row]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Overview:
        rows = [
            Row(row["title"], row["unit"], {name: Cell(**cell) for name, cell in row["cells"].items()})
            for row in value["rows"]
        ]
        return cls(value["made"], value["peer"], value["columns"], rows)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def noisy(self) -> list[str]:
        """The figures that do not count, and why: a line for each row that has any."""
        reasons = {
            row.title: [f"{name} ({cell.noise})" for name, cell in row.cells.items() if cell.noise is not None]
            for row in self.rows
        }
        return [f"{title}: {', '.join(its)}" for title, its in reasons.items() if its]

    def markdown(self) -> str:
        """A table for a README; ``~`` marks what is too noisy to count."""
        lines = [
            f"|  | {' | '.join(self.columns.values())} |",
            f"|---|{'---:|' * len(self.columns)}",
            *(
                f"| {row.title}, {row.unit} | {' | '.join(_text(row.cells.get(name)) for name in self.columns)} |"
                for row in self.rows
            ),
        ]
        return "\n".join(lines) + "\n"


def _text(cell: Cell | None) -> str:
    if cell is None:
        return ""
    digits = 2 if cell.value < 10 else 1 if cell.value < 100 else 0
    ratio = "" if cell.ratio is None else f" (×{cell.ratio:.2f})"
    return f"{'~' if cell.noise else ''}{cell.value:,.{digits}f}{ratio}"


def rows(readings: Sequence[Reading], footprints: Mapping[str, Footprint], peer: str) -> list[Row]:
    """What was measured, in the order of the loads, then memory."""
    found = [(load, summarise(readings, load.name, peer)) for load in LOADS]
    return [*(_load_row(load, figures) for load, figures in found if figures), *_memory_rows(footprints, peer)]


def _load_row(load: Load, figures: Sequence[Figures]) -> Row:
    if load.rate is not None:
        cells = {
            it.contestant: Cell(it.p99 * 1e3, it.p99_ratio, _late(it, load.rate) or it.p99_noise)
            for it in figures
            if it.p99 is not None
        }
        return Row(load.short, "ms", cells)
    scale, unit = (1.0, "s of CPU a GB") if load.unit == "GB" else (1e6, "µs of CPU")
    return Row(load.short, unit, {it.contestant: Cell(it.cost * scale, it.ratio, it.noise) for it in figures})


def _late(it: Figures, rate: int) -> str | None:
    """Latency at a rate that was not kept is that of another rate."""
    return f"{it.rate:,.0f} requests a second instead of {rate:,}" if it.rate < KEPT * rate else None


def _memory_rows(footprints: Mapping[str, Footprint], peer: str) -> Iterator[Row]:
    """Of the larger of the two proxies."""
    added = {name: max(it.rss_per_thousand(side) for side in (0, 1)) for name, it in footprints.items()}
    yield from _megabytes("memory, just started", {name: _rss(it.idle) for name, it in footprints.items()}, peer)
    yield from _megabytes("memory that 1,000 idle connections add", added, peer)
    yield from _megabytes("memory after a burst", {name: _rss(it.after) for name, it in footprints.items()}, peer)


def _rss(memories: tuple[Memory, Memory]) -> float:
    return max(memory.rss for memory in memories)


def _megabytes(title: str, sizes: Mapping[str, float], peer: str) -> Iterator[Row]:
    reference = sizes.get(peer)
    cells = {name: Cell(size / 1e6, size / reference if reference else None, None) for name, size in sizes.items()}
    if cells:
        yield Row(title, "MB", cells)
