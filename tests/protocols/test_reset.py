"""A reset is a reset at the far end too, never a clean end; what was said before it is heard."""

from __future__ import annotations

import os
import socket

import pytest
import trio

from sidecar.transport import sockets
from tests.beds.mesh import App, mesh_bed
from tests.beds.processes import DEADLINE, Shop, sidecar_pair
from tests.protocols.programs import entered

SAID = os.urandom(20_000)


async def until_reset(sock: socket.socket) -> bytes:
    """What is heard before the reset."""
    heard = b""
    with trio.fail_after(DEADLINE):
        while True:
            try:
                more = await sockets.receive(sock, 65536)
            except ConnectionResetError:
                return heard
            if not more:
                pytest.fail(f"a clean end, after {len(heard)} bytes")
            heard += more


async def test_the_client_resets(shop: Shop) -> None:
    heard, over = b"", trio.Event()

    async def listen(sock: socket.socket, _: App) -> None:
        nonlocal heard
        await sockets.send_all(sock, b"go")
        heard = await until_reset(sock)
        over.set()

    async with mesh_bed() as bed:
        app = await bed.app(listen)
        async with sidecar_pair(shop, str(app.address)) as (web, api):
            client = await entered(web)
            assert await sockets.receive(client, 2) == b"go"
            await sockets.send_all(client, SAID)
            sockets.hard_close(client)
            with trio.fail_after(DEADLINE):
                await over.wait()
            assert heard == SAID
            assert (await web.program.connection())["reason"] == "client_reset"
            there = await api.program.connection()
            assert (there["decision"], there["bytes_to_app"]) == ("allow", len(SAID))
            assert there["reason"] == "truncated"  # all that the callee's sidecar can know


async def test_the_server_resets(shop: Shop) -> None:
    async def fail(sock: socket.socket, _: App) -> None:
        await sockets.receive(sock, 2)
        await sockets.send_all(sock, SAID)
        sockets.hard_close(sock)

    async with mesh_bed() as bed:
        app = await bed.app(fail)
        async with sidecar_pair(shop, str(app.address)) as (web, api):
            with await entered(web) as client:
                await sockets.send_all(client, b"go")
                assert await until_reset(client) == SAID
            assert (await api.program.connection())["reason"] == "app_reset"
            here = await web.program.connection()
            assert (here["decision"], here["bytes_to_app"]) == ("allow", len(SAID))
            assert here["reason"] == "truncated"


async def test_a_server_that_is_not_there_is_a_reset(shop: Shop) -> None:
    async with mesh_bed() as bed:
        app = await bed.app()
        async with sidecar_pair(shop, "127.0.0.1:9") as (web, api):
            with await entered(web) as client:
                assert await until_reset(client) == b""
            assert (await api.program.connection())["reason"] == "connect_failed"
            here = await web.program.connection()
            assert (here["reason"], here["peer_reason"]) == ("peer_refused", "connect_failed")
        assert app.connections == 0
