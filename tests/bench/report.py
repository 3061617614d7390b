"""The comparison for people, as tables, and for programs, as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tests.bench import overview
from tests.bench.comparison import Results, Settings, install_line
from tests.bench.contestants import CONDITIONS, Missing
from tests.bench.figures import FEWEST_ROUNDS, Figures, summarise
from tests.bench.idle import Footprint
from tests.bench.loads import Load
from tests.bench.overview import Overview
from tests.bench.procfs import Memory
from tests.bench.table import table

_MEGA = 1e6


def first_peer(settings: Settings) -> str:
    """Whom all are compared with: the first of the others, or ourselves if nobody else is there."""
    names = [contestant.name for contestant in settings.contestants]
    return next((name for name in names if not name.startswith("sidecar")), names[0])


def summary(settings: Settings, results: Results, machine: Mapping[str, Any]) -> Overview:
    """All of it on one page."""
    peer = first_peer(settings)
    made = (
        f"{machine['time'][:10]}, {machine['cpu']}, {machine['cpus']} CPUs, {machine['kernel']}; "
        f"{settings.rounds} rounds of {settings.seconds:g} s; {settings.group}"
    )
    groups = {one.name: settings.group_of(one) for one in settings.contestants}
    columns = {
        name: f"{name} {version}{'' if groups[name] == settings.group else f' with {groups[name]}'}"
        for name, version in results.versions.items()
    }
    return Overview(made, peer, columns, overview.rows(results.readings, results.footprints, peer))


def show(settings: Settings, results: Results, machine: Mapping[str, Any], left_out: Sequence[Missing]) -> None:
    """Prints all of it."""
    print(f"\n{machine['cpu']}, {machine['cpus']} CPUs, {machine['kernel']}")
    print(f"load average before: {machine['load'][0]} (above 0, others were at work, and figures are noise)")
    print(f"{settings.rounds} rounds of {settings.seconds:g} s each load, the contestants alternating; medians")
    print("\nThe same conditions for all, checked on the wire, and by trying wrong certificates:")
    for condition in CONDITIONS:
        print(f"  {condition}")
    for name, version in results.versions.items():
        print(f"  {name} {version}")
        for (who, mode), proof in results.proofs.items():
            if who == name:
                print(f"    {mode}: negotiated {proof}")
    for missing in left_out:
        print(f"  left out, because there is none: {missing.what}")
    if line := install_line(left_out):
        print(f"  {line}")
    print()
    peer = first_peer(settings)
    for load in settings.loads:
        figures = summarise(results.readings, load.name, peer)
        print(f"{load.title[0].upper()}{load.title[1:]}: CPU of the pair a {load.unit}, and rate")
        print(_load_table(load, figures, peer))
    if results.footprints:
        print("Memory of each proxy, MB: just started, what 1,000 idle connections add, after a burst of new ones")
        print(_memory_table(results.footprints))
    noisy = summary(settings, results, machine).noisy()
    if settings.rounds < FEWEST_ROUNDS:
        print(f"Nothing of it counts: fewer than {FEWEST_ROUNDS} rounds")
    elif noisy:
        print("Too noisy to count:")
        for line in noisy:
            print(f"  {line}")


def _load_table(load: Load, figures: Sequence[Figures], peer: str) -> str:
    bulk = load.unit == "GB"
    headings = ["pair of", "CPU s" if bulk else "CPU µs", "lowest", "highest", f"to {peer}"]
    headings += ["GB/s"] if bulk else ["per s", "p50 ms", "p99 ms", f"to {peer}"]
    lines = []
    for row in figures:
        scale, digits = (1, 2) if bulk else (1e6, 0 if row.cost >= 1e-3 else 1)
        costs = [f"{cost * scale:,.{digits}f}" for cost in (row.cost, row.cheapest, row.dearest)]
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        p99_ratio = "" if row.p99_ratio is None else f"{row.p99_ratio:.2f}"
        latencies = [] if bulk else [_milliseconds(row.p50), _milliseconds(row.p99), p99_ratio]
        lines.append([row.contestant, *costs, ratio, f"{row.rate:,.{2 if bulk else 0}f}", *latencies])
    return table(headings, lines)


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.2f}"


def _memory_table(footprints: Mapping[str, Footprint]) -> str:
    sides = [
        f"{whose}\n{heading}" for whose in ("caller's", "callee's") for heading in ("RSS", "PSS", "+ RSS", "after")
    ]
    rows = []
    for name, footprint in footprints.items():
        cells: list[str] = []
        for side in (0, 1):
            alone = footprint.idle[side]
            pss = "" if alone.pss is None else f"{alone.pss / _MEGA:.1f}"
            cells += [f"{alone.rss / _MEGA:.1f}", pss, f"{footprint.rss_per_thousand(side) / _MEGA:.1f}"]
            cells.append(f"{footprint.after[side].rss / _MEGA:.1f}")
        rows.append([name, *cells])
    return table(["pair of", *sides], rows)


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
            "parts": sorted(settings.parts),
            "compared_with": peer,
        },
        "tools": dict(results.tools),
        "contestants": {
            name: {
                "version": version,
                "proofs": {mode: asdict(it) for (who, mode), it in results.proofs.items() if who == name},
            }
            for name, version in results.versions.items()
        },
        "left_out": [asdict(missing) for missing in left_out],
        "summary": [
            {"load": load.name, "unit": load.unit, **asdict(row)}
            for load in settings.loads
            for row in summarise(results.readings, load.name, peer)
        ],
        "overview": summary(settings, results, machine).as_json(),
        "memory": {
            name: {
                "connections": footprint.connections,
                "idle": _sides(footprint.idle),
                "held": _sides(footprint.held),
                "after": _sides(footprint.after),
            }
            for name, footprint in results.footprints.items()
        },
        "readings": [{**asdict(reading), "cost": reading.cost, "rate": reading.rate} for reading in results.readings],
    }


def _sides(memories: tuple[Memory, Memory]) -> dict[str, Any]:
    return {"caller": asdict(memories[0]), "callee": asdict(memories[1])}
