"""The loads that pairs are put under, one at a time, and the CPU time that the pair spends meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from tests.bench.contestants import Route
from tests.bench.figures import Reading
from tests.bench.outputs import Done, parse_iperf3, parse_wrk
from tests.bench.pairs import Pair
from tests.bench.stage import run

GRACE_SECONDS = 20.0
SETTLE_SECONDS = 0.1
"""After a load, for proxies to close what it left: that belongs to its cost."""


@dataclass(frozen=True, slots=True)
class Load:
    """One way to put a pair under load. ``unit`` is what its cost is counted by."""

    name: str
    title: str
    unit: str
    route: str
    command: Callable[[int, float], Sequence[str]]
    parse: Callable[[str], Done]


def _wrk(connections: int, *more: str) -> Callable[[int, float], Sequence[str]]:
    def command(port: int, seconds: float) -> Sequence[str]:
        options = ("-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency", *more)
        return ("wrk", *options, f"http://127.0.0.1:{port}/")

    return command


def _iperf3(*more: str) -> Callable[[int, float], Sequence[str]]:
    def command(port: int, seconds: float) -> Sequence[str]:
        return ("iperf3", "--client", "127.0.0.1", "--port", f"{port}", "--time", f"{seconds:g}", "--json", *more)

    return command


KEEPALIVE = Load(
    "keepalive", "requests over 32 kept connections (wrk)", "request", "http", _wrk(32), parse_wrk
)  # the 32 handshakes at its start are in its cost: about 1 %
CONNECTIONS = Load(
    "connections",
    "new connections, one request each, 16 at a time (wrk)",
    "connection",
    "http",
    _wrk(16, "-H", "Connection: close"),
    parse_wrk,
)
UPLOAD = Load("upload", "bulk, caller to callee (iperf3)", "GB", "bulk", _iperf3(), parse_iperf3)
DOWNLOAD = Load("download", "bulk, callee to caller (iperf3 -R)", "GB", "bulk", _iperf3("--reverse"), parse_iperf3)

LOADS = (KEEPALIVE, CONNECTIONS, UPLOAD, DOWNLOAD)


async def measure(load: Load, pair: Pair, number: int, seconds: float) -> Reading:
    """One reading. Raises :class:`BenchError` if anything at all went wrong with the load, or a proxy died."""
    port = _route(pair, load).entrance
    before = pair.cpu_seconds()
    done = load.parse(await run(load.command(port, seconds), seconds + GRACE_SECONDS))
    await trio.sleep(SETTLE_SECONDS)
    after = pair.cpu_seconds()
    caller, callee = after[0] - before[0], after[1] - before[1]
    return Reading(load.name, pair.contestant.name, pair.group, number, caller, callee, done)


def _route(pair: Pair, load: Load) -> Route:
    return next(route for route in pair.routes if route.name == load.route)
