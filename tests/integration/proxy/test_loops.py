"""Sidecars whose ``peers`` name a plaintext listener: recognised before a loop has grown; apps that speak TLS pass."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from sidecar.documents.address import Address
from sidecar.identity.reasons import Reason, Refused
from sidecar.proxy.loops import FIRST_BYTES_SECONDS, SUSPECT_SECONDS, LoopGuard
from sidecar.transport import sockets
from tests.beds import mesh as harness
from tests.beds.mesh import App, Foreigner, MeshBed, RunningSidecar, connect, mesh_bed
from tests.beds.patience import PATIENCE
from tests.beds.relay import tcp_pair
from tests.unit.transport.test_client_hello import hello

MESH = """
trust_domain: shop.internal
services:
  web: {ports: {http: 8080}}
  api: {ports: {http: 8080}}
  db: {ports: {http: 8080}}
policy:
  - {from: web, to: "api:http"}
  - {from: api, to: "db:http"}
  - {from: db, to: "web:http"}
  - {from: api, to: "web:http"}
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


async def ring(bed: MeshBed, *services: str) -> list[RunningSidecar]:
    """Sidecars that call each other round, each at the plaintext listener of the next."""
    entries = [Address("127.0.0.1", free_port()) for _ in services]
    return [
        await bed.sidecar(
            service,
            outbound=[
                harness.outbound(services[after], "http", entries[after], listen=entries[number]),
            ],
        )
        for number, service in enumerate(services)
        for after in [(number + 1) % len(services)]
    ]


def is_idle(sidecar: RunningSidecar) -> bool:
    return len(sidecar.node.registry) == 0


async def is_reset(entry: Address) -> None:
    with await connect(entry) as client, trio.fail_after(PATIENCE), pytest.raises(ConnectionResetError):
        await sockets.receive(client, 1)


@pytest.mark.parametrize("services", [("web", "api"), ("web", "api", "db")])
async def test_sidecars_that_call_each_other_s_plaintext_listeners(services: tuple[str, ...]) -> None:
    """801 connections in 0.8 s were seen."""
    async with mesh_bed(MESH) as bed:
        sidecars = await ring(bed, *services)
        for _ in range(3):
            await is_reset(Address(*sidecars[0].server.listeners[0].address))
        for sidecar in sidecars:
            await sidecar.log.until(partial(is_idle, sidecar))
        lines = [line for sidecar in sidecars for line in sidecar.log.connections]
        assert len(lines) < 60
        loops = [line for line in lines if "would loop" in (line["message"] or "")]
        assert loops
        assert {line["reason"] for line in loops} == {"connect_failed"}
        assert "correct the `peers` of that sidecar: they must name an `inbound` listener" in loops[0]["message"]
        assert {line["reason"] for line in lines} <= {"connect_failed", "handshake_failed", "client_reset"}
        assert not any(sidecar.log.alarms for sidecar in sidecars)


async def test_one_that_is_misdirected_hears_no_other_service() -> None:
    """No loop: the second sidecar's own peers are right. Its app's entry is no place for another service's calls."""
    async with mesh_bed(MESH) as bed:
        app = await bed.app()
        db = await bed.sidecar("db", inbound=[harness.inbound("http", app.address)])
        api = await bed.sidecar("api", outbound=[harness.outbound("db", "http", db.address("http"))])
        web = await bed.sidecar("web", outbound=[harness.outbound("api", "http", api.address("db:http", "outbound"))])
        await is_reset(web.address("api:http", "outbound"))
        assert (await web.log.connection())["reason"] in {"handshake_failed", "unexpected_peer"}


async def test_after_a_sidecar_has_called_nobody_is_dialled_for_the_next(mock_clock: MockClock) -> None:
    """In a loop each connection dials the next one before its own ClientHello has arrived, and would so outrun its end."""
    async with mesh_bed() as bed:
        peer = await bed.app()
        web = await bed.sidecar("web", outbound=[harness.outbound("api", "http", peer.address)])
        entry = web.address("api:http", "outbound")
        # The first one is accepted together with its ClientHello.
        with socket.create_connection((entry.host, entry.port)) as client:
            client.sendall(hello(b"mesh/1/http"))
            assert (await web.log.connection(1))["reason"] == "connect_failed"
        await wait_all_tasks_blocked()
        dialled = peer.connections
        with await connect(entry) as client:
            await wait_all_tasks_blocked()
            await sockets.send_all(client, hello(b"mesh/1/http"))
            assert (await web.log.connection(2))["reason"] == "connect_failed"
        await wait_all_tasks_blocked()
        assert peer.connections == dialled <= 1


@pytest.mark.parametrize("protocols", [(), (b"h2",), (b"h2", b"mesh/3/http", b"my/mesh/1/")])
async def test_the_twin_an_app_that_speaks_tls_itself_passes(protocols: tuple[bytes, ...]) -> None:
    async with mesh_bed() as bed:
        ours = bed.authority.leaf("db")  # the app's own certificate: any

        async def serve(sock: socket.socket, _app: App) -> None:
            peer = Foreigner(sock, ours, server=True, alpn=protocols)
            await peer.handshake()
            await peer.send(await peer.receive())

        _, _, entry = await bed.pair(await bed.app(serve))
        caller = Foreigner(await connect(entry), None, alpn=protocols)
        with caller.sock:
            await caller.handshake()
            await caller.send(b"ping")
            assert await caller.receive() == b"ping"


@pytest.fixture
def pair() -> Any:
    with tcp_pair() as ends:
        yield ends


async def test_a_guard_that_has_met_nobody_waits_for_nothing(pair: Any) -> None:
    """Otherwise each connection to a server that speaks first would be delayed."""
    guard = LoopGuard("api:http")
    assert not guard.suspects
    guard.check(pair[0])


@pytest.mark.parametrize("then", ["hello", "other", "nothing", "end", "reset"])
async def test_one_that_has_met_a_sidecar_waits_a_little(then: str, autojump_clock: MockClock) -> None:
    guard = LoopGuard("api:http")
    with tcp_pair() as (here, there):
        there.send(hello(b"mesh/1/http"))
        await trio.lowlevel.wait_readable(here)
        with pytest.raises(Refused, match="would loop") as refused:
            guard.check(here)
        assert refused.value.reason is Reason.CONNECT_FAILED
        assert len(here.recv(65536)) > 100  # nothing of it was read
    began = trio.current_time()
    acts: dict[str, Callable[[socket.socket], object]] = {
        "hello": lambda sock: sock.send(hello(b"mesh/1/x")),
        "other": lambda sock: sock.send(b"GET / HTTP/1.1\r\n"),
        "nothing": lambda _: None,
        "end": lambda sock: sock.shutdown(socket.SHUT_WR),
        "reset": sockets.hard_close,
    }
    with tcp_pair() as (here, there):
        async with trio.open_nursery() as nursery:

            async def act() -> None:
                await wait_all_tasks_blocked()
                acts[then](there)

            nursery.start_soon(act)
            if then in {"hello", "reset"}:
                with pytest.raises(Refused) as refused:
                    await guard.before_dialling(here)
                assert refused.value.reason is (Reason.CONNECT_FAILED if then == "hello" else Reason.CLIENT_RESET)
            else:
                await guard.before_dialling(here)
        waited = trio.current_time() - began
        assert waited == pytest.approx(FIRST_BYTES_SECONDS if then == "nothing" else 0)
    assert guard.suspects
    # It forgets.
    await trio.sleep(SUSPECT_SECONDS)
    assert not guard.suspects
