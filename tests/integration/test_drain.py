"""SIGTERM and SIGINT: a process of ``sidecar run`` accepts no more, lets transfers finish, cuts the rest, ends with 0."""

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


@asynccontextmanager
async def transfer(shop: Shop, drain: str) -> AsyncIterator[tuple[SidecarProcess, SidecarProcess, socket.socket]]:
    """web, api, and a connection through both that has carried bytes and goes on."""
    async with mesh_bed() as bed:
        app: App = await bed.app(echo)
        async with sidecar_pair(shop, str(app.address), more=drain) as (web, api):
            with await connect(Address(*web.address("api:http"))) as client:
                await sockets.send_all(client, b"first")
                assert await sockets.receive(client, 5) == b"first"
                yield web, api, client


async def until_refused(sidecar: SidecarProcess, name: str) -> None:
    """Returns when nobody listens there any more."""
    with trio.fail_after(DEADLINE):
        while True:
            try:
                stream = await trio.open_tcp_stream(*sidecar.address(name))
            except OSError:
                return
            await stream.aclose()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_running_transfer_finishes(shop: Shop, number: int) -> None:
    async with transfer(shop, LONG) as (web, api, client):
        for sidecar, listener in ((web, "api:http"), (api, "http")):
            sidecar.program.signal(number)
            assert signal.Signals(number).name in (await sidecar.program.event("draining"))["message"]
            await until_refused(sidecar, listener)  # accepts no more ...
        await sockets.send_all(client, b"last" * 100_000)  # ... and what runs goes on, both ways, to its own end
        client.shutdown(socket.SHUT_WR)
        assert await receive_all(client) == b"last" * 100_000
        for sidecar in (web, api):
            assert await sidecar.program.ended() == 0
            assert [line["reason"] for line in sidecar.program.connections if line["bytes_to_app"]] == ["ok"]
            assert sidecar.program.said[-1]["event"] == "stopped"
            assert sidecar.program.errors == ""


async def test_what_is_not_done_when_the_drain_time_is_over_is_cut(shop: Shop) -> None:
    async with transfer(shop, SHORT) as (web, api, client):
        web.program.signal(signal.SIGTERM)
        assert await web.program.ended() == 0
        with pytest.raises(ConnectionResetError):  # cut is not finished: never a clean end
            await receive_all(client)
        line = await web.program.connection()
        assert (line["reason"], line["decision"]) == ("drained", "allow")
        assert line["duration_ms"] >= 1000
        assert (line["bytes_from_app"], line["bytes_to_app"]) == (5, 5)
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
