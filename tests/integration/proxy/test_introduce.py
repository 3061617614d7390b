"""The app learns who calls before it gets a byte: each stream anew, no other way round, and never at ``mesh-admin``."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.serialization import Encoding
from trio.testing import MockClock, wait_all_tasks_blocked

from sidecar.config.sidecar_yaml import IdentityHeader, MeshPort, ProxyProtocol
from sidecar.documents.address import Address
from sidecar.identity.reasons import Reason, Refused
from sidecar.identity.spiffe import SpiffeId
from sidecar.policy.names import ADMIN_PORT
from sidecar.proxy import introduce as introduce_module
from sidecar.proxy.introduce import duplex_for, introduce
from sidecar.proxy.peer import VerifiedPeer
from sidecar.proxy.waiting import ask_app
from sidecar.relay.duplex import Duplex
from sidecar.relay.http_duplex import HttpDuplex
from sidecar.relay.strand import Steps, run
from sidecar.transport import sockets
from sidecar.transport.dial import Upstream
from sidecar.transport.proxy_protocol import LOCAL
from tests.beds.mesh import (
    ANYWHERE,
    App,
    Foreigner,
    MeshBed,
    RunningSidecar,
    connect,
    inbound,
    mesh_bed,
    outbound,
    receive_all,
)
from tests.beds.patience import PATIENCE
from tests.beds.simulation import fake_buffers
from tests.unit.transport.test_proxy_protocol import parse


class Swallow:
    """An app that keeps each connection's bytes apart, and answers with one."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []

    async def __call__(self, sock: socket.socket, _: App) -> None:
        heard = b""
        while data := await sockets.receive(sock, 65536):
            heard += data
        self.heard.append(heard)
        await sockets.send_all(sock, b".")


async def call(entry: Address, said: bytes) -> None:
    with await connect(entry) as client:
        await sockets.send_all(client, said)
        client.shutdown(socket.SHUT_WR)
        assert await receive_all(client) == b"."


