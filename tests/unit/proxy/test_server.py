"""Listeners open together or not at all; addresses are told as they are; a caller is greeted; draining ends what is left."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from sidecar.documents.address import Address
from sidecar.identity.reasons import Reason, Refused, UsageError
from sidecar.observe.folding import LINES
from sidecar.observe.record import ConnectionRecord, Direction
from sidecar.proxy import server
from sidecar.transport import sockets
from tests.beds import mesh as harness
from tests.beds.clock import moment
from tests.beds.mesh import connect, mesh_bed, receive_all

NOBODY = Address("127.0.0.1", 9)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def test_a_listener_that_cannot_be_opened_names_its_line_and_closes_the_others() -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        first = replace(harness.inbound("http", NOBODY), listen=Address("127.0.0.1", port))
        second = harness.outbound("db", "5432", NOBODY, listen=Address(*taken.getsockname()))
        async with mesh_bed() as bed:
            with pytest.raises(UsageError, match=r"outbound\[0\]\.listen: cannot listen on 127\.0\.0\.1:\d+"):
                await bed.sidecar("api", inbound=[first], outbound=[second])
    with socket.create_server(("127.0.0.1", port)):
        pass  # the first one is free again


async def test_it_tells_where_it_listens() -> None:
    async with mesh_bed() as bed:
        ports = [harness.inbound(name, NOBODY) for name in ("http", "metrics")]
        api = await bed.sidecar("api", inbound=ports, outbound=[harness.outbound("db", "5432", NOBODY)])
        described = [(one.direction, one.port, one.upstream) for one in api.server.listeners]
        assert described == [("inbound", "http", None), ("inbound", "metrics", None), ("outbound", "5432", "db:5432")]
        assert api.server.listening == [one.address for one in api.server.listeners]
        assert all(one.address[1] > 0 for one in api.server.listeners)


@pytest.mark.parametrize(("direction", "field"), [("inbound", "peer_address"), ("outbound", "client_address")])
def test_a_caller_is_greeted(direction: Direction, field: str) -> None:
    record = ConnectionRecord(direction, "api", "http", started=0.0)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as caller:
        with listener.accept()[0] as sock:
            server._record_caller(sock, record)
            assert not sock.getblocking()
        host, port = caller.getsockname()
    assert getattr(record, field) == f"{host}:{port}"


@pytest.mark.parametrize(
    ("direction", "said", "reason"),
    [
        ("inbound", b"", Reason.PROBE),
        ("inbound", b"x", Reason.CLIENT_RESET),
        ("outbound", b"", Reason.CLIENT_RESET),
        ("outbound", b"x", Reason.CLIENT_RESET),
    ],
)
def test_a_caller_that_is_gone_is_no_bug_and_a_probe_if_it_said_nothing(
    direction: Direction, said: bytes, reason: Reason
) -> None:
    record = ConnectionRecord(direction, "api", "http", started=0.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        caller = socket.create_connection(listener.getsockname())
        caller.sendall(said)
        sockets.hard_close(caller)
        with listener.accept()[0] as sock, pytest.raises(Refused) as refused:
            server._record_caller(sock, record)
    assert refused.value.reason is reason


@pytest.fixture
def virtual_time() -> MockClock:
    """Goes on to the next deadline when nothing has happened for a moment."""
    return MockClock(autojump_threshold=moment(0.05))


class Answers:
    """An app that repeats each two bytes, but answers `..` only when it is told to."""

    def __init__(self) -> None:
        self.go = trio.Event()

    async def __call__(self, sock: socket.socket, _: harness.App) -> None:
        while asked := await sockets.receive(sock, 2):
            if asked == b"..":
                await self.go.wait()
            await sockets.send_all(sock, asked)


@pytest.mark.parametrize("whose", ["caller's", "callee's"])
async def test_a_drain_serves_until_no_request_is_in_flight(whose: str, virtual_time: MockClock) -> None:
    """A closed listener is an outage: there is no other sidecar."""
    answers = Answers()
    async with mesh_bed() as bed:
        web, api, entry = await bed.pair(await bed.app(answers))
        draining = web if whose == "caller's" else api
        with await connect(entry) as asking, await connect(entry) as idle:
            for client in (asking, idle):
                await exchange(client)
            await sockets.send_all(asking, b"..")
            await wait_all_tasks_blocked()
            draining.stop.set()
            with pytest.raises(ConnectionResetError):  # never a clean end: it may have been a pause
                await receive_all(idle)
            await trio.sleep(3)
            with await connect(entry) as newcomer:
                await exchange(newcomer)
            assert not draining.stopped.is_set()
            answers.go.set()
            assert await sockets.receive(asking, 2) == b".."
            asked = trio.current_time()
            await draining.stopped.wait()  # when that one is idle, not when the drain time is over
            assert trio.current_time() - asked < 1
        reasons = [(line["reason"], line.get("message")) for line in draining.log.connections]
        stopping = ("drained", "idle, and this sidecar is stopping")
        assert sorted(reasons) == [stopping, stopping, ("ok", None)]
        assert all(listener.sock.fileno() == -1 for listener in draining.server.listeners)


async def test_a_stream_holds_a_drain_for_two_seconds_and_an_idle_connection_for_half_of_one(
    virtual_time: MockClock,
) -> None:
    async def ticks(sock: socket.socket, _: harness.App) -> None:
        while await sockets.receive(sock, 2) == b"..":
            while True:
                await sockets.send_all(sock, b"tick")
                await trio.sleep(0.3)

    for first, low, high in ((b"..", 2, 2.5), (b"", 0.5, 1)):
        async with mesh_bed() as bed:
            _, api, entry = await bed.pair(await bed.app(ticks))
            with await connect(entry) as client:
                if first:
                    await sockets.send_all(client, first)
                    assert await sockets.receive(client, 4) == b"tick"
                await wait_all_tasks_blocked()
                began = trio.current_time()
                api.stop.set()
                await api.stopped.wait()
                assert low <= trio.current_time() - began < high
            assert [line["reason"] for line in api.log.connections] == ["drained"]


async def test_a_request_that_never_ends_is_cut_when_the_drain_time_is_over(virtual_time: MockClock) -> None:
    async with mesh_bed() as bed:
        _, api, entry = await bed.pair(await bed.app(Answers()))
        with await connect(entry) as client:
            await sockets.send_all(client, b"..")
            await wait_all_tasks_blocked()
            began = trio.current_time()
            api.stop.set()
            await api.stopped.wait()
            drain = api.node.config.timeouts.drain
            assert drain <= trio.current_time() - began < drain + 1
            with pytest.raises(ConnectionResetError):
                await receive_all(client)
        (line,) = api.log.connections
        assert (line["reason"], line["message"]) == ("drained", "cut at the end of the drain")


async def exchange(client: socket.socket) -> None:
    await sockets.send_all(client, b"hi")
    assert await sockets.receive(client, 2) == b"hi"


async def test_a_crowd_in_the_backlog_is_accepted_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tasks have their turn in between."""
    portions = [0]
    real = socket.socket.accept

    def counted(self: socket.socket) -> Any:
        portions[-1] += 1
        return real(self)

    class Steps(trio.abc.Instrument):
        def before_task_step(self, _: trio.lowlevel.Task) -> None:
            portions.append(0)

    async with mesh_bed() as bed:
        api = await bed.sidecar("api", inbound=[harness.inbound("http", NOBODY)])
        where = (api.address("http").host, api.address("http").port)
        callers = [socket.create_connection(where) for _ in range(100)]
        monkeypatch.setattr(socket.socket, "accept", counted)
        trio.lowlevel.add_instrument(Steps())
        for caller in callers:
            caller.close()
        await api.log.connection(LINES)
        await wait_all_tasks_blocked()
        assert sum(portions) >= 100
        assert max(portions) <= 32
        assert {line["reason"] for line in api.log.connections} == {"probe"}
        assert api.node.metrics.ended == {("inbound", "http", "deny", "probe"): 100}
