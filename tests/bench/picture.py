"""The overview as a picture: how far each contestant is from the peer that all are compared with. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from tests.bench.overview import Overview

FARTHEST = 3.0
"""Where the picture ends; a bar that is longer is cut there, and its number says how long it is."""

COLOURS = ("#0b7285", "#adb5bd", "#e8590c", "#2b8a3e", "#66c2d5", "#862e9c")
BAR_INCHES = 0.17
BETWEEN = 1.2
"""Of a bar, between two rows."""


@dataclass(frozen=True, slots=True)
class Bar:
    """``at``: its place from the top, in bars. What is too noisy to count is drawn ``pale``."""

    contestant: str
    at: float
    length: float
    text: str
    pale: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """``titles`` by the places of their middles; ``height`` in bars."""

    titles: Mapping[float, str]
    bars: Sequence[Bar]
    height: float


def layout(overview: Overview) -> Layout:
    """A bar for each ratio, but for the peer's own."""
    titles: dict[float, str] = {}
    bars: list[Bar] = []
    top = 0.0
    for row in overview.rows:
        shown = [name for name in overview.columns if name != overview.peer and name in row.cells]
        for place, name in enumerate(shown):
            ratio, pale = row.cells[name].ratio, row.cells[name].noise is not None
            if ratio is not None:
                text = f"{'~' if pale else ''}{ratio:.2f}"
                bars.append(Bar(name, top + place, min(ratio, FARTHEST), text, pale))
        titles[top + (len(shown) - 1) / 2] = row.title
        top += len(shown) + BETWEEN
    return Layout(titles, bars, top)


def draw(overview: Overview, path: Path) -> None:
    """Writes an SVG, the same each time for the same figures."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    plan = layout(overview)
    others = [name for name in overview.columns if name != overview.peer]
    with mpl.rc_context({"svg.hashsalt": "bench", "svg.fonttype": "path", "font.size": 9}):
        figure = Figure(figsize=(9, plan.height * BAR_INCHES + 1.3), layout="constrained")
        axes = figure.add_subplot()
        for colour, name in zip(cycle(COLOURS), others, strict=False):
            its = [bar for bar in plan.bars if bar.contestant == name]
            if its:
                label, lengths = overview.columns[name], [bar.length for bar in its]
                drawn = axes.barh([bar.at for bar in its], lengths, 0.9, color=colour, label=label)
                for patch, bar in zip(drawn, its, strict=True):
                    patch.set_alpha(0.35 if bar.pale else 1)
                axes.bar_label(drawn, [bar.text for bar in its], padding=2, fontsize=7)
        axes.axvline(1, color="black", linewidth=1)
        axes.set_yticks(list(plan.titles), list(plan.titles.values()))
        axes.set_ylim(plan.height - BETWEEN, -1)
        axes.set_xlim(0, FARTHEST + 0.2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(f"beside {overview.columns[overview.peer]} (1.0): shorter is better", fontsize=10)
        axes.set_xlabel(overview.made, fontsize=7)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format=path.suffix[1:], metadata={"Date": None} if path.suffix == ".svg" else None)