async def test_each_stream_of_a_kept_channel_is_introduced_and_its_bytes_are_nobody_s() -> None:
    async with mesh_bed() as bed:
        swallow = Swallow()
        app = await bed.app(swallow)
        api, entry = await pair(bed, app, "tls")
        for said in (b"one", b"two", b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x00"):
            await call(entry, said)
        reused = [(await api.log.connection(number))["reused"] for number in (1, 2, 3)]
        assert reused == [False, True, True]
        for heard, said in zip(swallow.heard, (b"one", b"two"), strict=False):
            read = parse(heard)
            assert (read.inside[0x22], read.rest) == (b"web", said)
            assert read.tlvs[0xE0] == b"spiffe://shop.internal/web"
            assert read.destination == (api.address("http").host, api.address("http").port)
        forged = parse(swallow.heard[2])
        assert forged.rest.startswith(b"\r\n\r\n"), "a header of the caller's is a byte like any other, after ours"
        lines = [await api.log.connection(number) for number in (1, 2)]
        assert [(line["bytes_to_app"], line["bytes_from_app"]) for line in lines] == [(3, 1), (3, 1)]


async def pair(bed: MeshBed, app: App, mode: ProxyProtocol) -> tuple[RunningSidecar, Address]:

    api = await bed.sidecar("api", inbound=[inbound("http", app.address, proxy_protocol=mode)])
    web = await bed.sidecar("web", outbound=[outbound("api", "http", api.address("http"))])
    return api, web.address("api:http", "outbound")


@pytest.mark.parametrize("mode", ["off", "conn", "tls-full"])
async def test_a_foreign_caller_is_introduced_too_by_what_was_judged(mode: ProxyProtocol) -> None:
    async with mesh_bed() as bed:
        swallow = Swallow()
        app = await bed.app(swallow)
        api = await bed.sidecar("api", inbound=[inbound("http", app.address, proxy_protocol=mode)])
        caller = Foreigner(await connect(api.address("http")), bed.authority.leaf("web"), alpn=())
        with caller.sock:
            await caller.handshake()
            await caller.send(b"hello")
            await caller.close()
            assert await caller.receive() == b"."
            own = caller.sock.getsockname()
        (heard,) = swallow.heard
        if mode == "off":
            assert heard == b"hello"
            return
        read = parse(heard)
        assert (read.source, read.rest) == (own, b"hello")
        if mode == "tls-full":
            assert read.inside[0x28] == caller.tls.get_certificate().to_cryptography().public_bytes(Encoding.DER)
        else:
            assert read.tlvs == {}


async def test_who_is_refused_is_not_introduced() -> None:
    async with mesh_bed() as bed:
        swallow = Swallow()
        app = await bed.app(swallow)
        api = await bed.sidecar("api", inbound=[inbound("http", app.address, proxy_protocol="tls")])
        caller = Foreigner(await connect(api.address("http")), bed.authority.leaf("reporting"))
        with caller.sock:
            await caller.handshake()
            assert await caller.verdict() == "policy_denied"
        assert app.connections == 0


# -- an app that does not take it -----------------------------------------------------------------------------------------


@contextmanager
def ends() -> Iterator[tuple[socket.socket, socket.socket, socket.socket]]:
    """The caller's socket; the app's, which takes nothing; and the app."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        net = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    app, reader = socket.socketpair()
    with net, theirs, app, reader:
        app.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                app.send(bytes(65536))
        yield net, app, reader


PEER = VerifiedPeer(svid=type("", (), {"id": SpiffeId("shop.internal", ("web",))})(), path=(b"DER",), anchor=b"")


async def test_an_app_that_does_not_take_it_has_a_deadline(autojump_clock: MockClock) -> None:
    told: list[str] = []

    def waits() -> Steps[None]:
        told.append("waits")
        return
        yield

    with ends() as (net, app, _):
        port = inbound("http", proxy_protocol="tls")
        with pytest.raises(Refused) as refused:
            await run(introduce(port, PEER, net, app, trio.current_time() + 5, waits))
        assert refused.value.reason is Reason.CONNECT_FAILED
        assert "did not take" in refused.value.detail
        assert told == ["waits"], "the caller heard that its open was read"
        assert app.fileno() == -1


async def test_one_that_takes_it_late_gets_it() -> None:
    def waits() -> Steps[None]:
        return
        yield

    with ends() as (net, app, reader):
        port = inbound("http", proxy_protocol="tls")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, introduce(port, PEER, net, app, trio.current_time() + 60, waits))
            await wait_all_tasks_blocked()
            heard = b""
            reader.setblocking(False)
            while not heard.endswith(b"spiffe://shop.internal/web"):
                await trio.lowlevel.wait_readable(reader)
                heard = heard[-1000:] + reader.recv(65536)
        assert app.fileno() != -1


def nothing() -> Steps[None]:
    return
    yield


async def test_an_app_that_is_gone_and_a_caller_that_is_gone() -> None:
    port = inbound("http", proxy_protocol="conn")
    with ends() as (net, app, reader):
        reader.close()
        with pytest.raises(Refused, match="lost the app") as refused:
            await run(introduce(port, PEER, net, app, trio.current_time() + 5, nothing))
        assert refused.value.reason is Reason.CONNECT_FAILED
    with ends() as (net, app, _):
        net.close()
        with pytest.raises(Refused) as refused:
            await run(introduce(port, PEER, net, app, trio.current_time() + 5, nothing))
        assert refused.value.reason is Reason.CLIENT_RESET
        assert app.fileno() == -1


async def test_a_certificate_that_is_too_long_is_refused_by_name() -> None:
    long = VerifiedPeer(PEER.svid, (bytes(5000),), b"")
    with ends() as (net, app, _), pytest.raises(Refused, match="proxy_protocol"):
        await run(introduce(inbound("http", proxy_protocol="tls-full"), long, net, app, 1e9, nothing))


async def test_the_sidecar_s_own_port_is_never_introduced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(introduce_module, "header", lambda *_: pytest.fail("it has no app"))
    with ends() as (net, app, _):
        own = MeshPort(port=ADMIN_PORT, listen=ANYWHERE)
        await run(introduce(own, PEER, net, app, 0, nothing))
        assert app.fileno() != -1


async def test_the_trial_of_a_waiting_listener_names_nobody() -> None:
    for mode, expected in (("tls", LOCAL), ("off", b"")):
        async with mesh_bed() as bed:
            swallow = Swallow()
            app = await bed.app(swallow)
            port = inbound("http", app.address, proxy_protocol=mode)  # type: ignore[arg-type]
            api = await bed.sidecar("api", inbound=[port])
            assert await ask_app(api.node, port, Upstream("app", port.apps, api.node.resolver, ())) is None
            with trio.fail_after(PATIENCE):
                while not swallow.heard:
                    await trio.lowlevel.checkpoint()
            assert swallow.heard == [expected]


# -- in each HTTP request ---------------------------------------------------------------------------------------------------

NAMES: IdentityHeader = "x-forwarded-client-cert"
OWN = SpiffeId("shop.internal", ("api",))
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def answer_each(sock: socket.socket, app: App) -> None:
    """One request a read, as its caller waits for the answer."""
    while data := await sockets.receive(sock, 65536):
        app.received += data
        await sockets.send_all(sock, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def names_in(received: bytes) -> list[bytes]:
    return [line for line in received.split(b"\r\n") if line.lower().startswith(b"x-forwarded-client-cert")]


async def ask(client: socket.socket, request: bytes = GET) -> bytes:
    await sockets.send_all(client, request)
    heard = b""
    with trio.fail_after(PATIENCE):
        while not heard.endswith(b"ok"):
            heard += await sockets.receive(client, 65536)
    return heard


async def named(bed: MeshBed, app: App, **more: Any) -> tuple[RunningSidecar, RunningSidecar, Address]:
    api = await bed.sidecar("api", inbound=[inbound("http", app.address, identity_header=NAMES, **more)])
    web = await bed.sidecar("web", outbound=[outbound("api", "http", api.address("http"))])
    return web, api, web.address("api:http", "outbound")


def test_only_a_port_that_says_so_pays_for_it() -> None:
    assert duplex_for(inbound("http"), OWN, PEER) is Duplex
    assert duplex_for(MeshPort(port=ADMIN_PORT, listen=ANYWHERE), OWN, PEER) is Duplex


async def test_who_has_no_identity_is_not_named_and_names_nobody() -> None:
    """A caller without TLS: for it ``duplex_for`` gets None."""
    for peer, names in ((PEER, 1), (None, 0)):
        made = duplex_for(inbound("http", identity_header=NAMES), OWN, peer)
        duplex = made(None, fake_buffers(64))
        assert isinstance(duplex, HttpDuplex)
        exchanges = duplex._http._exchanges
        exchanges.receive(GET[:-2] + b"x_forwarded_client_cert: URI=spiffe://shop.internal/admin\r\n\r\n")
        exchanges.advance()
        found = names_in(bytes(exchanges.to_app))
        assert len(found) == names
        if peer is not None:
            digest = sha256(b"DER").hexdigest()
            element = f"By=spiffe://shop.internal/api;Hash={digest};URI=spiffe://shop.internal/web"
            assert found == [f"X-Forwarded-Client-Cert: {element}".encode()]


async def test_each_request_names_its_caller_and_the_channel_is_kept() -> None:
    async with mesh_bed() as bed:
        app = await bed.app(answer_each)
        web, api, entry = await named(bed, app)
        for number in (1, 2, 3):
            with await connect(entry) as client:
                await ask(client)
                await ask(client, GET.replace(b"Host", b"Connection: close\r\nHost"))
                assert await receive_all(client) == b""
            line = await api.log.connection(number)
            assert (line["reason"], line["reused"]) == ("ok", number > 1)
            assert line["bytes_from_app"] == 2 * len(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            assert (await web.log.connection(number))["reason"] == "ok"
        assert len(names_in(bytes(app.received))) == 6
        assert len(set(names_in(bytes(app.received)))) == 1


async def test_both_at_once() -> None:
    async with mesh_bed() as bed:
        app = await bed.app(answer_each)
        _, _, entry = await named(bed, app, proxy_protocol="tls")
        with await connect(entry) as client:
            await sockets.send_all(client, GET)
            client.shutdown(socket.SHUT_WR)
            await receive_all(client)
        read = parse(bytes(app.received))
        assert read.tlvs[0xE0] == b"spiffe://shop.internal/web"
        assert len(names_in(read.rest)) == 1


async def test_an_idle_connection_ends_with_the_drain_and_a_changed_policy_cuts_it() -> None:
    async with mesh_bed() as bed:
        app = await bed.app(answer_each)
        _, api, entry = await named(bed, app)
        with await connect(entry) as client:
            await ask(client)
            (live,) = [one for one in api.node.registry._live if one.carried]
            live.cut(Reason.POLICY_CHANGED)
            with pytest.raises(ConnectionResetError):
                await receive_all(client)
        assert (await api.log.connection())["reason"] == "policy_changed"
        with await connect(entry) as client:
            await ask(client)
            ended = await api.drained()
            assert ended["drained"] == 1
