"""Every accepted socket leaves exactly one line in the access log: refused early, cut in any phase, crashed, or done."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
from OpenSSL import SSL
from trio.testing import MockClock, wait_all_tasks_blocked

from sidecar.config.sidecar_yaml import Limits, Timeouts
from sidecar.documents.address import Address
from sidecar.policy.decide import Decision
from sidecar.proxy import inbound, outbound
from sidecar.proxy.node import Node
from sidecar.relay.frames import FramedChannel
from sidecar.transport import dial, sockets
from tests.beds import mesh as harness
from tests.beds.mesh import App, Foreigner, LogSink, MeshBed, RunningSidecar, connect, mesh_bed, receive_all
from tests.beds.patience import PATIENCE

DRAIN = 100.0
TIMES = Timeouts(handshake=1000, connect=1000, drain=DRAIN)
"""No deadline but the drain's ends anything here. Time is virtual, and the drain is over when the test says so."""


async def end(sidecar: RunningSidecar, clock: MockClock) -> list[dict[str, Any]]:
    """Drains a sidecar until it cuts, and returns all of its lines."""
    sidecar.stop.set()
    await wait_all_tasks_blocked()
    clock.jump(DRAIN)
    with trio.fail_after(PATIENCE):
        await sidecar.stopped.wait()
    return sidecar.log.connections


async def echoed(client: socket.socket) -> None:
    await sockets.send_all(client, b"ping")
    assert await sockets.receive(client, 4) == b"ping"


Phase = Callable[[MeshBed, AsyncExitStack, pytest.MonkeyPatch], Awaitable[RunningSidecar]]


async def in_the_handshake(bed: MeshBed, stack: AsyncExitStack, _: pytest.MonkeyPatch) -> RunningSidecar:
    api = await bed.sidecar("api", inbound=[harness.inbound("http", Address("127.0.0.1", 9))], timeouts=TIMES)
    stack.enter_context(await connect(api.address("http")))  # and it says nothing
    return api


async def dialling_the_app(bed: MeshBed, stack: AsyncExitStack, patch: pytest.MonkeyPatch) -> RunningSidecar:
    api = await bed.sidecar("api", inbound=[harness.inbound("http", Address("127.0.0.1", 9))], timeouts=TIMES)
    reached = trio.Event()

    async def never(*_: object) -> None:
        reached.set()
        await trio.sleep_forever()

    patch.setattr(dial, "connect", never)
    patch.setattr(dial.Upstream, "best", lambda _: None)
    web = Foreigner(stack.enter_context(await connect(api.address("http"))), bed.authority.leaf("web"))
    await web.handshake()
    await reached.wait()
    return api


async def silent_peer(bed: MeshBed, stack: AsyncExitStack, *, handshake: bool) -> RunningSidecar:
    listener = stack.enter_context(sockets.listen("test", "127.0.0.1", 0))
    there = Address(*listener.getsockname())
    web = await bed.sidecar("web", outbound=[harness.outbound("api", "http", there)], timeouts=TIMES)
    stack.enter_context(await connect(web.address("api:http", "outbound")))
    await trio.lowlevel.wait_readable(listener)
    accepted = stack.enter_context(listener.accept()[0])
    accepted.setblocking(False)
    if handshake:
        await Foreigner(accepted, bed.authority.leaf("api"), server=True).handshake()
    return web


async def waiting_for_the_peer_s_handshake(
    bed: MeshBed, stack: AsyncExitStack, _: pytest.MonkeyPatch
) -> RunningSidecar:
    return await silent_peer(bed, stack, handshake=False)


async def waiting_for_the_verdict(bed: MeshBed, stack: AsyncExitStack, _: pytest.MonkeyPatch) -> RunningSidecar:
    return await silent_peer(bed, stack, handshake=True)


