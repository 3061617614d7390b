"""Callers without TLS at a permissive port: what lets one in, and what does not; each attack with its honest twin."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import pytest
import trio
from OpenSSL import SSL
from trio.testing import MockClock, wait_all_tasks_blocked

from sidecar.config.sidecar_yaml import Limits, Timeouts
from sidecar.documents.address import Address
from sidecar.host.clock import utc_now
from sidecar.policy.mesh import parse_mesh
from sidecar.transport import sockets
from sidecar.transport.lobby import SILENCE_SECONDS
from tests.attacks.stage import HONEST, STOLEN, assert_refused, assert_reset
from tests.attacks.test_strangers import NEARLY_TLS, PLAIN
from tests.beds.certificates import Authority
from tests.beds.mesh import (
    MESH,
    App,
    Foreigner,
    MeshBed,
    RunningSidecar,
    connect,
    echo,
    inbound,
    mesh_bed,
    outbound,
    receive_all,
)
from tests.beds.patience import PATIENCE

LET_IN = MESH + '  - {name: old, from: plaintext, to: "api:http"}\n'
LAST_DAY = date(2099, 12, 31)
GREETING = b"220 mail ESMTP\r\n"


class Permissive:
    """api's permissive port. ``now``: its wall clock, which the test sets."""

    def __init__(self, bed: MeshBed, app: App) -> None:
        self.bed, self.app = bed, app
        self.now = utc_now()
        self.sidecar: RunningSidecar

    @property
    def address(self) -> Address:
        return self.sidecar.address("http")

    async def says(self, said: bytes) -> bytes:
        """What a caller without TLS gets for this, up to the clean end."""
        with await connect(self.address) as sock:
            await sockets.send_all(sock, said)
            sock.shutdown(socket.SHUT_WR)
            return await receive_all(sock)

    async def is_refused(self, reason: str, number: int = 1) -> dict[str, Any]:
        """A caller without TLS is reset, and the app hears nothing. Returns the line."""
        before = self.app.connections
        await assert_refused(self.address)
        line = await self.sidecar.log.connection(number)
        assert (line["decision"], line["reason"], line.get("peer_id")) == ("deny", reason, None), line
        assert (line["bytes_to_app"], self.app.connections) == (0, before)
        return line

    async def honest(self) -> None:
        """The twin in mutual TLS, whose identity is known as ever."""
        caller = Foreigner(await connect(self.address), self.bed.authority.leaf("web"))
        with caller.sock:
            await caller.handshake()
            assert await caller.verdict() == "ok"
            await caller.send(HONEST)
            assert await caller.receive() == HONEST
            await caller.close()
            assert await caller.receive() == b""


@asynccontextmanager
async def permissive(
    mesh: str = LET_IN,
    handler: Callable[[socket.socket, App], Any] = echo,
    *,
    until: date = LAST_DAY,
    timeouts: Timeouts | None = None,
    limits: Limits | None = None,
    real_clock: bool = False,
    **options: Any,
) -> AsyncIterator[Permissive]:
    async with mesh_bed(mesh) as bed:
        app = await bed.app(handler)
        stage = Permissive(bed, app)
        ports = [inbound("http", app.address, until=until, **options)]
        more: dict[str, Any] = {} if real_clock else {"clock": lambda: stage.now}
        stage.sidecar = await bed.sidecar("api", inbound=ports, timeouts=timeouts, limits=limits, **more)
        yield stage
        assert not stage.sidecar.log.events("internal_error")


# -- who is let in -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", PLAIN.values(), ids=PLAIN)
async def test_plaintext_is_carried_byte_for_byte_and_has_no_identity(said: bytes) -> None:
    async with permissive() as port:
        assert await port.says(said) == said
        line = await port.sidecar.log.connection()
        assert (line["reason"], line["decision"], line["rule"], line["plaintext"]) == ("ok", "allow", "old", True)
        assert (line["peer_id"], line["connection_id"], line["tls_group"]) == (None, None, None)
        assert (line["bytes_to_app"], line["bytes_from_app"]) == (len(said), len(said))
        [caller] = port.sidecar.node.callers.current()
        assert (caller.port, caller.address, caller.count, caller.allowed) == ("http", "127.0.0.1", 1, True)
        await port.honest()
        line = await port.sidecar.log.connection(2)
        assert (line["peer_id"], "plaintext" in line) == ("spiffe://shop.internal/web", False)


