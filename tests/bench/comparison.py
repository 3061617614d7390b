"""The whole comparison: set the stage, prove the conditions, weigh, then rounds of all loads, the contestants in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.bench import idle, loads, nginx
from tests.bench.contestants import HYBRID, X25519, Certificates, Command, Contestant, Missing, find_program
from tests.bench.credentials import make_certificates
from tests.bench.envoy import Envoy
from tests.bench.errors import BenchError, MissingError
from tests.bench.figures import Reading, rotated
from tests.bench.haproxy import HAProxy
from tests.bench.hello import Negotiated
from tests.bench.idle import Footprint
from tests.bench.loads import CONNECTIONS, LOADS, Load
from tests.bench.ours import Sidecar
from tests.bench.pairs import Origins, Pair, start_pair
from tests.bench.proof import Tap, prove
from tests.bench.stage import Ports, Stage, run, stage

CONTESTANTS: tuple[Contestant, ...] = (Sidecar(), Envoy(), HAProxy(), nginx.Nginx())
"""In the table's order. The first after us that takes part is whom all are compared with."""

GROUPS: Mapping[str, Sequence[Load]] = {X25519: LOADS, HYBRID: (CONNECTIONS,)}
"""What is measured with which key-exchange group: all with the one that everybody has."""

TOOLS = {"wrk": "wrk", "iperf3": "iperf3", "nginx": "nginx"}
"""Programs that nothing can be measured without, and Debian's packages of them."""

VERSION_SECONDS = 20.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """``seconds``: of each load. ``connections``: how many are held for the memory figures."""

    rounds: int
    seconds: float
    connections: int
    contestants: Sequence[Contestant]

    @property
    def about_seconds(self) -> float:
        """How long it takes, nearly all of it under load."""
        loads_a_round = sum(
            len(GROUPS[group]) for contestant in self.contestants for group in contestant.groups if group in GROUPS
        )
        return 20 + self.rounds * loads_a_round * (self.seconds + 0.3)


@dataclass(frozen=True, slots=True)
class Results:
    """All that was found. ``versions`` and ``footprints`` by contestant, ``negotiated`` by contestant and group."""

    versions: Mapping[str, str]
    tools: Mapping[str, str]
    negotiated: Mapping[tuple[str, str], Negotiated]
    footprints: Mapping[str, Footprint]
    readings: Sequence[Reading]


def missing_packages(contestants: Sequence[Contestant]) -> tuple[list[Contestant], list[Missing]]:
    """Who can take part, and what those who cannot lack. Raises :class:`MissingError` without a tool or any peer."""
    lacking = {contestant.name: contestant.missing() for contestant in contestants}
    absent = [missing for missing in lacking.values() if missing is not None]
    tools = [Missing(tool, package) for tool, package in TOOLS.items() if find_program(tool) is None]
    if tools:
        raise MissingError(
            f"not installed, and needed for any measurement: {', '.join(missing.what for missing in tools)}\n"
            f"  {install_line([*tools, *absent])}"
        )
    return [contestant for contestant in contestants if lacking[contestant.name] is None], absent


def install_line(missing: Sequence[Missing]) -> str:
    """How to get it on Debian; empty if that is not Debian's to give."""
    packages = sorted({one.package for one in missing if one.package})
    return f"on Debian: apt-get install {' '.join(packages)}" if packages else ""


@dataclass(frozen=True, slots=True)
class _Ground:
    """What every pair stands on. ``home`` gets a directory for each."""

    home: Path
    origins: Origins
    certificates: Certificates
    ports: Ports


