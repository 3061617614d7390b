"""The loads that pairs are put under, one at a time, and the CPU time that the pair spends meanwhile."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from tests.bench.contestants import MODES, Mode, Route
from tests.bench.errors import BenchError
from tests.bench.figures import Reading
from tests.bench.machine import Taken
from tests.bench.outputs import Done, parse_h2load, parse_iperf3, parse_pgbench, parse_redis, parse_wrk
from tests.bench.pairs import ANSWER_SECONDS, Pair, request
from tests.bench.stage import run

GRACE_SECONDS = 20.0
SETTLE_SECONDS = 0.1
"""After a load, for proxies to close what it left: that belongs to its cost."""


@dataclass(frozen=True, slots=True)
class Load:
    """One way to put a pair under load. ``unit`` is what its cost is counted by, ``short`` how overviews name it;
    so many connections as ``warm`` says are made and ended before it begins, so that what proxies keep of them is there;
    ``rate`` is what it offers a second if that is fixed, so that latency is what it is about."""

    name: str
    short: str
    title: str
    part: str
    unit: str
    route: str
    command: Callable[[int, float], Sequence[str]]
    parse: Callable[[str, float], Done]
    mode: Mode = "run"
    rate: int | None = None
    warm: int = 0


def _wrk(connections: int, *more: str) -> Callable[[int, float], Sequence[str]]:
    def command(port: int, seconds: float) -> Sequence[str]:
        options = ("-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout=10s", "--latency", *more)
        return ("wrk", *options, f"http://127.0.0.1:{port}/")

    return command


def _iperf3(*more: str) -> Callable[[int, float], Sequence[str]]:
    def command(port: int, seconds: float) -> Sequence[str]:
        return ("iperf3", "--client", "127.0.0.1", "--port", f"{port}", "--time", f"{seconds:g}", "--json", *more)

    return command


def _new_connections(mode: Mode, at_once: int) -> Load:
    """What is under way when wrk's time is over costs, and is not counted: with 64 at a time that is about 5 % of our cold
    connections in two seconds, 2 % in five."""
    how, part = ("as each is run", "connections") if mode == "run" else ("full handshakes", "cold")
    return Load(
        f"{part}-{at_once}",
        f"new connection, {how}, {at_once} at a time",
        f"new connections, {how}, one request each, {at_once} at a time (wrk)",
        part,
        "connection",
        "http",
        _wrk(at_once, "-H", "Connection: close"),
        lambda text, _: parse_wrk(text),
        mode,
        warm=at_once if mode == "run" else 0,
    )


def _latency(rate: int) -> Load:
    def command(port: int, seconds: float) -> Sequence[str]:
        options = (
            "--h1",
            "--threads=1",
            f"--clients={CLIENTS}",
            f"--rps={rate / CLIENTS:g}",
            f"--duration={seconds:g}",
        )
        return ("h2load", *options, "--log-file=/dev/stdout", f"http://127.0.0.1:{port}/")

    return Load(
        f"latency-{rate}",
        f"p99 at {rate:,} requests/s",
        f"{rate:,} requests a second over {CLIENTS} kept connections (h2load)",
        "latency",
        "request",
        "http",
        command,
        lambda text, _: parse_h2load(text),
        rate=rate,
    )


def _redis(kept: bool, a_second: int) -> Load:
    """It takes a number of requests, not a time."""

    def command(port: int, seconds: float) -> Sequence[str]:
        options = ("-c", "16", "-n", f"{a_second * seconds:.0f}", "-k", f"{kept:d}", "-t", "get", "--csv")
        return ("redis-benchmark", "-h", "127.0.0.1", "-p", f"{port}", *options)

    how = "kept connections" if kept else "a connection a request"
    return Load(
        f"redis-{'kept' if kept else 'fresh'}",
        f"Redis, {how}",
        f"Redis, {how}, 16 at a time (redis-benchmark -k {kept:d})",
        "apps",
        "request",
        "redis",
        command,
        lambda text, seconds: parse_redis(text, round(a_second * seconds)),
        warm=0 if kept else 16,
    )


def _pgbench(port: int, seconds: float) -> Sequence[str]:
    options = ("--connect", "--select-only", "--no-vacuum", "--client=8", f"--time={math.ceil(seconds)}")
    return ("pgbench", *options, "-h", "127.0.0.1", "-p", f"{port}", "-U", "tester", "postgres")


CLIENTS = 16
"""Each sends at its own steps, all of them together: so many requests arrive at once."""

KEEPALIVE = Load(
    "keepalive",
    "request",
    "requests over 32 kept connections (wrk)",
    "requests",
    "request",
    "http",
    _wrk(32),
    lambda text, _: parse_wrk(text),
)  # the 32 handshakes at its start are in its cost: about 1 %
UPLOAD = Load(
    "upload",
    "bulk, caller to callee",
    "bulk, caller to callee (iperf3)",
    "bulk",
    "GB",
    "bulk",
    _iperf3(),
    lambda text, _: parse_iperf3(text),
)
DOWNLOAD = Load(
    "download",
    "bulk, callee to caller",
    "bulk, callee to caller (iperf3 -R)",
    "bulk",
    "GB",
    "bulk",
    _iperf3("--reverse"),
    lambda text, _: parse_iperf3(text),
)
POSTGRESQL = Load(
    "postgresql",
    "PostgreSQL, a connection a query",
    "PostgreSQL, a connection a query, 8 at a time (pgbench -C -S)",
    "apps",
    "query",
    "postgresql",
    _pgbench,
    lambda text, _: parse_pgbench(text),
    warm=8,
)

LOADS = (
    KEEPALIVE,
    *(_new_connections(mode, at_once) for mode in MODES for at_once in (1, 16, 64)),
    UPLOAD,
    DOWNLOAD,
    _latency(1000),
    _latency(4000),
    _redis(kept=True, a_second=10_000),
    _redis(kept=False, a_second=600),
    POSTGRESQL,
)
"""In the order of a round, and of the tables."""

BURST = _new_connections("run", 64)
"""What memory is weighed after."""

TOOLS = {
    "requests": {"wrk": "wrk"},
    "connections": {"wrk": "wrk"},
    "cold": {"wrk": "wrk"},
    "memory": {"wrk": "wrk"},
    "bulk": {"iperf3": "iperf3"},
    "latency": {"h2load": "nghttp2-client"},
    "apps": {
        "redis-server": "redis-server",
        "redis-benchmark": "redis-tools",
        "pgbench": "postgresql",
        "initdb": "postgresql",
        "postgres": "postgresql",
    },
}
"""Programs that a part needs, and Debian's packages of them."""