EVERYBODY = """
trust_domain: shop.internal
services:
  web: {}
  api: {ports: {http: 8080}}
policy:
  - {name: all, from: "*", to: "*"}
  - {name: pattern, from: "spiffe://shop.internal/**", to: "*"}
"""


async def test_no_rule_for_everybody_lets_plaintext_in() -> None:
    async with permissive(EVERYBODY) as port:
        line = await port.is_refused("policy_denied")
        assert line["plaintext"] is True
        assert 'add to `policy:` in mesh.yaml: - {from: [plaintext], to: ["api:http"]}' in line["message"]
        await port.honest()
    async with permissive(EVERYBODY + "  - {from: plaintext, to: api}\n") as port:
        assert await port.says(HONEST) == HONEST


async def test_a_denial_and_the_end_of_the_rule() -> None:
    denial = '  - {name: no, from: plaintext, to: "*", action: deny}\n'
    async with permissive(LET_IN + denial) as port:
        assert (await port.is_refused("policy_denied"))["rule"] == "no"
    ended = MESH + '  - {from: plaintext, to: "api:http", until: 2020-01-01}\n'
    async with permissive(ended) as port:
        await port.is_refused("policy_denied")


async def test_a_strict_port_takes_no_plaintext_whatever_the_rules_say() -> None:
    async with mesh_bed(LET_IN) as bed:
        app = await bed.app()
        api = await bed.sidecar("api", inbound=[inbound("http", app.address)])
        with await connect(api.address("http")) as sock:
            await sockets.send_all(sock, STOLEN)
            with contextlib.suppress(OSError):
                assert await sockets.receive(sock, 1000) == b""
        line = await api.log.connection()
        assert (line["reason"], line["decision"], app.connections) == ("plaintext_refused", "deny", 0)


async def test_the_sidecar_s_own_port_takes_no_plaintext() -> None:
    async with mesh_bed(MESH + "  - {from: plaintext, to: 'api:mesh-admin'}\n") as bed:
        api = await bed.sidecar("api", inbound=[inbound("http", until=LAST_DAY)], own={})
        with await connect(api.address("mesh-admin")) as sock:
            await sockets.send_all(sock, b"GET /metrics HTTP/1.1\r\n\r\n")
            with contextlib.suppress(OSError):
                assert await sockets.receive(sock, 1000) == b""
        assert (await api.log.connection())["reason"] == "plaintext_refused"


# -- the first byte ----------------------------------------------------------------------------------------------------


async def test_tls_without_a_certificate_is_not_taken_for_plaintext() -> None:
    async with permissive() as port:
        caller = Foreigner(await connect(port.address), None)
        with caller.sock, contextlib.suppress(SSL.Error, OSError, EOFError):
            await caller.handshake()
            await caller.send(STOLEN)
            assert await caller.receive() == b""
        line = await port.sidecar.log.connection()
        assert (line["reason"], line["decision"], "plaintext" in line) == ("no_certificate", "deny", False)
        assert port.app.connections == 0
        assert await port.says(HONEST) == HONEST


async def test_tls_of_another_ca_is_not_taken_for_plaintext() -> None:
    async with permissive() as port:
        caller = Foreigner(await connect(port.address), Authority().leaf("web"))
        with caller.sock, contextlib.suppress(SSL.Error, OSError, EOFError):
            await caller.handshake()
            await caller.receive()
        line = await port.sidecar.log.connection()
        assert (line["reason"], port.app.connections) == ("unknown_ca", 0)


