"""A siege for people, as tables, and for programs, as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from tests.bench.table import table
from tests.siege.figures import middle
from tests.siege.kinds import KINDS
from tests.siege.verdict import TOLD, Row, Run

DISTURBED = 0.010


def show(title: str, runs: Sequence[Run], rows: Sequence[Row]) -> None:
    """Prints all of it."""
    print(f"\n{title}\n")
    print(_calls(runs))
    disturbed = middle(run.control.p99 for run in runs if run.control is not None)
    if disturbed is not None and disturbed > DISTURBED:
        print(
            f"the idle control process answered in {_ms(disturbed)} ms at p99: this machine was busy with "
            "something else, and p99 figures are noise"
        )
    print(_stalls(runs))
    print(_memory(runs))
    print(_rates(runs))
    print(_bars(rows))


def _calls(runs: Sequence[Run]) -> str:
    by_name = {name: [run.sorts[name] for run in runs] for name in runs[0].sorts}
    by_name["(the control process)"] = [run.control for run in runs if run.control is not None]
    rows = [
        [
            name,
            *(_ms(middle(getattr(one, part) for one in each)) for part in ("quiet_p50", "quiet_p99", "p50", "p99")),
            str(sum(one.calls for one in each)),
            str(sum(one.lost for one in each)),
        ]
        for name, each in by_name.items()
    ]
    return table(["honest calls", "p50 ms alone", "p99 alone", "p50 under siege", "p99", "calls", "lost"], rows)


def _stalls(runs: Sequence[Run]) -> str:
    rows = []
    for name in runs[0].stalls:
        each = [run.stalls[name] for run in runs]
        rows.append([name, f"{median(number for _, number in each):g}", _ms(median(longest for longest, _ in each))])
    return table(["stalls of", f"over {TOLD * 1e3:.0f} ms", "longest, ms"], rows)


def _memory(runs: Sequence[Run]) -> str:
    floods = len(next(iter(runs[0].memory.values())).floods)
    rows = []
    for name in runs[0].memory:
        each = [run.memory[name] for run in runs]
        after = (median(one.floods[number].after for one in each) for number in range(floods))
        sizes = (median(one.before for one in each), median(one.height for one in each), *after)
        rows.append([name, *(f"{size / 1e6:.1f}" for size in sizes)])
    return table(["memory, MB", "before", "height", *(f"after flood {n + 1}" for n in range(floods))], rows)


def _rates(runs: Sequence[Run]) -> str:
    rows = []
    for kind, rate in runs[0].rates.items():
        achieved = median(run.rates[kind].achieved for run in runs)
        rows.append([f"{kind}: {KINDS[kind].what}", f"{achieved:,.1f}", f"{rate.least:g}", KINDS[kind].unit])
    return table(["attackers", "a second", "at least", "of"], rows)


def _bars(rows: Sequence[Row]) -> str:
    lines = [(row.bar, row.measured, row.allowed, "holds" if row.held else "FAILED") for row in rows]
    return table(["bar", "measured", "at most", ""], lines)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.1f}"


def as_json(machine: Mapping[str, Any], sieges: Mapping[str, tuple[Sequence[Run], Sequence[Row]]]) -> dict[str, Any]:
    """All of it, seconds and bytes throughout, by the side that strangers came from."""
    return {
        "machine": dict(machine),
        "sieges": {
            source: {"runs": [asdict(run) for run in runs], "bars": [asdict(row) for row in rows]}
            for source, (runs, rows) in sieges.items()
        },
    }
