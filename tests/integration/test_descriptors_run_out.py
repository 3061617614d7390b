"""No descriptor left (EMFILE): accepting rests instead of spinning or dying, says so once, and goes on by itself."""

from __future__ import annotations

import errno
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from sidecar.documents.address import Address
from sidecar.transport import sockets
from sidecar.transport.accepting import ACCEPT_PAUSE_SECONDS
from tests.beds.mesh import connect, mesh_bed, receive_all
from tests.beds.processes import SIDECAR, Running, Shop, SidecarProcess, running


async def echoed(entry: Address) -> None:
    with await connect(entry) as client:
        await sockets.send_all(client, b"ping")
        client.shutdown(socket.SHUT_WR)
        assert await receive_all(client) == b"ping"


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_accepting_rests_and_recovers(code: int, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    mock_clock.rate = 0.05  # so slow that a machine under load does not end a rest by itself
    tries = 0
    async with mesh_bed() as bed:
        web, _, entry = await bed.pair()
        real = socket.socket.accept
        listener = next(one.sock for one in web.server.listeners)

        def exhausted(self: socket.socket) -> Any:
            nonlocal tries
            if self is listener and tries < 5:
                tries += 1
                raise OSError(code, "none left")
            return real(self)

        monkeypatch.setattr(socket.socket, "accept", exhausted)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echoed, entry)
            for expected in range(1, 6):
                await wait_all_tasks_blocked(0.01)
                assert tries == expected  # it rests in between: no spinning
                mock_clock.jump(ACCEPT_PAUSE_SECONDS)
        assert (await web.log.connection())["reason"] == "ok"
        (warning,) = web.log.events("accept_paused")  # once, not at each try
        assert "none left" in warning["message"]


async def test_a_caller_that_gave_up_in_the_backlog_is_no_reason_to_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    async with mesh_bed() as bed:
        web, _, entry = await bed.pair()
        real, left = socket.socket.accept, [errno.ECONNABORTED, errno.EPROTO, errno.EPERM]

        def aborted(self: socket.socket) -> Any:
            if left and self is web.server.listeners[0].sock:
                raise OSError(left.pop(), "gave up")
            return real(self)

        monkeypatch.setattr(socket.socket, "accept", aborted)
        await echoed(entry)
        assert left == []
        assert not web.log.events("accept_paused")


@asynccontextmanager
async def crowded(shop: Shop, descriptors: int) -> AsyncIterator[tuple[Address, Running, Address]]:
    """A real api with so few descriptors, and web, which calls it: api's port, api's process, and where web's app calls."""
    async with mesh_bed() as bed:
        app = await bed.app()
        file = shop.wiring("api", f'inbound: [{{port: http, listen: "127.0.0.1:0", app: "{app.address}"}}]\n')
        limited = ("sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh")
        async with running(*limited, *SIDECAR, "run", file) as program:
            api = SidecarProcess(program, await program.event("started"))
            entry = f'outbound: [{{to: "api:http", listen: "127.0.0.1:0", peers: ["{api.at("http")}"]}}]\n'
            async with running(*SIDECAR, "run", shop.wiring("web", entry)) as other:
                web = SidecarProcess(other, await other.event("started"))
                yield Address(*api.address("http")), program, Address(*web.address("api:http"))
                program.signal(signal.SIGTERM)
                assert await program.ended() == 0
                assert program.errors == ""


async def test_a_process_at_its_limit_serves_peers_while_strangers_stay(shop: Shop) -> None:
    """A real one: 128 descriptors, and 200 strangers who never say anything. Twelve honest calls at once succeed."""
    async with crowded(shop, 128) as (port, api, entry):
        with ExitStack() as stack:
            for _ in range(200):
                stack.enter_context(await connect(port))
            async with trio.open_nursery() as nursery:
                for _ in range(12):
                    nursery.start_soon(echoed, entry)
            await api.event("connection", 12, reason="ok")
        assert not api.events("accept_paused")
    folded = sum(one["count"] for one in api.events("connection_summary"))
    assert len(api.connections) + folded == 212  # each socket is in the log, or in a summary