@pytest.mark.parametrize("said", [pytest.param(said, id=name) for name, said in NEARLY_TLS.items() if said])
async def test_plaintext_that_begins_as_tls_does_fails_closed(said: bytes) -> None:
    async with permissive() as port:
        with await connect(port.address) as sock:
            await sockets.send_all(sock, said)
            sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(OSError):
                while await sockets.receive(sock, 1000):
                    pass
        line = await port.sidecar.log.connection()
        assert (line["decision"], "plaintext" in line, port.app.connections) == ("deny", False, 0)
        assert line["reason"] in ("handshake_failed", "tls_version")
        await port.honest()


async def test_a_hello_in_single_bytes_is_tls() -> None:
    async with permissive() as port:
        caller = Foreigner(await connect(port.address), port.bed.authority.leaf("web"))
        with caller.sock:
            with contextlib.suppress(SSL.WantReadError):
                caller.tls.do_handshake()
            for byte in caller.tls.bio_read(65536):
                await sockets.send_all(caller.sock, bytes((byte,)))
                await wait_all_tasks_blocked()
            await caller.handshake()
            assert await caller.verdict() == "ok"
            await caller.close()


async def test_plaintext_in_single_bytes(mock_clock: MockClock) -> None:
    async with permissive() as port:
        with await connect(port.address) as sock:
            for byte in HONEST:
                await sockets.send_all(sock, bytes((byte,)))
                assert await sockets.receive(sock, 10) == bytes((byte,))
            sock.shutdown(socket.SHUT_WR)
            assert await receive_all(sock) == b""


async def test_a_slow_first_byte_is_waited_for_and_silence_is_never_plaintext(mock_clock: MockClock) -> None:
    async with permissive(timeouts=Timeouts(handshake=5, connect=5, drain=1)) as port:
        with await connect(port.address) as slow, await connect(port.address) as silent:
            await wait_all_tasks_blocked()
            mock_clock.jump(4.9)
            await wait_all_tasks_blocked()
            await sockets.send_all(slow, HONEST)
            assert await sockets.receive(slow, 100) == HONEST
            mock_clock.jump(2)
            assert await sockets.receive(silent, 100) == b""
            line = await port.sidecar.log.connection()
            assert (line["reason"], "plaintext" in line, port.app.connections) == ("handshake_timeout", False, 1)


# -- a server that speaks first ----------------------------------------------------------------------------------------


async def greets(sock: socket.socket, app: App) -> None:
    await sockets.send_all(sock, GREETING)
    await echo(sock, app)


async def test_where_the_server_speaks_first_silence_is_plaintext_after_a_while(mock_clock: MockClock) -> None:
    async with permissive(handler=greets, server_first=True) as port:
        with await connect(port.address) as sock:
            await wait_all_tasks_blocked()
            mock_clock.jump(SILENCE_SECONDS * 0.9)
            await wait_all_tasks_blocked()
            assert port.app.connections == 0
            mock_clock.jump(SILENCE_SECONDS)
            assert await sockets.receive(sock, 100) == GREETING
            await sockets.send_all(sock, HONEST)
            assert await sockets.receive(sock, 100) == HONEST
            sock.shutdown(socket.SHUT_WR)
            assert await receive_all(sock) == b""
        line = await port.sidecar.log.connection()
        assert (line["reason"], line["plaintext"]) == ("ok", True)


async def test_there_a_caller_that_has_begun_tls_is_waited_for(mock_clock: MockClock) -> None:
    async with permissive(handler=greets, server_first=True) as port:
        caller = Foreigner(await connect(port.address), port.bed.authority.leaf("web"))
        with caller.sock:
            with contextlib.suppress(SSL.WantReadError):
                caller.tls.do_handshake()
            hello = caller.tls.bio_read(65536)
            await sockets.send_all(caller.sock, hello[:1])
            await wait_all_tasks_blocked()
            mock_clock.jump(SILENCE_SECONDS * 2)
            await wait_all_tasks_blocked()
            assert port.app.connections == 0
            await sockets.send_all(caller.sock, hello[1:])
            await caller.handshake()
            assert await caller.verdict() == "ok"
            assert await caller.receive() == GREETING
            await caller.close()


