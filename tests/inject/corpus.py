"""``python -m tests.inject.corpus DIRECTORY``: what inject makes of applications that others wrote, without a flag.

``NAME/`` in DIRECTORY is an application, its ``compose.yaml`` with the files that it reads. ``NAME.truth.yaml`` is beside it
(inside, inject would read that too), written before inject runs, by somebody who has read those files, not the heuristics:

    edges:      calls that the visible text makes certain: ``web -> db:5432``
    possible:   calls that may happen and cannot be seen, not counted either way; without a port: ``web -> db``, at any port
    ports:      the ports at which a service listens for clients, as its image or its files say
    workers:    services that listen at no port

The applications are other people's files, under their licences, and so are not kept here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import yaml

from sidecar.identity.reasons import UsageError
from sidecar.inject.injection import MESH_FILE, Injection, inject
from sidecar.policy.decide import decide
from sidecar.policy.mesh import parse_mesh
from tests.inject import bed

Edge = tuple[str, str, int]


@dataclass(frozen=True)
class Truth:
    edges: frozenset[Edge]
    possible: frozenset[tuple[str, str, int | None]]
    ports: Mapping[str, frozenset[int]]
    workers: frozenset[str]

    def is_allowed(self, edge: Edge) -> bool:
        caller, callee, _ = edge
        return edge in self.edges or edge in self.possible or (caller, callee, None) in self.possible


@dataclass(frozen=True)
class Outcome:
    """What a run of inject came to: ``failed`` if it refused. An application that is one cluster is refused, and all of it
    is outside. ``outside`` are the pairs of which one is not in the mesh or whose traffic stays in
    plaintext: their calls work, and no policy decides on them. ``asked`` are the services whose ports inject asked for."""

    allowed: frozenset[Edge] = frozenset()
    outside: frozenset[tuple[str, str]] = frozenset()
    listeners: Mapping[str, frozenset[int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    failed: str = ""
    seconds: float = 0


@dataclass(frozen=True)
class Score:
    found: frozenset[Edge]
    missed: frozenset[Edge]
    outside: frozenset[Edge]
    wrong: frozenset[Edge]
    dead: frozenset[Edge]
    """Those of ``missed`` at which the callee has not even a listener: a call is refused, and nothing is logged. Not
    if inject says that nobody can reach it, nor if it refused the application, which then runs as before."""
    untrue: tuple[str, ...]
    """Services of which it is said that no port is known, though their files or their image say it, or that they listen
    at none."""


def parse_truth(raw: Mapping[str, Any], services: Mapping[str, Any]) -> Truth:
    """Raises :class:`ValueError` for a line that is no call, or names a service that the application does not have."""
    if unknown := raw.keys() - {"edges", "possible", "ports", "workers"}:
        raise ValueError(f"truth: unknown: {', '.join(sorted(unknown))}")
    edges = {_call(text, services) for text in raw["edges"]}
    ports = {name: frozenset(map(int, numbers)) for name, numbers in (raw.get("ports") or {}).items()}
    workers = frozenset(raw.get("workers") or ())
    if strangers := (ports.keys() | workers) - services.keys():
        raise ValueError(f"truth: no such service: {', '.join(sorted(strangers))}")
    if both := ports.keys() & workers:
        raise ValueError(f"truth: it listens, and is a worker: {', '.join(sorted(both))}")
    whole = frozenset((caller, callee, port) for caller, callee, port in edges if port is not None)
    if len(whole) != len(raw["edges"]):
        raise ValueError("truth: a call of edges has no port, or is there twice")
    return Truth(whole, frozenset(_call(text, services) for text in raw.get("possible") or ()), ports, workers)


def _call(text: str, services: Mapping[str, Any]) -> tuple[str, str, int | None]:
    match = re.fullmatch(r"(\S+) -> ([^\s:]+)(?::(\d+))?", text)
    if match is None or match[1] == match[2]:
        raise ValueError(f"truth: {text!r} is no call, as in: web -> db:5432")
    for name in match[1], match[2]:
        if name not in services:
            raise ValueError(f"truth: {text!r}: no such service: {name}")
    return match[1], match[2], int(match[3]) if match[3] else None


def score(truth: Truth, outcome: Outcome) -> Score:
    outside = frozenset(edge for edge in truth.edges if edge[:2] in outcome.outside)
    inside = truth.edges - outside
    missed = inside - outcome.allowed
    unreachable = unknown_ports(outcome.notes)
    return Score(
        found=inside & outcome.allowed,
        missed=missed,
        outside=outside,
        wrong=frozenset(edge for edge in outcome.allowed if not truth.is_allowed(edge)),
        dead=frozenset(
            (caller, callee, port)
            for caller, callee, port in missed
            if not (outcome.failed or callee in unreachable or port in outcome.listeners.get(callee, ()))
        ),
        untrue=tuple(name for name in unreachable if name in truth.workers or truth.ports.get(name)),
    )


def unknown_ports(notes: tuple[str, ...]) -> list[str]:
    """The services of ``worker, mailer: no port known, nobody can reach them``."""
    said = (re.match(r"([\w., -]+?):? (?:has )?no port (?:is )?known", note) for note in notes)
    return [name for match in said if match for name in match[1].split(", ")]


@dataclass(frozen=True)
class Application(bed.Case):
    directory: Path

    @property
    def path(self) -> Path:
        return self.directory / self.name

    def truth(self) -> Truth:
        services = yaml.safe_load((self.path / "compose.yaml").read_text())["services"]
        return parse_truth(yaml.safe_load(self.path.with_name(f"{self.name}.truth.yaml").read_text()), services)


def run(application: Application, truth: Truth) -> Outcome:
    """Once without a flag. If inject asks for ports, that counts, and it is told them, to see the rest."""
    inputs = application.inputs()
    begin = perf_counter()
    try:
        injection = inject(inputs)
    except UsageError as error:
        asked = tuple(re.findall(r"--port (\S+)=…", str(error)))
        if not asked:
            services = inputs.config["services"] if "at their own addresses" in str(error) else ()
            outside = frozenset((one, other) for one in services for other in services)
            return Outcome(failed=str(error).partition("\n")[0], outside=outside)
        told = {name: tuple(sorted(truth.ports.get(name, ()))) for name in asked}
        injection = inject(replace(inputs, options=replace(inputs.options, ports=told)))
        return _outcome(injection, tuple(inputs.config["services"]), asked, perf_counter() - begin)
    return _outcome(injection, tuple(inputs.config["services"]), (), perf_counter() - begin)


def _outcome(injection: Injection, services: tuple[str, ...], asked: tuple[str, ...], seconds: float) -> Outcome:
    mesh = parse_mesh(injection.files[MESH_FILE], MESH_FILE)
    inside = injection.services
    return Outcome(
        allowed=frozenset(
            (caller, callee, port)
            for caller in inside
            for callee in inside
            if caller != callee and not injection.topology.is_plaintext(caller, callee)
            for name, port in mesh.services[callee].ports.items()
            if decide(mesh, mesh.identity(caller), callee, name, bed.NOW).allowed
        ),
        outside=frozenset(
            (one, other)
            for one in services
            for other in services
            if not {one, other} <= set(inside) or injection.topology.is_plaintext(one, other)
        ),
        listeners={name: frozenset(mesh.services[name].ports.values()) for name in inside},
        notes=injection.warnings,
        asked=asked,
        seconds=seconds,
    )


def report(directory: Path) -> Iterator[str]:
    """A line an application, with what was missed and what is wrong below it, and the sums. Every truth is parsed first."""
    applications = [Application(path.parent.name, directory) for path in sorted(directory.glob("*/compose.yaml"))]
    outcomes = []
    for application, truth in [(it, it.truth()) for it in applications]:
        outcome = run(application, truth)
        it = score(truth, outcome)
        outcomes.append((truth, outcome, it))
        told = outcome.failed or (f"asked for {', '.join(outcome.asked)}" if outcome.asked else "")
        yield f"{application.name:20} {_figures([(truth, outcome, it)])}  {told}".rstrip()
        yield from (f"    missed  {text}{' (no listener)' * (edge in it.dead)}" for text, edge in _sorted(it.missed))
        yield from (f"    outside {text}" for text, _ in _sorted(it.outside))
        yield from (f"    wrong   {text}" for text, _ in _sorted(it.wrong))
        yield from (f"    untrue  no port known: {name}" for name in it.untrue)
    yield f"{'in all':20} {_figures(outcomes)}"
    yield from _sums(outcomes)


def _figures(outcomes: list[tuple[Truth, Outcome, Score]]) -> str:
    found, missed, outside, wrong = (
        sum(len(getattr(it, kind)) for *_, it in outcomes) for kind in ("found", "missed", "outside", "wrong")
    )
    notes = sum(len(outcome.notes) for _, outcome, _ in outcomes)
    seconds = sum(outcome.seconds for _, outcome, _ in outcomes)
    return f"edges {found:3} of {found + missed:3}  wrong {wrong:2}  outside {outside:2}  notes {notes:3}  {seconds:5.2f} s"


def _sums(outcomes: list[tuple[Truth, Outcome, Score]]) -> Iterator[str]:
    """The bars: of edges, of files without a flag, of questions and notes at the median, of lines that are wrong."""
    number = len(outcomes)
    found = sum(len(it.found) for *_, it in outcomes)
    visible = found + sum(len(it.missed) for *_, it in outcomes)
    services = sum(len(truth.ports) + len(truth.workers) for truth, *_ in outcomes)
    smooth = sum(not (outcome.failed or outcome.asked) for _, outcome, _ in outcomes)
    yield f"visible edges      {found} of {visible} ({found / max(visible, 1):.1%})"
    yield f"wrong edges        {sum(len(it.wrong) for *_, it in outcomes)}"
    yield f"dead, unlogged     {sum(len(it.dead) for *_, it in outcomes)}"
    yield f"without a flag     {smooth} of {number} files"
    yield f"questions          {sum(len(outcome.asked) for _, outcome, _ in outcomes) / max(number, 1):.2f} a file"
    yield f"notes              {_median([len(outcome.notes) for _, outcome, _ in outcomes])} a file, at the median"
    yield f"no port known      wrong for {sum(len(it.untrue) for *_, it in outcomes)} of {services} services"
    yield f"seconds            {_median([outcome.seconds for _, outcome, _ in outcomes]):.2f} at the median, without Compose"


def _median(numbers: list[float] | list[int]) -> float:
    return sorted(numbers)[len(numbers) // 2] if numbers else 0


def _sorted(edges: frozenset[Edge]) -> list[tuple[str, Edge]]:
    return sorted((f"{caller} -> {callee}:{port}", (caller, callee, port)) for caller, callee, port in edges)


if __name__ == "__main__":
    for line in report(Path(sys.argv[1])):
        print(line)
