"""The whole comparison: set the stage, prove the conditions, weigh, then rounds of all loads, the contestants in turn."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.bench import apps, idle, loads, nginx
from tests.bench.contestants import MODES, Certificates, Command, Contestant, Missing, Mode, find_program
from tests.bench.credentials import make_certificates
from tests.bench.envoy import Envoy
from tests.bench.errors import BenchError, MissingError
from tests.bench.figures import Reading, rotated
from tests.bench.haproxy import HAProxy
from tests.bench.idle import Footprint
from tests.bench.loads import LOADS, TOOLS, Load
from tests.bench.ours import Sidecar
from tests.bench.pairs import Pair, start_pair
from tests.bench.proof import Proof, Tap, prove
from tests.bench.roots import Python, Root
from tests.bench.stage import Ports, Stage, run, stage

IMAGE, OLDEST = Python("3.14", "sid"), Python("3.11", "bookworm")
"""The Python of our image, and the oldest that is supported, with the Debian suites that have them."""

TODAY = Root("trixie", ("haproxy", "nginx-light", "libnginx-mod-stream"))
"""From where the peers are, unless this machine's own are asked for."""


def contestants(peers: Root | None = TODAY) -> tuple[Contestant, ...]:
    """In the table's order. The first after us that takes part is whom all are compared with."""
    ours = Sidecar("sidecar", IMAGE), Sidecar("sidecar-oldest", OLDEST)
    return (ours[0], Envoy(), Envoy(sessions=64), HAProxy(peers), nginx.Nginx(peers), ours[1])


VERSION_SECONDS = 20.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """``seconds``: of each load. ``connections``: how many are held for the memory figures. ``group``: of all contestants
    that have it."""

    rounds: int
    seconds: float
    connections: int
    group: str
    parts: Collection[str]
    contestants: Sequence[Contestant]

    @property
    def loads(self) -> list[Load]:
        return [load for load in LOADS if load.part in self.parts]

    def group_of(self, contestant: Contestant) -> str:
        return self.group if self.group in contestant.groups else contestant.groups[-1]

    def has_part(self, contestant: Contestant, mode: Mode) -> bool:
        """Whether a pair in that mode is measured under load."""
        return any(load.mode == mode and load.part in contestant.parts for load in self.loads)

    def modes_of(self, contestant: Contestant) -> list[Mode]:
        """In which it is measured at all."""
        weighed = "memory" in self.parts and "memory" in contestant.parts
        return [mode for mode in MODES if self.has_part(contestant, mode) or (mode == "run" and weighed)]

    @property
    def about_seconds(self) -> float:
        """How long it takes, most of it under load."""
        loads_a_round = sum(load.part in one.parts for load in self.loads for one in self.contestants)
        proofs = sum(len(self.modes_of(one)) for one in self.contestants)
        weighed = sum("memory" in self.parts and "memory" in one.parts for one in self.contestants)
        return 5 + 3 * proofs + weighed * (8 + idle.BURST_SECONDS) + self.rounds * loads_a_round * (self.seconds + 0.5)


@dataclass(frozen=True, slots=True)
class Results:
    """All that was found. ``versions`` and ``footprints`` by contestant, ``proofs`` by contestant and mode."""

    versions: Mapping[str, str]
    tools: Mapping[str, str]
    proofs: Mapping[tuple[str, Mode], Proof]
    footprints: Mapping[str, Footprint]
    readings: Sequence[Reading]


def missing_packages(
    candidates: Sequence[Contestant], parts: Collection[str]
) -> tuple[list[Contestant], list[Missing]]:
    """Who can take part, and what those who cannot lack. Raises :class:`MissingError` without a tool for these parts."""
    tools = {tool: package for part in parts for tool, package in TOOLS[part].items()} | {"nginx": "nginx"}
    absent = [Missing(tool, package) for tool, package in sorted(tools.items()) if find_program(tool) is None]
    if absent:
        raise MissingError(
            f"not installed, and needed for {', '.join(sorted(parts))}: {', '.join(missing.what for missing in absent)}\n"
            f"  {install_line(absent)}; or choose with --parts"
        )
    lacking = {contestant.name: contestant.missing() for contestant in candidates}
    left_out = list(dict.fromkeys(missing for missing in lacking.values() if missing is not None))
    return [contestant for contestant in candidates if lacking[contestant.name] is None], left_out


def install_line(missing: Sequence[Missing]) -> str:
    """How to get it on Debian; empty if that is not Debian's to give."""
    packages = sorted({one.package for one in missing if one.package})
    return f"on Debian: apt-get install {' '.join(packages)}" if packages else ""


@dataclass(frozen=True, slots=True)
class _Ground:
    """What every pair stands on. ``home`` gets a directory for each."""

    home: Path
    origins: Mapping[str, int]
    certificates: Certificates
    ports: Ports

    async def start(
        self, where: Stage, use: str, one: Contestant, group: str, mode: Mode, tap: int | None = None
    ) -> Pair:
        home = self.home / use / one.name / mode
        return await start_pair(where, one, group, mode, home, self.origins, self.certificates, self.ports, tap=tap)