QUESTIONS = {
    "http": request(close=True),
    "redis": b"PING\r\n",
    "postgresql": bytes.fromhex("0000000804d2162f"),  # SSLRequest, which is answered by one byte
}
"""What each origin answers at once."""


async def _warm(load: Load, port: int) -> None:
    """All connections are there at the same time, from end to end. Raises :class:`BenchError` if one is not answered."""
    streams: list[trio.SocketStream] = []
    try:
        with trio.fail_after(ANSWER_SECONDS):
            for _ in range(load.warm):
                streams.append(await trio.open_tcp_stream("127.0.0.1", port))
                await streams[-1].send_all(QUESTIONS[load.route])
            for stream in streams:
                if not await stream.receive_some():
                    raise BenchError("a connection was ended without an answer")
    except (trio.TooSlowError, OSError, trio.BrokenResourceError) as error:
        raise BenchError(f"of {load.warm} connections at once, one was not answered: {error!r}") from error
    finally:
        for stream in streams:
            stream.socket.close()
    await trio.sleep(SETTLE_SECONDS if streams else 0)


async def measure(load: Load, pair: Pair, number: int, seconds: float) -> Reading:
    """One reading. Raises :class:`BenchError` if anything at all went wrong with the load, or a proxy died."""
    port = _route(pair, load).entrance
    await _warm(load, port)
    taken, before = Taken.now(), pair.cpu_seconds()
    done = load.parse(await run(load.command(port, seconds), seconds + GRACE_SECONDS), seconds)
    await trio.sleep(SETTLE_SECONDS)
    after, disturbed = pair.cpu_seconds(), Taken.now().disturbed_since(taken)
    caller, callee = after[0] - before[0], after[1] - before[1]
    return Reading(load.name, pair.contestant.name, pair.group, number, caller, callee, done, disturbed)


def _route(pair: Pair, load: Load) -> Route:
    return next(route for route in pair.routes if route.name == load.route)