async def looking_up_the_peer(bed: MeshBed, stack: AsyncExitStack, patch: pytest.MonkeyPatch) -> RunningSidecar:
    async def never(*_: object) -> None:
        await trio.sleep_forever()

    patch.setattr(dial.Upstream, "endpoints", never)
    there = Address("127.0.0.1", 9)
    web = await bed.sidecar("web", outbound=[harness.outbound("api", "http", there)], timeouts=TIMES)
    stack.enter_context(await connect(web.address("api:http", "outbound")))
    return web


async def relaying(bed: MeshBed, stack: AsyncExitStack, *, end: str) -> RunningSidecar:
    app = await bed.app()
    api = await bed.sidecar("api", inbound=[harness.inbound("http", app.address)], timeouts=TIMES)
    there = api.address("http")
    web = await bed.sidecar("web", outbound=[harness.outbound("api", "http", there)], timeouts=TIMES)
    await echoed(stack.enter_context(await connect(web.address("api:http", "outbound"))))
    return web if end == "web" else api


async def relaying_outbound(bed: MeshBed, stack: AsyncExitStack, _: pytest.MonkeyPatch) -> RunningSidecar:
    return await relaying(bed, stack, end="web")


async def relaying_inbound(bed: MeshBed, stack: AsyncExitStack, _: pytest.MonkeyPatch) -> RunningSidecar:
    return await relaying(bed, stack, end="api")


