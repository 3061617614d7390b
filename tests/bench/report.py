"""The comparison for people, as tables, and for programs, as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from tests.bench.comparison import GROUPS, Results, Settings, install_line
from tests.bench.contestants import CONDITIONS, X25519, Missing
from tests.bench.figures import Figures, summarise
from tests.bench.idle import Footprint
from tests.bench.loads import Load
from tests.bench.procfs import Memory

_MEGA = 1e6


def first_peer(settings: Settings) -> str:
    """Whom all are compared with: the first of the others, or ourselves if nobody else is there."""
    names = [contestant.name for contestant in settings.contestants]
    return next((name for name in names if name != "sidecar"), names[0])


def show(
    console: Console, settings: Settings, results: Results, machine: Mapping[str, Any], left_out: Sequence[Missing]
) -> None:
    """Prints all of it."""

    def tell(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    tell(f"\n[bold]{machine['cpu']}[/], {machine['cpus']} CPUs, {machine['kernel']}")
    tell(f"load average before: {machine['load'][0]} (above 0, others were at work, and figures are noise)")
    tell(f"{settings.rounds} rounds of {settings.seconds:g} s each load, the contestants alternating; medians")
    tell("\n[bold]The same conditions for all[/], checked on the wire, and by trying wrong certificates:")
    for condition in CONDITIONS:
        tell(f"  {condition}")
    for name, version in results.versions.items():
        groups = [group for who, group in results.negotiated if who == name]
        agreed = results.negotiated[name, X25519]
        tell(f"  [cyan]{name}[/] {version}: negotiated {agreed.version}, {agreed.cipher}, {' or '.join(groups)}")
    for missing in left_out:
        tell(f"  [yellow]left out: {missing.what} is not installed[/]")
    if line := install_line(left_out):
        tell(f"  [yellow]{line}[/]")
    tell("")
    peer = first_peer(settings)
    for group, loads in GROUPS.items():
        for load in loads:
            rows = summarise(results.readings, load.name, group, peer)
            if rows:
                tell(
                    f"[bold]{load.title[0].upper()}{load.title[1:]}, {group}[/]: CPU of the pair a {load.unit}, and rate"
                )
                console.print(_load_table(load, group, rows, peer))
    tell("[bold]Memory of each proxy, MB[/]: just started, and what 1,000 idle connections add")
    console.print(_memory_table(results.footprints))


def _load_table(load: Load, group: str, rows: Sequence[Figures], peer: str) -> Table:
    bulk = load.unit == "GB"
    table = _table()
    for heading in ("CPU s" if bulk else "CPU µs", "lowest", "highest", f"to {peer}", "GB/s" if bulk else "per s"):
        table.add_column(heading, justify="right")
    if not bulk:
        table.add_column("p50 ms", justify="right")
        table.add_column("p99 ms", justify="right")
    for row in rows:
        scale, digits = (1, 2) if bulk else (1e6, 0 if row.cost >= 1e-3 else 1)
        costs = [f"{cost * scale:,.{digits}f}" for cost in (row.cost, row.cheapest, row.dearest)]
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        latencies = [] if bulk else [_milliseconds(row.p50), _milliseconds(row.p99)]
        table.add_row(row.contestant, *costs, ratio, f"{row.rate:,.{2 if bulk else 0}f}", *latencies)
    return table


def _table() -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("pair of", min_width=8)
    return table


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.2f}"


def _memory_table(footprints: Mapping[str, Footprint]) -> Table:
    table = _table()
    for whose in ("caller's", "callee's"):
        for heading in ("RSS", "PSS", "+ RSS"):
            table.add_column(f"{whose}\n{heading}", justify="right")
    for name, footprint in footprints.items():
        cells: list[str] = []
        for side in (0, 1):
            alone = footprint.idle[side]
            pss = "" if alone.pss is None else f"{alone.pss / _MEGA:.1f}"
            cells += [f"{alone.rss / _MEGA:.1f}", pss, f"{footprint.rss_per_thousand(side) / _MEGA:.1f}"]
        table.add_row(name, *cells)
    return table


def as_json(
    settings: Settings, results: Results, machine: Mapping[str, Any], left_out: Sequence[Missing]
) -> dict[str, Any]:
    """All of it, seconds and bytes throughout, single readings too."""
    peer = first_peer(settings)
    return {
        "machine": dict(machine),
        "conditions": list(CONDITIONS),
        "settings": {
            "rounds": settings.rounds,
            "seconds": settings.seconds,
            "connections": settings.connections,
            "compared_with": peer,
        },
        "tools": dict(results.tools),
        "contestants": {
            name: {
                "version": version,
                "negotiated": {group: asdict(it) for (who, group), it in results.negotiated.items() if who == name},
            }
            for name, version in results.versions.items()
        },
        "left_out": [asdict(missing) for missing in left_out],
        "summary": [
            {"load": load.name, "unit": load.unit, "group": group, **asdict(row)}
            for group, loads in GROUPS.items()
            for load in loads
            for row in summarise(results.readings, load.name, group, peer)
        ],
        "memory": {
            name: {
                "connections": footprint.connections,
                "idle": _sides(footprint.idle),
                "held": _sides(footprint.held),
            }
            for name, footprint in results.footprints.items()
        },
        "readings": [{**asdict(reading), "cost": reading.cost, "rate": reading.rate} for reading in results.readings],
    }


def _sides(memories: tuple[Memory, Memory]) -> dict[str, Any]:
    return {"caller": asdict(memories[0]), "callee": asdict(memories[1])}