async def compare(settings: Settings, directory: Path, say: Say) -> Results:
    """Raises :class:`BenchError` if anything went wrong that could make a figure a wrong one."""
    idle.allow_descriptors(settings.connections)
    versions, tools = await _versions(settings.contestants), await _tool_versions()
    certificates, ports = make_certificates(directory / "certificates"), Ports()
    async with stage() as origin_stage:
        ground = _Ground(directory, await _start_origins(origin_stage, directory, ports), certificates, ports)
        say("checking on the wire that everybody keeps the conditions")
        negotiated = await _prove_all(settings, ground)
        async with stage() as pair_stage:
            pairs = await _start_pairs(pair_stage, settings, X25519, ground)
            say(f"memory, alone and with {settings.connections} connections")
            footprints = {pair.contestant.name: await idle.weigh(pair, settings.connections) for pair in pairs}
            # Only now: what several processes of one make share would make each look smaller.
            pairs += await _start_pairs(pair_stage, settings, HYBRID, ground)
            readings = [
                reading for number in range(settings.rounds) for reading in await _round(number, settings, pairs, say)
            ]
            if faults := [fault for pair in pairs for fault in pair.faults()]:
                raise BenchError("the access logs tell of faults:\n" + "\n".join(faults))
    return Results(versions, tools, negotiated, footprints, readings)


async def _start_pairs(where: Stage, settings: Settings, group: str, ground: _Ground) -> list[Pair]:
    return [
        await _start_pair(where, contestant, group, ground)
        for contestant in settings.contestants
        if group in contestant.groups
    ]


async def _start_pair(
    where: Stage, contestant: Contestant, group: str, ground: _Ground, *, tap: int | None = None
) -> Pair:
    home = ground.home / ("measured" if tap is None else "proof") / contestant.name / group
    return await start_pair(where, contestant, group, home, ground.origins, ground.certificates, ground.ports, tap=tap)


async def _round(number: int, settings: Settings, pairs: Sequence[Pair], say: Say) -> list[Reading]:
    readings = []
    for group, its_loads in GROUPS.items():
        contestants = rotated([pair for pair in pairs if pair.group == group], number)
        for load in its_loads:
            say(f"round {number + 1} of {settings.rounds}: {load.title}, {group}")
            for pair in contestants:
                try:
                    readings.append(await loads.measure(load, pair, number, settings.seconds))
                except BenchError as error:
                    raise BenchError(f"{pair.label}, {load.title}: {error}") from error
    return readings


async def _prove_all(settings: Settings, ground: _Ground) -> dict[tuple[str, str], Negotiated]:
    negotiated = {}
    for contestant in settings.contestants:
        for group in contestant.groups:
            tap, port = Tap(), ground.ports.take()
            async with stage() as proof_stage, trio.open_nursery() as nursery:
                await nursery.start(tap.serve, port)
                pair = await _start_pair(proof_stage, contestant, group, ground, tap=port)
                negotiated[contestant.name, group] = await prove(pair, tap, ground.certificates)
                nursery.cancel_scope.cancel()
    return negotiated


async def _start_origins(where: Stage, directory: Path, ports: Ports) -> Origins:
    origins = Origins(ports.take(), ports.take())
    home = directory / "origin"
    home.mkdir()
    await where.start("the origin (nginx)", nginx.origin(home, origins.http), home, [origins.http])
    home = directory / "iperf3"
    home.mkdir()
    server = Command(("iperf3", "--server", "--bind", "127.0.0.1", "--port", str(origins.bulk)))
    await where.start("the iperf3 server", server, home, [origins.bulk])
    return origins


async def _versions(contestants: Sequence[Contestant]) -> dict[str, str]:
    return {
        contestant.name: contestant.version(await run(contestant.version_command(), VERSION_SECONDS))
        for contestant in contestants
    }


async def _tool_versions() -> dict[str, str]:
    iperf3 = await run(("iperf3", "--version"), VERSION_SECONDS)
    wrk = await run(("wrk", "--version"), VERSION_SECONDS, may_fail=True)  # it tells, and ends with 1
    origin = await run((nginx.program(), "-v"), VERSION_SECONDS)
    return {
        "wrk": " ".join(wrk.split()[1:2]),
        "iperf3": " ".join(iperf3.split()[1:2]),
        "origin": origin.rpartition(":")[2].strip(),
    }
