"""One run: honest traffic alone, then the same in three identical floods with a rest after each; what was found."""

from __future__ import annotations

import gc
import itertools
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import trio

from sidecar.host.process import raise_descriptor_limit
from tests.bench.stage import Ports
from tests.siege import honest
from tests.siege.actions import ACTIONS, RESOLVER, Count, late_sidecar
from tests.siege.attackers import Field
from tests.siege.besieged import LOOPBACK, Besieged, Conditions, besieged
from tests.siege.cgroup import GREAT, SMALL, Cgroup, cgroup, inside
from tests.siege.figures import Calls, Flood, Memory, lost, percentile, stalls, times
from tests.siege.honest import Traffic
from tests.siege.kinds import KINDS
from tests.siege.processes import Process, processes
from tests.siege.verdict import TOLD, Rate, Run, Sort

PROBES = 100.0
"""A second, on a kept connection through both sidecars, and to the control process: a stall is seen to 10 ms."""
CA_PROBES, NEW, CA_NEW, HEALTH = 20.0, 10.0, 2.0, 4.0

SAMPLE_SECONDS = 0.25

MEMORY = Path("/dev/shm")
"""Where all files are. On a disk each renewal waits until what the rig writes meanwhile is written too, all logs above all:
150 ms now and then, which no stranger has caused."""
KEPT, NEWLY, CA_KEPT, RENEWALS, HEALTHZ, CONTROL = (
    "round trips", "new connections", "the CA's answers", "renewals", "health checks", "control"
)  # fmt: skip
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """``many``: strangers come from many addresses, not from the honest callers' own. ``quiet``, ``flood`` and ``rest`` are
    seconds."""

    conditions: Conditions
    kinds: Sequence[str]
    many: bool
    quiet: float
    flood: float
    rest: float
    floods: int = 3


@dataclass(slots=True)
class Attackers:
    """The processes of one run, by gang. ``heard``: how many lines of each were read."""

    processes: dict[str, Process]
    impostor: tuple[str, int]
    heard: dict[str, int]
    done: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, kind: str, done: float, seconds: float) -> None:
        self.done[kind] = self.done.get(kind, 0.0) + done
        self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds

    def rate(self, kind: str) -> float:
        """How often a second, over all floods."""
        return self.done.get(kind, 0.0) / self.seconds[kind] if self.seconds.get(kind) else 0.0


async def run(settings: Settings, say: Say) -> Run:
    """Raises :class:`InvalidError` if the rig failed; whatever the product does is a result."""
    cores = settings.conditions.cores
    _, other_core = cores
    os.sched_setaffinity(0, {other_core})
    raise_descriptor_limit()
    with tempfile.TemporaryDirectory(prefix="siege-", dir=_memory()) as name:
        directory = Path(name)
        async with (
            apart(cores, say) as group,
            processes(directory) as started,
            besieged(directory, started, settings.conditions) as mesh,
        ):
            attackers = await start_attackers(settings, mesh, group)
            return await measure(settings, mesh, attackers, say)


def _memory() -> Path | None:
    return MEMORY if MEMORY.is_dir() else None


@asynccontextmanager
async def apart(cores: tuple[int, int], say: Say) -> AsyncIterator[Cgroup | None]:
    """The attackers' cgroup, and for the block we are in that of those who are not to be held up; none where no cgroups
    can be made. All processes in them have ended with the block."""
    with ExitStack() as stack:
        try:
            measured = stack.enter_context(cgroup(f"siege-{os.getpid()}", GREAT, cores))
            attackers = stack.enter_context(cgroup(f"siege-{os.getpid()}-attackers", SMALL, cores[1:]))
            within = ExitStack()
            within.enter_context(inside(measured))
        except OSError as error:
            say(f"no cgroup can be made ({error.strerror}): what else this machine does is in the figures")
            stack.close()
            yield None
            return
        try:
            yield attackers
        finally:
            with trio.CancelScope(shield=True):
                within.close()  # we are in it ourselves
                await measured.emptied()
                await attackers.emptied()


