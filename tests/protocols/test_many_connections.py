"""Five hundred connections at once: each hears its own bytes and nobody else's."""

from __future__ import annotations

import os
import socket

import trio

from sidecar.transport import sockets
from tests.beds.mesh import echo, mesh_bed
from tests.beds.processes import DEADLINE, Shop, SidecarProcess, sidecar_pair
from tests.protocols.programs import PATIENT, all_ok, entered

CONNECTIONS = 500


async def test_five_hundred_echoes_at_once(shop: Shop) -> None:
    ready = 0
    everybody = trio.Event()

    async def call(web: SidecarProcess) -> None:
        nonlocal ready
        mine = os.urandom(50_000)
        with await entered(web) as sock:
            await exchange(sock, mine[:100])  # it is through ...
            ready += 1
            if ready == CONNECTIONS:
                everybody.set()
            await everybody.wait()  # ... and so is everybody, before anybody goes on
            await exchange(sock, mine)
            sock.shutdown(socket.SHUT_WR)
            assert await sockets.receive(sock, 1) == b""

    async with mesh_bed() as bed:
        app = await bed.app(echo)
        async with sidecar_pair(shop, str(app.address), more=PATIENT) as (web, api):
            with trio.fail_after(4 * DEADLINE):
                async with trio.open_nursery() as nursery:
                    for _ in range(CONNECTIONS):
                        nursery.start_soon(call, web)
            await all_ok(web, api, connections=CONNECTIONS)
            here, there = ({line["connection_id"] for line in end.program.connections} for end in (web, api))
            assert len(here) == CONNECTIONS
            assert here == there
            assert {line["bytes_to_app"] for line in web.program.connections} == {50_100}


async def exchange(sock: socket.socket, data: bytes) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sockets.send_all, sock, data)
        heard = b""
        while len(heard) < len(data):
            more = await sockets.receive(sock, 65536)
            assert more, "closed before all came back"
            heard += more
    assert heard == data
