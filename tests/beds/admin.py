"""An admin port with a status of its own making, and whoever asks it."""

from __future__ import annotations

import http.client
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from trio.testing import wait_all_tasks_blocked

from sidecar.documents.address import Address
from sidecar.observe.admin import Source
from sidecar.observe.catalogue import Numbers
from sidecar.observe.local import LocalServer
from sidecar.observe.logs import Log
from sidecar.observe.metrics import Metrics
from sidecar.observe.traffic import Edge
from tests.beds.mesh import LogSink
from tests.beds.patience import PATIENCE

NUMBERS = Numbers(
    release="0.1.0", python="3.14.0", openssl="4.0.0", started_at=1.7e9, cpu_seconds=1.5, healthy=True, draining=False,
    waiting=0, strangers=5, idle_channels=4, log_lost=3, alarms={("mitm_suspected", "alarm"): 2}, policy="0123456789ab",
    reload_refused=0, certificate_end=1.8e9,
)  # fmt: skip

WELL: dict[str, Any] = {
    "healthy": True, "unwell": [], "draining": False, "connected": [], "log": {"lost": 3}, "strangers": {"now": 5},
    "channels": {"idle": 4},
}  # fmt: skip


@asynccontextmanager
async def admin(listen: Address | Path, **status: Any) -> AsyncIterator[LocalServer]:
    metrics = Metrics()
    metrics.ended["inbound", "http", "allow", "ok"] = 3
    metrics.folded = 7
    for rule, streams, reused in (("one", 5, 5), ("another", 4, 3)):
        traffic = metrics.edges[Edge("outbound", "api", "api:http", rule)]
        traffic.streams, traffic.reused = streams, reused
    document = {**WELL, **status}
    source = Source(
        lambda: document["unwell"], lambda: document["draining"], lambda: document, lambda: NUMBERS, metrics
    )
    one = LocalServer("sidecar.yaml: admin.listen", listen, source.routes(), Log(LogSink(), "json"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        yield one
        nursery.cancel_scope.cancel()


def get(address: str, target: str, host: str | None = None, method: str = "GET") -> tuple[int, str]:
    if address.startswith("/"):
        connection = http.client.HTTPConnection("localhost", timeout=PATIENCE)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.connect(address)
    else:
        connection = http.client.HTTPConnection(address, timeout=PATIENCE)
    try:
        connection.request(method, target, headers={} if host is None else {"Host": host})
        with connection.getresponse() as answer:
            return answer.status, answer.read().decode()
    finally:
        connection.close()


async def asked(*words: Any, **more: Any) -> tuple[int, str]:
    return await trio.to_thread.run_sync(lambda: get(*words, **more))


LOOPBACK = Address("127.0.0.1", 0)


async def connected(one: LocalServer) -> socket.socket:
    """A connection that is accepted, and has asked nothing yet."""
    there = one.sockets[0]
    sock = socket.socket(there.family)
    sock.connect(there.getsockname())
    sock.setblocking(False)
    await wait_all_tasks_blocked()
    return sock