async def start_attackers(settings: Settings, mesh: Besieged, group: Cgroup | None) -> Attackers:
    impostor = (LOOPBACK, Ports().take())
    gangs: dict[str, list[Field]] = {}
    for kind in settings.kinds:
        if (by := KINDS[kind].by) is not None:
            told = Field(
                kind, settings.many, mesh.api, (LOOPBACK, mesh.ca_port), mesh.admins,
                str(mesh.peer("job")), str(mesh.peer("old")), impostor,
            )  # fmt: skip
            gangs.setdefault(by, []).append(told)
    started: dict[str, Process] = {}
    for gang, fields in gangs.items():
        process = await mesh.processes.start(f"attackers-{gang}", [sys.executable, "-m", "tests.siege.attackers"])
        if group is not None:
            group.add(process.process.pid)
        await process.tell(json.dumps([asdict(one) for one in fields]))
        started[gang] = process
    for process in started.values():
        await process.line(lambda line: line.startswith('{"ready"'))
    return Attackers(started, impostor, {gang: len(process.lines) for gang, process in started.items()})


# -- measuring ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Watched:
    """Memory of the product's processes: sampled in each flood, and at rest."""

    before: dict[str, int] = field(default_factory=dict)
    heights: list[dict[str, int]] = field(default_factory=list)
    after: list[dict[str, int]] = field(default_factory=list)

    def of(self, name: str) -> Memory:
        floods = [Flood(high[name], rest[name]) for high, rest in zip(self.heights, self.after, strict=True)]
        return Memory(self.before[name], floods)


async def measure(settings: Settings, mesh: Besieged, attackers: Attackers, say: Say) -> Run:
    traffic, watched, spans = Traffic(), Watched(), []
    gc.collect()
    gc.freeze()  # or a collection of all that was imported would hold us up for 100 ms, in the middle of a flood
    async with trio.open_nursery() as nursery:
        for task in honest_tasks(traffic, mesh):
            nursery.start_soon(task)
        await trio.sleep(0.5)  # so that the quiet part begins with open connections
        say(f"honest traffic alone: {settings.quiet:g} s")
        quiet = await quietly(settings, mesh, traffic)
        watched.before = memory_of(mesh)
        for number in range(settings.floods):
            say(f"flood {number + 1} of {settings.floods}: {settings.flood:g} s, and {settings.rest:g} s of rest")
            watched.heights.append({})
            spans.append(await one_flood(settings, mesh, attackers, traffic, watched.heights[-1]))
            await trio.sleep(settings.rest)
            watched.after.append(memory_of(mesh))
        await trio.sleep(max(0.0, honest.DEADLINE - settings.rest) + 0.2)  # what is late by then is lost
        nursery.cancel_scope.cancel()
    unended = [process.name for process in mesh.product if not await process.end()]
    return summary(settings, traffic, watched, quiet, spans, attackers, unended)


def honest_tasks(traffic: Traffic, mesh: Besieged) -> list[Callable[[], Awaitable[None]]]:
    admins = itertools.cycle(mesh.admins)

    async def checked() -> None:
        await honest.healthz(next(admins))

    return [
        traffic.probe(CONTROL, mesh.control, PROBES),
        traffic.probe(KEPT, mesh.entry, PROBES),
        traffic.calls(NEWLY, NEW, partial(honest.ask_anew, mesh.entry)),
        traffic.calls(CA_KEPT, CA_PROBES, partial(honest.ask_ca, mesh.prober.client)),
        traffic.calls(RENEWALS, CA_NEW, partial(honest.renew, partial(mesh.site.caller, "probe"), mesh.keeper)),
        traffic.calls(HEALTHZ, HEALTH, checked),
    ]


async def quietly(settings: Settings, mesh: Besieged, traffic: Traffic) -> tuple[float, float]:
    """When the time without strangers began and ended."""
    async with AsyncExitStack() as stack:
        if RESOLVER in settings.kinds:
            await stack.enter_async_context(late_sidecar(mesh, traffic, resolved=True))
        began = trio.current_time()
        await trio.sleep(settings.quiet)
        return began, trio.current_time()


