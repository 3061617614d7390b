"""SIGTERM and SIGINT: a process of ``sidecar run`` serves while a request is in flight, cuts the rest, ends with 0."""

from __future__ import annotations

import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from sidecar.documents.address import Address
from sidecar.transport import sockets
from tests.beds.mesh import App, connect, echo, mesh_bed, receive_all
from tests.beds.processes import DEADLINE, Shop, SidecarProcess, sidecar_pair

LONG, SHORT = "timeouts: {drain: 1h}\n", "timeouts: {drain: 1s}\n"


async def repeat(sock: socket.socket, app: App) -> None:
    """Answers when all was said."""
    while data := await sockets.receive(sock, 65536):
        app.received += data
    await sockets.send_all(sock, bytes(app.received))
    app.received.clear()
    sock.shutdown(socket.SHUT_WR)


@asynccontextmanager
async def transfer(shop: Shop, drain: str) -> AsyncIterator[tuple[SidecarProcess, SidecarProcess, socket.socket]]:
    """web, api, and a connection through both that has carried the begin of a request."""
    async with mesh_bed() as bed:
        app: App = await bed.app(repeat)
        async with sidecar_pair(shop, str(app.address), more=drain) as (web, api):
            with await connect(Address(*web.address("api:http"))) as client:
                await sockets.send_all(client, b"first")
                with trio.fail_after(DEADLINE):
                    while app.received != b"first":
                        await trio.lowlevel.checkpoint()
                app.received.clear()
                yield web, api, client


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_running_transfer_finishes_and_new_ones_are_served_until_then(shop: Shop, number: int) -> None:
    async with transfer(shop, LONG) as (web, api, client):
        for sidecar in (web, api):
            sidecar.program.signal(number)
            assert signal.Signals(number).name in (await sidecar.program.event("draining"))["message"]
        with await connect(Address(*web.address("api:http"))) as newcomer:
            await sockets.send_all(newcomer, b"new")
            newcomer.shutdown(socket.SHUT_WR)
            assert await receive_all(newcomer) == b"new"
        await sockets.send_all(client, b"last" * 100_000)  # what runs goes on, both ways, to its own end
        client.shutdown(socket.SHUT_WR)
        assert await receive_all(client) == b"last" * 100_000
        for sidecar in (web, api):
            assert await sidecar.program.ended() == 0
            assert [line["reason"] for line in sidecar.program.connections if line["bytes_to_app"]] == ["ok", "ok"]
            assert sidecar.program.said[-1]["event"] == "stopped"
            assert sidecar.program.errors == ""


async def test_an_idle_connection_holds_nothing_up(shop: Shop) -> None:
    """It may be a pool's, and last for days: half a second after its last answer it ends, never cleanly."""
    async with mesh_bed() as bed:
        app: App = await bed.app(echo)
        async with sidecar_pair(shop, str(app.address), more=LONG) as (web, _):
            with await connect(Address(*web.address("api:http"))) as client:
                await sockets.send_all(client, b"first")
                assert await sockets.receive(client, 5) == b"first"
                web.program.signal(signal.SIGTERM)
                assert await web.program.ended() == 0
                with pytest.raises(ConnectionResetError):
                    await receive_all(client)
                assert (await web.program.connection())["reason"] == "drained"


async def test_what_is_not_done_when_the_drain_time_is_over_is_cut(shop: Shop) -> None:
    async with transfer(shop, SHORT) as (web, api, client):
        web.program.signal(signal.SIGTERM)
        assert await web.program.ended() == 0
        with pytest.raises(ConnectionResetError):  # cut is not finished: never a clean end
            await receive_all(client)
        line = await web.program.connection()
        assert (line["reason"], line["decision"]) == ("drained", "allow")
        assert line["duration_ms"] >= 1000
        assert (line["bytes_from_app"], line["bytes_to_app"]) == (5, 0)
        # The other end cannot know why; it is told, and tells its app, that this was no clean end.
        assert (await api.program.connection())["reason"] == "truncated"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_cuts_at_once(shop: Shop, number: int) -> None:
    async with transfer(shop, LONG) as (web, _, client):
        web.program.signal(number)
        await web.program.event("draining")
        web.program.signal(number)
        await web.program.event("cutting")
        assert await web.program.ended() == 0
        with pytest.raises(ConnectionResetError):
            await receive_all(client)
        assert [line["reason"] for line in web.program.connections] == ["drained"]
        assert web.program.errors == ""


async def test_a_sidecar_without_connections_ends_at_once(shop: Shop) -> None:
    async with mesh_bed() as bed:
        app = await bed.app(echo)
        async with sidecar_pair(shop, str(app.address), more=LONG) as pair:
            for sidecar in pair:
                sidecar.program.signal(signal.SIGTERM)
                with trio.fail_after(DEADLINE):
                    assert await sidecar.program.ended() == 0
                assert [line["event"] for line in sidecar.program.said] == ["started", "draining", "stopped"]
