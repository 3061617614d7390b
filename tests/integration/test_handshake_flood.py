"""Five hundred strangers begin a handshake and never end it; honest callers, new ones too, do not notice."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import trio
from OpenSSL import SSL

from sidecar.config.sidecar_yaml import Timeouts
from sidecar.documents.address import Address
from sidecar.proxy.peer import SPREAD
from sidecar.transport import sockets
from tests.beds import mesh as harness
from tests.beds.mesh import Foreigner, connect, mesh_bed, receive_all

FLOOD = 400


@pytest.fixture(autouse=True)
def _many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def hello() -> bytes:
    """A valid ClientHello: the server has to compute for it."""
    client = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
    client.set_connect_state()
    client.set_alpn_protos([b"mesh/1/http"])
    with pytest.raises(SSL.WantReadError):
        client.do_handshake()
    return client.bio_read(65536)


async def request(entry: Address) -> None:
    with await connect(entry) as client:
        await sockets.send_all(client, b"question")
        client.shutdown(socket.SHUT_WR)
        assert await receive_all(client) == b"question"


@pytest.mark.parametrize("beginning", ["nothing", "half a hello", "a hello"])
async def test_half_open_handshakes_hold_nobody_up(beginning: str) -> None:
    whole = hello()
    sent = {"nothing": b"", "half a hello": whole[: len(whole) // 2], "a hello": whole}[beginning]
    async with mesh_bed() as bed:
        app = await bed.app()
        unhurried = Timeouts(
            handshake=1000, connect=1000, drain=1
        )  # so that the strangers stay, however slow this machine
        api = await bed.sidecar("api", inbound=[harness.inbound("http", app.address)], timeouts=unhurried)
        target = api.address("http")
        web = await bed.sidecar("web", outbound=[harness.outbound("api", "http", target)], timeouts=unhurried)
        entry = web.address("api:http", "outbound")
        with ExitStack() as stack:
            live = stack.enter_context(await connect(entry))
            for _ in range(FLOOD):
                stranger = stack.enter_context(await connect(target))
                if sent:
                    await sockets.send_all(stranger, sent)
            for _ in range(20):
                await request(entry)
                await sockets.send_all(live, b"ping")
                assert await sockets.receive(live, 4) == b"ping"
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(request, entry)
            await web.log.connection(40)
            await api.log.connection(40)
            assert [line["reason"] for line in web.log.connections] == ["ok"] * 40
            assert api.node.metrics.ended.total() == 40  # the others wait still
        ended = await api.drained()
        assert ended.pop("ok") == 40 + 1
        assert ended == {"handshake_failed" if sent else "probe": FLOOD}


async def test_handshakes_that_never_end_are_ended(mock_clock: trio.testing.MockClock) -> None:
    """Slow loris: the deadline is for the whole handshake, not for each byte of it."""
    mock_clock.rate = 1
    async with mesh_bed() as bed:
        _, api, entry = await bed.pair()
        whole = hello()
        with await connect(api.address("http")) as stranger:
            for at in range(20):
                await sockets.send_all(stranger, whole[at : at + 1])
                await trio.testing.wait_all_tasks_blocked()
                mock_clock.jump(api.node.config.timeouts.handshake / 10)
                if api.log.connections:
                    break
            line = await api.log.connection()
            assert (line["reason"], line["decision"]) == ("handshake_timeout", "deny")
            assert at < 10 * (1 + SPREAD) + 2
        await request(entry)


async def test_whole_handshakes_in_a_flood_pass_in_turns() -> None:
    """Complete, but nobody's: each costs its computing, and honest ones get through in between."""
    async with mesh_bed() as bed:
        _, api, entry = await bed.pair()

        async def nobody() -> None:
            with await connect(api.address("http")) as sock:
                caller = Foreigner(sock, None)
                await caller.handshake()
                with pytest.raises(SSL.Error):
                    await caller.receive()

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(nobody)
            for _ in range(20):
                nursery.start_soon(request, entry)
        assert await api.drained() == {"ok": 20, "no_certificate": 100}
