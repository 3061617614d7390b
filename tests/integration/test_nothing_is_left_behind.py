"""A thousand connections, good and bad ones, and the process is as before: descriptors, tasks, relay, objects."""

from __future__ import annotations

import gc
import resource
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from OpenSSL import SSL
from trio.testing import wait_all_tasks_blocked

from sidecar.documents.address import Address
from sidecar.observe.record import ConnectionRecord
from sidecar.relay.duplex import Duplex
from sidecar.transport import sockets
from sidecar.transport.tls import TlsChannel
from tests.beds.mesh import Foreigner, MeshBed, RunningSidecar, connect, mesh_bed, receive_all
from tests.beds.patience import PATIENCE

WAVES, WAVE = 10, 100
DESCRIPTORS = Path("/proc/self/fd")


@pytest.fixture(autouse=True)
def _many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def good(entry: Address) -> None:
    with await connect(entry) as client:
        await sockets.send_all(client, b"ping" * 1000)
        client.shutdown(socket.SHUT_WR)
        assert await receive_all(client) == b"ping" * 1000


async def reset(entry: Address) -> None:
    client = await connect(entry)
    await sockets.send_all(client, b"ping")
    assert await sockets.receive(client, 4) == b"ping"
    sockets.hard_close(client)


async def stranger(api: RunningSidecar) -> None:
    with await connect(api.address("http")) as sock:
        caller = Foreigner(sock, None)
        await caller.handshake()
        with pytest.raises(SSL.Error):
            await caller.receive()


async def plaintext(api: RunningSidecar) -> None:
    with await connect(api.address("http")) as sock:
        await sockets.send_all(sock, b"GET / HTTP/1.1\r\n\r\n")
        assert await receive_all(sock) == b""


async def wave(bed: MeshBed, web: RunningSidecar, api: RunningSidecar, entry: Address) -> None:
    expected = api.node.metrics.ended.total() + WAVE
    async with trio.open_nursery() as nursery:
        for number in range(WAVE):
            match number % 10:
                case 0:
                    nursery.start_soon(reset, entry)
                case 1:
                    nursery.start_soon(stranger, api)
                case 2:
                    nursery.start_soon(plaintext, api)
                case _:
                    nursery.start_soon(good, entry)
    # Not by the lines of the log: those of strangers are folded.
    await ended(api, expected)
    await ended(web, expected // 10 * 8)
    for sidecar in (web, api):
        sidecar.node.registry.end_idle()


async def ended(sidecar: RunningSidecar, number: int) -> None:
    with trio.fail_after(PATIENCE):
        while sidecar.node.metrics.ended.total() < number:  # noqa: ASYNC110  # there is no event for a count
            await trio.sleep(0.01)


LIVE = (Duplex, TlsChannel, ConnectionRecord, SSL.Connection, socket.socket)
"""What a connection is made of; none of it may outlive it."""


def footprint() -> dict[str, int]:
    gc.collect()
    objects = Counter(type(one).__name__ for one in gc.get_objects() if isinstance(one, LIVE))
    statistics = trio.lowlevel.current_statistics()
    return {
        "descriptors": len(list(DESCRIPTORS.iterdir())) if DESCRIPTORS.is_dir() else 0,
        "tasks": statistics.tasks_living,
        **{name: objects[name] for name in ("Duplex", "Endpoint", "ConnectionRecord", "Connection", "socket")},
    }


def objects() -> int:
    """All objects, without those that trio keeps of deadlines that are over, up to 1,000: a scope, and a tuple with it."""
    every = Counter(map(type, gc.get_objects()))
    return every.total() - 2 * every[trio.CancelScope]


async def settled() -> dict[str, int]:
    await wait_all_tasks_blocked(0.05)
    return footprint()


async def test_a_thousand_connections_leave_nothing_behind() -> None:
    async with mesh_bed() as bed:
        web, api, entry = await bed.pair()
        await wave(bed, web, api, entry)  # what is made once is made now
        before = await settled()
        objects_before = objects()
        for _ in range(WAVES):
            await wave(bed, web, api, entry)
        after = await settled()
        # What the lines of the log themselves hold is not the sidecar's.
        for sidecar in (web, api):
            assert not [key for key in sidecar.node.metrics.ended if "internal_error" in key]
            sidecar.log.lines.clear()
        gc.collect()
        assert (after.pop("descriptors"), after.pop("tasks")) == (before.pop("descriptors"), before.pop("tasks"))
        # Each of the two relays may remember the link that its sweeper looked at last: two sockets, one of the rest.
        assert {name for name in after if after[name] - before[name] > (4 if name == "socket" else 2)} == set()
        assert objects() - objects_before < 500
        for sidecar in (web, api):
            relay = sidecar.node.relay
            assert (len(relay._links), len(relay._queue)) == (0, 0)
        await good(entry)