async def test_there_silence_without_a_rule_is_refused(mock_clock: MockClock) -> None:
    async with permissive(MESH, greets, server_first=True) as port:
        with await connect(port.address) as sock:
            await wait_all_tasks_blocked()
            mock_clock.jump(SILENCE_SECONDS * 2)
            await assert_reset(sock)
        assert (await port.sidecar.log.connection())["reason"] == "policy_denied"
        assert port.app.connections == 0


# -- the date ----------------------------------------------------------------------------------------------------------


async def test_the_port_is_strict_when_its_last_day_is_over() -> None:
    today = utc_now().date()
    async with permissive(until=today) as port:
        assert await port.says(HONEST) == HONEST
        port.now = datetime.combine(today, time(23, 59, 59), UTC)
        assert await port.says(HONEST) == HONEST
        port.now += timedelta(seconds=1)
        line = await port.is_refused("plaintext_refused", 3)
        assert f"took plaintext until {today}" in line["message"]


async def test_the_date_is_the_wall_clock_s_also_if_the_machine_slept_over_it() -> None:
    """The loop's clock stood still meanwhile: the first look at the day, and the first accept, decide."""
    async with permissive(until=utc_now().date()) as port:
        with await connect(port.address) as sock:
            await sockets.send_all(sock, HONEST)
            assert await sockets.receive(sock, 100) == HONEST
            port.now += timedelta(days=20)
            await port.is_refused("plaintext_refused")
            node = port.sidecar.node
            assert await node.registry.rejudge(node.recheck) == 1
            await assert_reset(sock)
        line = await port.sidecar.log.connection(2)
        assert (line["reason"], line["decision"], line["plaintext"]) == ("policy_changed", "allow", True)
        assert line["message"] == "cut: plaintext -> api:http is no longer allowed or trusted"


async def test_on_the_day_after_silence_is_not_taken_for_plaintext_either(mock_clock: MockClock) -> None:
    short = Timeouts(handshake=5, connect=5, drain=1)
    async with permissive(handler=greets, server_first=True, until=date(2020, 1, 1), timeouts=short) as port:
        with await connect(port.address) as sock:
            await wait_all_tasks_blocked()
            mock_clock.jump(6)
            assert await sockets.receive(sock, 100) == b""
        line = await port.sidecar.log.connection()
        assert (line["reason"], port.app.connections) == ("handshake_timeout", 0)


async def test_a_changed_policy_cuts_plaintext_and_nobody_else() -> None:
    async with permissive() as port:
        node = port.sidecar.node
        caller = Foreigner(await connect(port.address), port.bed.authority.leaf("web"))
        with await connect(port.address) as sock, caller.sock:
            await sockets.send_all(sock, HONEST)
            assert await sockets.receive(sock, 100) == HONEST
            await caller.handshake()
            assert await caller.verdict() == "ok"
            node.current = replace(node.current, mesh=parse_mesh(MESH, "mesh.yaml"))
            assert await node.registry.rejudge(node.recheck) == 1
            await assert_reset(sock)
            await caller.send(HONEST)
            assert await caller.receive() == HONEST
            await caller.close()
        assert (await port.sidecar.log.connection())["reason"] == "policy_changed"


# -- identity ----------------------------------------------------------------------------------------------------------


async def hears(sock: socket.socket, app: App) -> None:
    while data := await sockets.receive(sock, 65536):
        app.received += data


@pytest.mark.parametrize("proxy_protocol", ["conn", "tls", "tls-full"])
async def test_what_the_app_is_told_of_a_caller_without_tls_has_no_identity(proxy_protocol: str) -> None:
    forged = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12)
    async with permissive(handler=hears, proxy_protocol=proxy_protocol) as port:
        assert await port.says(forged) == b""
        header, told = bytes(port.app.received[:28]), bytes(port.app.received[28:])
        assert header[:16] == b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c"  # both addresses, and nothing behind them
        assert header[16:20] == b"\x7f\x00\x00\x01"
        assert told == forged  # which the app takes for a request


async def test_a_claimed_identity_changes_nothing() -> None:
    said = (
        b"GET / HTTP/1.1\r\nX-Forwarded-Client-Cert: URI=spiffe://shop.internal/web\r\n\r\nspiffe://shop.internal/web"
    )
    async with permissive() as port:
        await port.says(said)
        line = await port.sidecar.log.connection()
        assert "spiffe" not in str({key: line[key] for key in line if key != "upstream"})
        [edge] = port.sidecar.node.metrics.edges
        assert edge.peer == "plaintext"