async def compare(settings: Settings, directory: Path, say: Say) -> Results:
    """Raises :class:`BenchError` if anything went wrong that could make a figure a wrong one."""
    idle.allow_descriptors(settings.connections)
    versions, tools = await _versions(settings.contestants), await _tool_versions(settings.parts)
    certificates, ports = make_certificates(directory / "certificates"), Ports()
    async with stage() as origin_stage, AsyncExitStack() as databases:
        origins = await _start_origins(origin_stage, directory, ports)
        if "apps" in settings.parts:
            origins["redis"] = await apps.start_redis(origin_stage, directory, ports)
            origins["postgresql"] = await databases.enter_async_context(apps.postgresql())
        ground = _Ground(directory, origins, certificates, ports)
        say("checking on the wire that everybody keeps the conditions")
        proofs = await _prove_all(settings, ground)
        footprints = await _weigh_all(settings, ground, say) if "memory" in settings.parts else {}
        async with stage() as pair_stage:
            pairs = [
                await ground.start(pair_stage, "measured", one, settings.group_of(one), mode)
                for one in settings.contestants
                for mode in MODES
                if settings.has_part(one, mode)
            ]
            readings = [
                reading for number in range(settings.rounds) for reading in await _round(number, settings, pairs, say)
            ]
            _check(pairs)
    return Results(versions, tools, proofs, footprints, readings)


async def _weigh_all(settings: Settings, ground: _Ground, say: Say) -> dict[str, Footprint]:
    """One after the other: what several processes of one make share would make each look smaller."""
    say(f"memory: alone, with {settings.connections} connections, after a burst")
    footprints = {}
    for one in settings.contestants:
        if "memory" in one.parts:
            async with stage() as scales:
                pair = await ground.start(scales, "weighed", one, settings.group_of(one), "run")
                footprints[one.name] = await idle.weigh(pair, settings.connections)
                _check([pair])
    return footprints


def _check(pairs: Sequence[Pair]) -> None:
    if faults := [fault for pair in pairs for fault in pair.faults()]:
        raise BenchError("the access logs tell of faults:\n" + "\n".join(faults))


async def _round(number: int, settings: Settings, pairs: Sequence[Pair], say: Say) -> list[Reading]:
    readings = []
    for load in settings.loads:
        say(f"round {number + 1} of {settings.rounds}: {load.title}")
        its = [pair for pair in pairs if pair.mode == load.mode and load.part in pair.contestant.parts]
        for pair in rotated(its, number):
            try:
                readings.append(await loads.measure(load, pair, number, settings.seconds))
            except BenchError as error:
                raise BenchError(f"{pair.label}, {load.title}: {error}") from error
    return readings


async def _prove_all(settings: Settings, ground: _Ground) -> dict[tuple[str, Mode], Proof]:
    proofs = {}
    for one in settings.contestants:
        for mode in settings.modes_of(one):
            tap, port = Tap(), ground.ports.take()
            async with stage() as proof_stage, trio.open_nursery() as nursery:
                await nursery.start(tap.serve, port)
                pair = await ground.start(proof_stage, "proof", one, settings.group_of(one), mode, port)
                proofs[one.name, mode] = await prove(pair, tap, ground.certificates)
                nursery.cancel_scope.cancel()
    return proofs


async def _start_origins(where: Stage, directory: Path, ports: Ports) -> dict[str, int]:
    origins = {"http": ports.take()}
    home = directory / "origin"
    home.mkdir()
    await where.start("the origin (nginx)", nginx.origin(home, origins["http"]), home, [origins["http"]])
    if find_program("iperf3"):
        origins["bulk"] = ports.take()
        home = directory / "iperf3"
        home.mkdir()
        server = Command(("iperf3", "--server", "--bind", "127.0.0.1", "--port", str(origins["bulk"])))
        await where.start("the iperf3 server", server, home, [origins["bulk"]])
    return origins


async def _versions(contestants: Sequence[Contestant]) -> dict[str, str]:
    return {
        contestant.name: contestant.version(await run(contestant.version_command(), VERSION_SECONDS))
        for contestant in contestants
    }


async def _tool_versions(parts: Collection[str]) -> dict[str, str]:
    """Of what makes the load, and of the origin."""
    versions = {"origin": (await run((nginx.program(), "-v"), VERSION_SECONDS)).rpartition(":")[2].strip()}
    for tool in ("wrk", "iperf3", "h2load", "redis-benchmark", "pgbench"):
        if any(tool in TOOLS[part] for part in parts):
            printed = await run((find_program(tool) or tool, "--version"), VERSION_SECONDS, may_fail=True)
            versions[tool] = printed.partition("\n")[0].strip()  # wrk tells, and ends with 1
    return versions
