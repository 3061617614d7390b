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
from tests.beds.mesh import PATIENCE, connect, mesh_bed

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
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
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


async def test_a_drain_accepts_no_more_and_waits_for_what_runs(mock_clock: MockClock) -> None:
    mock_clock.rate = 1
    async with mesh_bed() as bed:
        web, _, entry = await bed.pair()
        with await connect(entry) as client:
            await sockets.send_all(client, b"ping")
            assert await sockets.receive(client, 4) == b"ping"
            web.stop.set()
            await wait_all_tasks_blocked()
            with pytest.raises(ConnectionRefusedError):
                await connect(entry)
            assert not web.stopped.is_set()
            await sockets.send_all(client, b"pong")
            assert await sockets.receive(client, 4) == b"pong"
        with trio.fail_after(PATIENCE):
            await web.stopped.wait()  # at once when the last one ends, not when the drain time is over
        assert [line["reason"] for line in web.log.connections] == ["ok"]
        assert all(listener.sock.fileno() == -1 for listener in web.server.listeners)


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