@pytest.mark.parametrize(
    "phase",
    [
        in_the_handshake,
        dialling_the_app,
        looking_up_the_peer,
        waiting_for_the_peer_s_handshake,
        waiting_for_the_verdict,
        relaying_outbound,
        relaying_inbound,
    ],
)
async def test_cut_in_any_phase(phase: Phase, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    mock_clock.rate = 1
    async with AsyncExitStack() as stack, mesh_bed() as bed:
        with trio.fail_after(PATIENCE):
            sidecar = await phase(bed, stack, monkeypatch)
        await wait_all_tasks_blocked()
        assert sidecar.log.connections == []  # not before its end
        (line,) = await end(sidecar, mock_clock)
        assert line["reason"] == "drained"
        assert not sidecar.log.events("internal_error")


async def test_cut_while_it_lingers_its_own_ending_stands(mock_clock: MockClock) -> None:
    """The app has answered and closed; the caller goes on sending, and is given time to read the answer."""

    async def answer_early(sock: socket.socket, _: App) -> None:
        await sockets.receive(sock, 1)
        await sockets.send_all(sock, b"413 Too Large")

    mock_clock.rate = 1
    async with mesh_bed() as bed:
        app = await bed.app(answer_early)
        api = await bed.sidecar("api", inbound=[harness.inbound("http", app.address)], timeouts=TIMES)
        async with AsyncExitStack() as stack:
            web = Foreigner(stack.enter_context(await connect(api.address("http"))), bed.authority.leaf("web"))
            await web.handshake()
            assert await web.verdict() == "ok"
            await web.send(b"x" * 100_000)
            assert await web.receive() == b"413 Too Large"
            lines = await end(api, mock_clock)
    assert [line["reason"] for line in lines] == ["app_reset"]


async def test_cut_while_a_refusal_lingers(mock_clock: MockClock) -> None:
    """Its line is there before: a caller that does not go away keeps nobody from reading why it was refused."""
    mock_clock.rate = 1
    async with mesh_bed() as bed:
        api = await bed.sidecar("api", inbound=[harness.inbound("http", Address("127.0.0.1", 9))], timeouts=TIMES)
        with await connect(api.address("http")) as stranger:
            await sockets.send_all(stranger, b"GET / HTTP/1.1\r\n\r\n")
            assert (await api.log.connection())["reason"] == "plaintext_refused"
            lines = await end(api, mock_clock)
    assert [line["reason"] for line in lines] == ["plaintext_refused"]


# -- early refusals ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def api_alone(**options: Any) -> AsyncIterator[tuple[MeshBed, RunningSidecar]]:
    async with mesh_bed() as bed:
        app = await bed.app()
        yield bed, await bed.sidecar("api", inbound=[harness.inbound("http", app.address)], **options)


async def test_a_caller_that_is_gone_before_it_was_greeted() -> None:
    """A port scan, a health check that only connects: accepted, but already reset."""
    async with api_alone() as (_, api):
        address = api.address("http")
        for _ in range(3):
            sock = socket.create_connection((address.host, address.port))  # without a step of ours in between
            sockets.hard_close(sock)
        lines = [await api.log.connection(number) for number in (1, 2, 3)]
        assert {(line["reason"], line["decision"]) for line in lines} == {("probe", "deny")}
        assert len(api.log.connections) == 3
        assert {line["level"] for line in lines} == {"info"}
        assert api.node.metrics.refusals == []
        assert not api.log.events("internal_error")


async def test_a_caller_that_leaves_after_it_came() -> None:
    async with api_alone() as (_, api):
        (await connect(api.address("http"))).close()
        line = await api.log.connection()
        assert (line["reason"], line["decision"], line["level"]) == ("probe", "deny", "info")
        with await connect(api.address("http")) as sock:
            await sockets.send_all(sock, b"\x16")
        line = await api.log.connection(2)
        assert (line["reason"], line["decision"], line["level"]) == ("handshake_failed", "deny", "warning")
        assert [refusal.reason for refusal in api.node.metrics.refusals] == ["handshake_failed"]


async def test_too_many_connections_are_refused_and_the_next_one_is_not() -> None:
    async with api_alone(limits=Limits(connections=2)) as (bed, api):
        web = bed.authority.leaf("web")
        async with AsyncExitStack() as stack:
            callers = []
            for _ in range(2):
                callers.append(Foreigner(stack.enter_context(await connect(api.address("http"))), web))
                await callers[-1].handshake()
                assert await callers[-1].verdict() == "ok"
            third = Foreigner(stack.enter_context(await connect(api.address("http"))), web)
            await third.handshake()
            assert await third.verdict() == "overloaded"
            line = await api.log.connection()
            assert (line["reason"], line["decision"]) == ("overloaded", "deny")
            assert line["peer_id"] == "spiffe://shop.internal/web"
            await callers[0].close()
            callers[0].sock.close()
            await api.log.connection(2)
            twin = Foreigner(stack.enter_context(await connect(api.address("http"))), web)
            await twin.handshake()
            assert await twin.verdict() == "ok"
        await api.log.until(lambda: len(api.log.connections) == 4)


async def test_too_many_connections_of_an_app_are_reset() -> None:
    async with mesh_bed() as bed:
        app = await bed.app()
        api = await bed.sidecar("api", inbound=[harness.inbound("http", app.address)])
        out = [harness.outbound("api", "http", api.address("http"))]
        web = await bed.sidecar("web", outbound=out, limits=Limits(connections=1))
        with await connect(web.address("api:http", "outbound")) as first:
            await echoed(first)
            with pytest.raises(ConnectionResetError), await connect(web.address("api:http", "outbound")) as second:
                await receive_all(second)
            assert (await web.log.connection())["reason"] == "overloaded"
            await echoed(first)


# -- bugs of our own ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [inbound, outbound])
async def test_a_crash_ends_one_connection_and_is_told(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in the handler: its connection fails closed, the others go on, and the traceback is kept."""
    async with mesh_bed() as bed:
        web, api, entry = await bed.pair()
        crashed = web if module is outbound else api
        with await connect(entry) as before:
            await echoed(before)
            real = Node.decide

            def broken(node: Node, *call: Any) -> Decision:
                if node is not crashed.node:
                    return real(node, *call)
                monkeypatch.setattr(Node, "decide", real)
                raise ZeroDivisionError("peer said x")

            monkeypatch.setattr(Node, "decide", broken)
            with pytest.raises(ConnectionResetError), await connect(entry) as unlucky:
                await receive_all(unlucky)
            line = await crashed.log.connection()
            assert (line["reason"], line["decision"]) == ("internal_error", "allow" if line["rule"] else "deny")
            assert "peer said x" not in line["message"]  # what the exception says is for us, in the event
            (event,) = crashed.log.events("internal_error")
            assert "ZeroDivisionError: peer said x" in event["exception"]
            assert "Traceback" in event["exception"]
            await echoed(before)
            with await connect(entry) as after:
                await echoed(after)
        await crashed.log.until(lambda: len(crashed.log.connections) == 3)


async def test_ninety_nine_others_go_on_when_a_pump_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    real = FramedChannel.write

    def broken(self: FramedChannel, buffer: Any, size: int) -> None:
        if bytes(buffer.view[: min(size, 4)]) == b"BOOM":
            raise RuntimeError("a bug in a pump")
        real(self, buffer, size)

    monkeypatch.setattr(FramedChannel, "write", broken)
    async with mesh_bed() as bed:
        web, api, entry = await bed.pair()
        async with AsyncExitStack() as stack:
            clients = [stack.enter_context(await connect(entry)) for _ in range(100)]
            for client in clients:
                await echoed(client)
            unlucky = clients.pop(50)
            await sockets.send_all(unlucky, b"BOOM")
            with pytest.raises(ConnectionResetError):
                await receive_all(unlucky)
            assert (await web.log.connection())["reason"] == "internal_error"
            assert "a bug in a pump" in web.log.events("internal_error")[0]["exception"]
            assert (await api.log.connection())["reason"] == "truncated"
            for client in clients:
                await echoed(client)
                client.shutdown(socket.SHUT_WR)
                assert await receive_all(client) == b""
        for sidecar in (web, api):
            await sidecar.log.connection(100)
            assert sum(line["reason"] == "ok" for line in sidecar.log.connections) == 99


# -- all at once -------------------------------------------------------------------------------------------------------


async def test_a_crowd_of_every_kind_leaves_one_line_each(mock_clock: MockClock) -> None:
    mock_clock.rate = 1
    async with AsyncExitStack() as stack, mesh_bed() as bed:
        app = await bed.app()
        api = await bed.sidecar("api", inbound=[harness.inbound("http", app.address)], timeouts=TIMES)
        here = api.address("http")

        async def honest(*, stays: bool) -> None:
            caller = Foreigner(stack.enter_context(await connect(here)), bed.authority.leaf("web"))
            await caller.handshake()
            assert await caller.verdict() == "ok"
            if not stays:
                await caller.close()
                caller.sock.close()

        async def read_after_handshake(caller: Foreigner) -> None:
            await caller.handshake()
            await caller.receive()  # a TLS 1.3 client learns only now how it was judged

        async def stranger() -> None:
            caller = Foreigner(stack.enter_context(await connect(here)), None)
            with pytest.raises((EOFError, OSError, SSL.Error)):
                await read_after_handshake(caller)

        async with trio.open_nursery() as nursery:
            for number in range(40):
                match number % 4:
                    case 0 | 1:
                        nursery.start_soon(lambda stays: honest(stays=stays), number % 4 == 0)
                    case 2:
                        nursery.start_soon(stranger)
                    case 3:
                        stack.enter_context(await connect(here))
        lines = await end(api, mock_clock)
    reasons = sorted(line["reason"] for line in lines)
    assert reasons == ["drained"] * 20 + ["no_certificate"] * 10 + ["ok"] * 10
    ids = [line["connection_id"] for line in lines if line["connection_id"]]
    assert len(ids) == len(set(ids)) == 30


def test_the_sink_counts_lines_not_writes() -> None:
    sink = LogSink()
    sink.write('{"event": "connection"}\n{"event": "connection"}\n')
    assert len(sink.connections) == 2
