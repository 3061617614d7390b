"""Memory: what a pair takes when nothing happens, with many established connections on which nothing happens, and when all
of that is over."""

from __future__ import annotations

import resource
from dataclasses import dataclass

import trio

from tests.bench.errors import BenchError
from tests.bench.loads import BURST, measure
from tests.bench.pairs import Pair, is_success, request
from tests.bench.procfs import Memory

AT_ONCE = 16
OPEN_SECONDS = 60.0
BURST_SECONDS = 5.0
REST_SECONDS = 2.0
"""After the burst, for what is given back when there is time for it."""
_SPARE = 256


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory of the caller's proxy and the callee's: just started, with ``connections`` held, and after those were let go
    and a burst of new ones was over."""

    idle: tuple[Memory, Memory]
    held: tuple[Memory, Memory]
    after: tuple[Memory, Memory]
    connections: int

    def rss_per_thousand(self, side: int) -> float:
        """Bytes that a thousand connections add to one proxy."""
        return (self.held[side].rss - self.idle[side].rss) / self.connections * 1000


async def weigh(pair: Pair, connections: int) -> Footprint:
    """Each connection is asked once, so it is established from end to end; then all are held, and let go."""
    idle = pair.memory()
    streams: list[trio.SocketStream] = []
    places = trio.CapacityLimiter(AT_ONCE)
    try:
        with trio.fail_after(OPEN_SECONDS):
            async with trio.open_nursery() as nursery:
                for _ in range(connections):
                    nursery.start_soon(_open, pair, places, streams)
        held = pair.memory()
    except trio.TooSlowError as error:
        raise BenchError(
            f"{pair.label}: {len(streams)} of {connections} connections within {OPEN_SECONDS:g} s"
        ) from error
    finally:
        for stream in streams:
            stream.socket.close()
    try:
        await measure(BURST, pair, 0, BURST_SECONDS)
    except BenchError as error:
        raise BenchError(f"{pair.label}, {BURST.title}: {error}") from error
    await trio.sleep(REST_SECONDS)
    return Footprint(idle, held, pair.memory(), connections)


async def _open(pair: Pair, places: trio.CapacityLimiter, streams: list[trio.SocketStream]) -> None:
    async with places:
        stream = await trio.open_tcp_stream("127.0.0.1", pair.http.entrance)
        streams.append(stream)
        await stream.send_all(request(close=False))
        answer = await stream.receive_some()
    if not is_success(answer):
        raise BenchError(f"{pair.label}: one of many connections was answered with {answer[:100]!r}")


def allow_descriptors(connections: int) -> None:
    """Lets us and whom we start have two descriptors a connection. Raises :class:`BenchError` if the system does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + _SPARE
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise BenchError(f"{wanted} open files are needed, and the limit is {hard}: ulimit -n, or fewer --connections")
    if soft < hard or soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