async def one_flood(
    settings: Settings, mesh: Besieged, attackers: Attackers, traffic: Traffic, heights: dict[str, int]
) -> tuple[float, float]:
    """All kinds at once; what they did is added to ``attackers``. Returns when it began and when it ended."""
    counts = {kind: Count() for kind in settings.kinds if kind in ACTIONS}
    async with AsyncExitStack() as stack:
        if RESOLVER in settings.kinds:
            counts[RESOLVER] = await stack.enter_async_context(late_sidecar(mesh, traffic, resolved=False))
        if "ca-impostor" in settings.kinds:
            mesh.wire.turn(attackers.impostor)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sample, mesh, heights)
            for kind in counts.keys() & ACTIONS.keys():
                nursery.start_soon(ACTIONS[kind], counts[kind], mesh, traffic)
            for process in attackers.processes.values():
                await process.tell("go")
            await trio.sleep_until(began + settings.flood)
            for process in attackers.processes.values():
                await process.tell("stop")
            nursery.cancel_scope.cancel()
        mesh.wire.turn((LOOPBACK, mesh.ca_port))
        ended = trio.current_time()
    for kind, count in counts.items():
        attackers.add(kind, count.done, ended - began)
    for gang, process in attackers.processes.items():
        told = json.loads(await process.line(lambda line: line.startswith('{"done"'), attackers.heard[gang]))
        attackers.heard[gang] = len(process.lines)
        for kind, done in told["done"].items():
            attackers.add(kind, done, told["seconds"])
    return began, ended


async def sample(mesh: Besieged, heights: dict[str, int]) -> None:
    while True:
        for name, size in memory_of(mesh).items():
            heights[name] = max(heights.get(name, 0), size)
        await trio.sleep(SAMPLE_SECONDS)


def memory_of(mesh: Besieged) -> dict[str, int]:
    """By process; 0 for one that has died, which is told elsewhere."""
    return {process.name: process.memory() for process in mesh.product}


# -- what was found ----------------------------------------------------------------------------------------------------


def summary(
    settings: Settings,
    traffic: Traffic,
    watched: Watched,
    quiet: tuple[float, float],
    spans: Sequence[tuple[float, float]],
    attackers: Attackers,
    unended: Sequence[str],
) -> Run:
    control = traffic.sorts.pop(CONTROL)
    return Run(
        sorts={name: sort_of(settings, calls, quiet, spans) for name, calls in traffic.sorts.items()},
        stalls={name: stalls_of(settings, traffic.sorts[name], control, spans) for name in (KEPT, CA_KEPT)},
        memory={name: watched.of(name) for name in watched.before},
        rates={kind: Rate(attackers.rate(kind), KINDS[kind].least) for kind in settings.kinds},
        unended=unended,
        control=sort_of(settings, control, quiet, spans),
    )


def sort_of(settings: Settings, calls: Calls, quiet: tuple[float, float], spans: Sequence[tuple[float, float]]) -> Sort:
    """Percentiles of the floods alone; lost calls of their rests too, in which what they began comes to its end."""
    alone = times(calls.between(*quiet))
    flooded = [call for span in spans for call in calls.between(*span)]
    after = [call for began, ended in spans for call in calls.between(began, ended + settings.rest)]
    return Sort(
        percentile(alone, 0.5), percentile(alone, 0.99),
        percentile(times(flooded), 0.5), percentile(times(flooded), 0.99), len(after), lost(after),
    )  # fmt: skip


def stalls_of(
    settings: Settings, calls: Calls, control: Calls, spans: Sequence[tuple[float, float]]
) -> tuple[float, int]:
    """The longest, and how many are worth telling."""
    each = [
        stall.lasted
        for began, ended in spans
        for stall in stalls(
            calls.between(began, ended + settings.rest), control.between(began, ended + settings.rest), honest.DEADLINE
        )
    ]
    return max(each, default=0.0), sum(lasted >= TOLD for lasted in each)
