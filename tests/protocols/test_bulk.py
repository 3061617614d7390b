"""A gibibyte each way, and both ways at once: what arrives has the hash of what was sent."""

from __future__ import annotations

import hashlib
import os
import socket

import pytest
import trio

from sidecar.transport import sockets
from tests.beds.mesh import App, mesh_bed
from tests.beds.processes import DEADLINE, Shop, sidecar_pair
from tests.protocols.programs import all_ok, entered

GIB = 1 << 30
BLOCK = os.urandom(8 << 20)


async def send(sock: socket.socket, size: int) -> str:
    """Sends so many bytes, in blocks that are each unlike all others, then ends; their hash."""
    digest = hashlib.sha256()
    for number in range(size // len(BLOCK)):
        block = number.to_bytes(8, "big") + BLOCK[8:]
        digest.update(block)
        await sockets.send_all(sock, block)
    sock.shutdown(socket.SHUT_WR)
    return digest.hexdigest()


async def receive(sock: socket.socket) -> str:
    """The hash of all that comes until the clean end."""
    digest = hashlib.sha256()
    buffer = bytearray(1 << 20)
    view = memoryview(buffer)
    while True:
        try:
            size = sock.recv_into(buffer)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock)
            continue
        if not size:
            return digest.hexdigest()
        digest.update(view[:size])


@pytest.mark.parametrize(
    ("there", "back"), [(GIB, 0), (0, GIB), (GIB // 4, GIB // 4)], ids=["there", "back", "both at once"]
)
async def test_a_gibibyte(shop: Shop, there: int, back: int) -> None:
    hashes: dict[str, str] = {}
    done = trio.Event()

    async def both(name: str, sock: socket.socket, size: int) -> None:
        async def sending() -> None:
            hashes[f"sent by {name}"] = await send(sock, size)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sending)
            hashes[f"heard by {name}"] = await receive(sock)

    async def app_side(sock: socket.socket, _: App) -> None:
        await both("app", sock, back)
        done.set()

    async with mesh_bed() as bed:
        app = await bed.app(app_side)
        async with sidecar_pair(shop, str(app.address)) as (web, api):
            with await entered(web) as client, trio.fail_after(4 * DEADLINE):
                await both("client", client, there)
                await done.wait()
            assert hashes["heard by app"] == hashes["sent by client"]
            assert hashes["heard by client"] == hashes["sent by app"]
            await all_ok(web, api, connections=1)
            line = api.program.connections[0]
            assert (line["bytes_to_app"], line["bytes_from_app"]) == (there, back)
