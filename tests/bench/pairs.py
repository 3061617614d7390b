"""A running pair: one contestant's two proxies, for one key-exchange group, in one mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.bench.contestants import Certificates, Contestant, Mode, Route, Side
from tests.bench.errors import BenchError
from tests.bench.procfs import Memory, ProcessTree
from tests.bench.stage import Ports, Program, Stage

ANSWER_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Pair:
    """Two proxies that listen, and answered once; so all their processes are there."""

    contestant: Contestant
    group: str
    mode: Mode
    routes: Sequence[Route]
    programs: tuple[Program, Program]
    trees: tuple[ProcessTree, ProcessTree]

    @property
    def label(self) -> str:
        return f"{self.contestant.name} ({self.group}, {self.mode})"

    @property
    def http(self) -> Route:
        return self.routes[0]

    def cpu_seconds(self) -> tuple[float, float]:
        """Of the caller's proxy and the callee's, so far."""
        return self.trees[0].cpu_seconds(), self.trees[1].cpu_seconds()

    def memory(self) -> tuple[Memory, Memory]:
        return self.trees[0].memory(), self.trees[1].memory()

    def faults(self) -> list[str]:
        """What the two logs say went wrong."""
        return [
            f"{self.label}, {program.log.parent.name}: {fault}"
            for program in self.programs
            for fault in self.contestant.faults(program.log.read_text(errors="replace"), self.group, self.mode)
        ]


async def start_pair(
    stage: Stage,
    contestant: Contestant,
    group: str,
    mode: Mode,
    directory: Path,
    origins: Mapping[str, int],
    certificates: Certificates,
    ports: Ports,
    *,
    tap: int | None = None,
) -> Pair:
    """Starts both proxies, with a route to each of the origins: ports by name, ``http`` first. With ``tap``, the caller's
    HTTP route leads there instead of to the callee's proxy."""
    between = {name: ports.take() for name in origins}
    routes = tuple(
        Route(name, ports.take(), (name == "http" and tap) or between[name], between[name], origin)
        for name, origin in origins.items()
    )
    entrances: dict[Side, Callable[[Route], int]] = {
        "callee": lambda route: route.between,
        "caller": lambda route: route.entrance,
    }
    programs = {}
    for side, entrance in entrances.items():
        home = directory / side
        home.mkdir(parents=True)
        command = contestant.prepare(home, side, routes, certificates, group, mode)
        name = f"{contestant.name} ({group}, {mode}), the {side}'s"
        programs[side] = await stage.start(name, command, home, [entrance(route) for route in routes])
    both = programs["caller"], programs["callee"]
    if tap is None:
        await get(routes[0].entrance)
    return Pair(contestant, group, mode, routes, both, (both[0].tree(), both[1].tree()))


async def get(port: int) -> bytes:
    """Asks once for the origin's page, and returns all that came. Raises :class:`BenchError` if no success is among it."""
    answer = await try_get(port)
    if not is_success(answer):
        raise BenchError(f"a request to port {port} was answered with {answer[:200]!r}")
    return answer


async def try_get(port: int) -> bytes:
    """The same, whatever comes; nothing from whoever resets, or stays silent."""
    answer = b""
    with trio.move_on_after(ANSWER_SECONDS):
        try:
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(request(close=True))
                async for data in stream:
                    answer += data
        except (OSError, trio.BrokenResourceError):
            return answer
    return answer


def request(*, close: bool) -> bytes:
    return b"GET / HTTP/1.1\r\nHost: origin\r\n" + (b"Connection: close\r\n" if close else b"") + b"\r\n"


def is_success(answer: bytes) -> bool:
    return answer.startswith(b"HTTP/1.1 200 ")