# -- limits, floods, ends ----------------------------------------------------------------------------------------------


async def test_a_flood_of_plaintext_keeps_to_the_strangers_budget_until_it_is_judged() -> None:
    async with permissive(MESH) as port:
        node = port.sidecar.node
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(assert_refused, port.address)
        ended = await port.sidecar.drained()
        assert ended == {"policy_denied": 100}
        assert len(port.sidecar.log.connections) == 10  # the others are folded
        assert (node.registry.places, len(node.room.strangers), port.app.connections) == (0, 0, 0)
        assert not node.gate.is_proved("127.0.0.1")


async def test_who_is_let_in_has_one_of_half_of_the_places_and_proves_nothing() -> None:
    async with permissive(limits=Limits(connections=2)) as port:
        node = port.sidecar.node
        with await connect(port.address) as sock:
            await sockets.send_all(sock, HONEST)
            assert await sockets.receive(sock, 100) == HONEST
            assert (node.registry.places, len(node.room.strangers)) == (1, 0)
            assert not node.gate.is_proved("127.0.0.1")
            await port.is_refused("overloaded")
        await port.sidecar.log.connection(2)
        assert await port.says(HONEST) == HONEST


@pytest.mark.parametrize("where", ["rule", "listener"])
async def test_the_limits_of_rule_and_listener_hold(where: str) -> None:
    limited = MESH + '  - {from: plaintext, to: "api:http", connections: 1}\n'
    async with permissive(limited if where == "rule" else LET_IN, most=1 if where == "listener" else None) as port:
        with await connect(port.address) as sock:
            await sockets.send_all(sock, HONEST)
            assert await sockets.receive(sock, 100) == HONEST
            await port.is_refused("overloaded")
        await port.sidecar.log.connection(2)
        assert await port.says(HONEST) == HONEST


async def test_an_app_that_is_not_there_gives_a_reset() -> None:
    async with mesh_bed(LET_IN) as bed:
        api = await bed.sidecar("api", inbound=[inbound("http", until=LAST_DAY)])
        await assert_refused(api.address("http"))
        line = await api.log.connection()
        assert (line["reason"], line["decision"], line["plaintext"]) == ("connect_failed", "allow", True)


async def answers_after_the_end(sock: socket.socket, app: App) -> None:
    async for _ in _every(sock):
        app.received += _
    await sockets.send_all(sock, bytes(app.received)[::-1])
    sock.shutdown(socket.SHUT_WR)


async def _every(sock: socket.socket) -> AsyncIterator[bytes]:
    while data := await sockets.receive(sock, 65536):
        yield data


async def speaks_and_ends_first(sock: socket.socket, app: App) -> None:
    await sockets.send_all(sock, b"bye")
    sock.shutdown(socket.SHUT_WR)
    async for data in _every(sock):
        app.received += data


async def test_each_direction_ends_by_itself() -> None:
    async with permissive(handler=answers_after_the_end) as port:
        assert await port.says(b"abc" * 100_000) == b"cba" * 100_000
    async with permissive(handler=speaks_and_ends_first) as port:
        with await connect(port.address) as sock:
            await sockets.send_all(sock, b"x")
            assert await receive_all(sock) == b"bye"  # a clean end, while the other direction is open
            await sockets.send_all(sock, b"yz")
            sock.shutdown(socket.SHUT_WR)
        line = await port.sidecar.log.connection()
        await wait_all_tasks_blocked()
        assert (line["reason"], bytes(port.app.received)) == ("ok", b"xyz")


async def resets(sock: socket.socket, _app: App) -> None:
    await sockets.receive(sock, 100)
    await sockets.send_all(sock, b"half an ans")
    sockets.hard_close(sock)


async def test_a_reset_is_passed_on_as_one_in_either_direction() -> None:
    async with permissive(handler=resets) as port:
        with await connect(port.address) as sock:
            await sockets.send_all(sock, HONEST)
            with pytest.raises(ConnectionResetError):
                await receive_all(sock)
        assert (await port.sidecar.log.connection())["reason"] == "app_reset"

    broken = trio.Event()

    async def sees(sock: socket.socket, _app: App) -> None:
        with pytest.raises(ConnectionResetError):
            async for _ in _every(sock):
                pass
        broken.set()

    async with permissive(handler=sees) as port:
        sock = await connect(port.address)
        await sockets.send_all(sock, HONEST)
        await wait_all_tasks_blocked()
        sockets.hard_close(sock)
        with trio.fail_after(PATIENCE):
            await broken.wait()
        assert (await port.sidecar.log.connection())["reason"] == "client_reset"


async def test_bulk_both_ways_through_a_plaintext_connection() -> None:
    size = 20_000_000
    async with permissive(real_clock=True) as port:
        with await connect(port.address) as sock:

            async def send() -> None:
                await sockets.send_all(sock, bytes(size))
                sock.shutdown(socket.SHUT_WR)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                received = 0
                while data := await sockets.receive(sock, 1 << 20):
                    received += len(data)
        assert received == size
        line = await port.sidecar.log.connection()
        assert (line["bytes_to_app"], line["bytes_from_app"], line["reason"]) == (size, size, "ok")


async def test_the_drain_ends_idle_plaintext_and_waits_for_a_request_in_flight() -> None:
    answering = trio.Event()

    async def slow(sock: socket.socket, app: App) -> None:
        async for data in _every(sock):
            if data == b"slow":
                await answering.wait()
            await sockets.send_all(sock, data)

    async with permissive(handler=slow, real_clock=True) as port:
        with await connect(port.address) as idle, await connect(port.address) as busy:
            await sockets.send_all(idle, b"fast")
            assert await sockets.receive(idle, 10) == b"fast"
            await sockets.send_all(busy, b"slow")
            await wait_all_tasks_blocked()
            port.sidecar.stop.set()
            await assert_reset(idle)
            answering.set()
            assert await sockets.receive(busy, 10) == b"slow"
            with trio.fail_after(PATIENCE):
                await port.sidecar.stopped.wait()
        assert {line["reason"] for line in port.sidecar.log.connections} == {"drained"}


async def test_an_mtls_caller_is_never_carried_as_plaintext() -> None:
    """A sidecar that calls a permissive port speaks mutual TLS, and alarms if plaintext answers."""
    async with permissive(real_clock=True) as port:
        web = await port.bed.sidecar("web", outbound=[outbound("api", "http", port.address)])
        with await connect(web.address("api:http", "outbound")) as sock:
            await sockets.send_all(sock, HONEST)
            sock.shutdown(socket.SHUT_WR)
            assert await receive_all(sock) == HONEST
        line = await port.sidecar.log.connection()
        assert (line["peer_id"], "plaintext" in line) == ("spiffe://shop.internal/web", False)
        assert line["tls_group"]


async def reads_a_request(sock: socket.socket, app: App) -> None:
    while b"\r\n\r\n" not in app.received:
        app.received += await sockets.receive(sock, 65536)
    await sockets.send_all(sock, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
    sock.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("name", [b"X-Forwarded-Client-Cert", b"x_forwarded_client_cert", b"X-FORWARDED-CLIENT-CERT"])
async def test_an_identity_header_of_a_caller_without_tls_does_not_get_through_and_none_is_added(name: bytes) -> None:
    said = b"GET / HTTP/1.1\r\nHost: api\r\n" + name + b": By=x;Hash=0;URI=spiffe://shop.internal/web\r\nA: b\r\n\r\n"
    async with permissive(handler=reads_a_request, identity_header="x-forwarded-client-cert") as port:
        with await connect(port.address) as sock:
            await sockets.send_all(sock, said)
            assert (await receive_all(sock)).endswith(b"hi")
        told = bytes(port.app.received).lower()
        assert b"a: b\r\n" in told
        assert b"spiffe" not in told
        assert b"client-cert" not in told.replace(b"_", b"-")
