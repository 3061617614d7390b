"""Real sidecars on real sockets, inside the test's own trio loop: a mesh to drive, and the lines that it logs.

A test reads as a transcript: make a :class:`MeshBed`, start sidecars with ``await bed.sidecar("api", …)``, connect, and ask
``await sidecar.log.connection()`` for the one line that each accepted socket leaves.
"""

from __future__ import annotations

import io
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import trio
import trio.testing
from OpenSSL import SSL

from sidecar.config.sidecar_yaml import (
    Admin,
    Config,
    FileIdentity,
    IdentityHeader,
    Inbound,
    Limits,
    ListenerLimits,
    Outbound,
    ProxyProtocol,
    Timeouts,
)
from sidecar.documents.address import Address
from sidecar.host.clock import utc_now
from sidecar.identity.judge import VerifyParams
from sidecar.identity.spiffe import SpiffeId
from sidecar.lifecycle.run import machinery
from sidecar.observe.logs import Log
from sidecar.policy.mesh import Mesh, parse_mesh
from sidecar.policy.names import Target
from sidecar.proxy.node import Node, Snapshot
from sidecar.proxy.server import Server
from sidecar.relay.poller import Poller
from sidecar.relay.relay import Relay
from sidecar.relay.strand import run
from sidecar.transport import sockets, tls, tls_data
from sidecar.transport.handshake import shake_hands
from sidecar.transport.http1 import Routes
from sidecar.transport.stream import SecureStream
from tests.beds.certificates import Authority, Credential, key_pair
from tests.beds.patience import PATIENCE

MESH = """
trust_domain: shop.internal
services:
  web: {}
  api: {ports: {http: 8080, metrics: 9090}}
  db: {ports: 5432}
  reporting: {}
policy:
  - {from: web, to: "api:http"}
  - {from: web, to: "api:metrics"}
  - {from: api, to: db}
"""

TIMEOUT = 10.0
"""Seconds: the deadlines of sidecars whose test is not about them."""


class LogSink(io.StringIO):
    """Collects a sidecar's log lines, and lets a test wait for one."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, Any]] = []
        self._news = trio.lowlevel.ParkingLot()

    def write(self, text: str) -> int:
        self.lines += [json.loads(line) for line in text.splitlines() if line]
        self._news.unpark_all()
        return len(text)

    def events(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == event]

    @property
    def connections(self) -> list[dict[str, Any]]:
        return self.events("connection")

    @property
    def alarms(self) -> list[dict[str, Any]]:
        return self.events("mitm_suspected")

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(PATIENCE):
            while not condition():
                await self._news.park()

    async def connection(self, number: int = 1) -> dict[str, Any]:
        """The ``number``-th line of the access log (from 1), once it is there."""
        await self.until(lambda: len(self.connections) >= number)
        return self.connections[number - 1]


class App:
    """A plaintext TCP service. ``connections`` counts what reached it, ``received`` all bytes that did."""

    def __init__(self, listener: socket.socket, handler: Callable[[socket.socket, App], Any]) -> None:
        self.listener = listener
        self.handler = handler
        self.connections = 0
        self.received = bytearray()

    @property
    def address(self) -> Address:
        host, port = self.listener.getsockname()[:2]
        return Address(host, port)


async def echo(sock: socket.socket, app: App) -> None:
    """Sends everything back; ends when the caller does."""
    while data := await sockets.receive(sock, 65536):
        app.received += data
        await sockets.send_all(sock, data)
    sock.shutdown(socket.SHUT_WR)


class RunningSidecar:
    """A sidecar that serves. ``stop`` drains it; ``stopped`` is set when it has."""

    def __init__(self, server: Server, sink: LogSink) -> None:
        self.server = server
        self.node = server.node
        self.log = sink
        self.stop = trio.Event()
        self.stopped = trio.Event()

    def address(self, port: str, direction: str = "inbound") -> Address:
        """Where the listener of a port is; ``outbound`` ones are named by their target, ``api:http``."""
        for listener in self.server.listeners:
            if listener.direction == direction and port in (listener.port, listener.upstream):
                return Address(*listener.address)
        raise LookupError(port)

    async def drained(self) -> Counter[str]:
        """Ends it once all connections in its backlogs are accepted; returns how many ended for each reason, those
        included whose lines were folded into summaries."""
        await trio.testing.wait_all_tasks_blocked()
        self.stop.set()
        with trio.fail_after(PATIENCE):
            await self.stopped.wait()
        ended: Counter[str] = Counter()
        for line in self.log.lines:
            if line["event"] in ("connection", "connection_summary"):
                ended[line["reason"]] += line.get("count", 1)
        assert ended.total() == self.node.metrics.ended.total()
        return ended


class MeshBed:
    """A mesh under test: its CA, its policy, its sidecars and apps. Made by :func:`mesh_bed`."""

    def __init__(self, nursery: trio.Nursery, mesh: str = MESH, authority: Authority | None = None) -> None:
        self.authority = authority or Authority()
        self.mesh: Mesh = parse_mesh(mesh, "mesh.yaml")
        self.nursery = nursery

    def keys(self, credential: Credential) -> tls.KeyPair:
        return key_pair(credential if credential.roots else credential.trusting(*self.authority.roots))

    async def app(self, handler: Callable[[socket.socket, App], Any] = echo) -> App:
        """Starts a plaintext service on a free port."""
        app = App(sockets.listen("test", "127.0.0.1", 0), handler)
        self.nursery.start_soon(self.serve_app, app)
        return app

    async def serve_app(self, app: App) -> None:
        """For an app with a listener of its own: lasts until the bed's end."""
        with app.listener:
            async with trio.open_nursery() as nursery:
                while True:
                    await trio.lowlevel.wait_readable(app.listener)
                    sock, _ = app.listener.accept()
                    sock.setblocking(False)
                    app.connections += 1
                    nursery.start_soon(self._one, app, sock)

    @staticmethod
    async def _one(app: App, sock: socket.socket) -> None:
        with sock:
            try:
                await app.handler(sock, app)
            except OSError:
                return  # the caller went away

    async def sidecar(
        self,
        service: str,
        *,
        inbound: Sequence[Inbound] = (),
        outbound: Sequence[Outbound] = (),
        credential: Credential | None = None,
        timeouts: Timeouts | None = None,
        limits: Limits | None = None,
        keep: int = 256,
        clock: Callable[[], datetime] = utc_now,
        poller: Poller | None = None,
        own: Routes | None = None,
    ) -> RunningSidecar:
        """Starts a sidecar with a certificate of its own, unless told which. ``own``: what its ``mesh-admin`` answers."""
        sink = LogSink()
        nowhere = Path("sidecar.yaml")
        config = Config(
            path=nowhere,
            service=service,
            mesh=self.mesh,
            mesh_path=Path("mesh.yaml"),
            identity=FileIdentity(nowhere, nowhere, nowhere),
            inbound=tuple(inbound),
            outbound=tuple(outbound),
            admin=None if own is None else Admin(nowhere, mesh_listen=ANYWHERE),
            timeouts=timeouts or Timeouts(handshake=TIMEOUT, connect=TIMEOUT, drain=TIMEOUT),
            limits=limits or Limits(connections=10_000),
            keep=keep,
            log_format="json",
        )
        credential = credential or self.authority.leaf(service)
        params = VerifyParams(self.mesh.trust_domain, max_leaf_ttl=self.mesh.max_leaf_ttl)
        snapshot = Snapshot(self.mesh.identity(service), self.mesh, tls.Context(self.keys(credential), params))
        node = Node(config, snapshot, Log(sink, "json"), clock, Relay(tls_data.make_buffer, poller))
        running = RunningSidecar(Server(node), sink)
        await self.nursery.start(self._serve, running, own or {})
        return running

    async def _serve(
        self, running: RunningSidecar, own: Routes, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async with machinery(running.node), trio.open_nursery() as nursery:
            nursery.start_soon(running.server.own_app.run, own)
            task_status.started()
            await running.server.serve(running.stop)
            nursery.cancel_scope.cancel()
        running.stopped.set()

    async def pair(
        self, app: App | None = None, port: str = "http", **options: Any
    ) -> tuple[RunningSidecar, RunningSidecar, Address]:
        """The usual mesh: web's sidecar, api's sidecar before ``app``, and where web's app calls it. ``options`` are
        those of both listeners, see :func:`inbound`."""
        app = app or await self.app()
        api = await self.sidecar("api", inbound=[inbound(port, app.address, **options)])
        web = await self.sidecar("web", outbound=[outbound("api", port, api.address(port), **options)])
        return web, api, web.address(f"api:{port}", "outbound")


@asynccontextmanager
async def mesh_bed(mesh: str = MESH, authority: Authority | None = None) -> AsyncIterator[MeshBed]:
    """A :class:`MeshBed` whose sidecars and apps end with the block."""
    async with trio.open_nursery() as nursery:
        yield MeshBed(nursery, mesh, authority)
        nursery.cancel_scope.cancel()


ANYWHERE = Address("127.0.0.1", 0)


def inbound(
    port: str,
    *apps: Address,
    require_alpn: bool = False,
    tolerate_missing_close_notify: bool = False,
    idle_timeout: float | None = None,
    max_age: float = timedelta(days=1).total_seconds(),
    proxy_protocol: ProxyProtocol = "off",
    identity_header: IdentityHeader = "off",
    most: int | None = None,
    until: date | None = None,
    server_first: bool = False,
) -> Inbound:
    """An inbound port on a free address of loopback. ``until``: it is permissive until that day."""
    return Inbound(
        port=port,
        listen=ANYWHERE,
        apps=apps or (Address("127.0.0.1", 9),),
        require_alpn=require_alpn,
        tolerate_missing_close_notify=tolerate_missing_close_notify,
        idle_timeout=idle_timeout,
        max_age=max_age,
        proxy_protocol=proxy_protocol,
        identity_header=identity_header,
        limits=ListenerLimits(most),
        mode="strict" if until is None else "permissive",
        until=until,
        server_first=server_first,
    )


def outbound(
    service: str,
    port: str,
    *peers: Address,
    listen: Address = ANYWHERE,
    allow_from: Sequence[Any] = (),
    device: str | None = None,
    require_alpn: bool = False,
    tolerate_missing_close_notify: bool = False,
    idle_timeout: float | None = None,
    max_age: float = timedelta(days=1).total_seconds(),
    ambiguous_with: Sequence[Target] = (),
    most: int | None = None,
) -> Outbound:
    """An outbound listener on a free address of loopback."""
    return Outbound(
        target=Target(service, port),
        listen=listen,
        peers=peers,
        allow_from=tuple(allow_from),
        device=device,
        ambiguous_with=tuple(ambiguous_with),
        require_alpn=require_alpn,
        tolerate_missing_close_notify=tolerate_missing_close_notify,
        idle_timeout=idle_timeout,
        max_age=max_age,
        limits=ListenerLimits(most),
    )


async def connect(address: Address) -> socket.socket:
    """A plaintext connection to an address."""
    with trio.fail_after(PATIENCE):
        return await sockets.connect(socket.AF_INET, (address.host, address.port))


async def receive_all(sock: socket.socket) -> bytes:
    """Everything until the clean end of the stream; a reset raises ConnectionResetError."""
    data = bytearray()
    with trio.fail_after(PATIENCE):
        while more := await sockets.receive(sock, 65536):
            data += more
    return bytes(data)


class Foreigner:
    """A TLS peer that is not ours: plain pyOpenSSL over a socket, as lenient as OpenSSL alone is, so it can attack.

    It verifies nobody. ``alert`` holds OpenSSL's error text after the other side refused it.
    """

    def __init__(
        self,
        sock: socket.socket,
        credential: Credential | None,
        *,
        server: bool = False,
        alpn: Sequence[bytes] = (b"mesh/1/http",),
        configure: Callable[[SSL.Context], None] = lambda context: None,
    ) -> None:
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_cipher_list(b"DEFAULT:@SECLEVEL=0")  # it may show weak keys
        if credential is not None:
            context.use_certificate(credential.chain[0])
            for issuer in credential.chain[1:]:
                context.add_extra_chain_cert(issuer)
            context.use_privatekey(credential.key)
        if server:
            context.set_verify(SSL.VERIFY_PEER, lambda *_: True)
            if alpn:
                context.set_alpn_select_callback(lambda _, offered: next((one for one in alpn if one in offered), b""))
        configure(context)
        self.sock = sock
        self.tls: Any = SSL.Connection(context, None)
        if server:
            self.tls.set_accept_state()
        else:
            self.tls.set_connect_state()
            if alpn:
                self.tls.set_alpn_protos(list(alpn))
        self.alert: str | None = None

    async def flush(self) -> None:
        """Sends what TLS has to send."""
        while True:
            try:
                data = self.tls.bio_read(65536)
            except SSL.WantReadError:
                return
            await sockets.send_all(self.sock, data)

    async def _drive(self, operation: Callable[[], Any]) -> Any:
        with trio.fail_after(PATIENCE):
            while True:
                try:
                    result = operation()
                except SSL.WantReadError:
                    await self.flush()
                    data = await sockets.receive(self.sock, 65536)
                    if not data:
                        raise EOFError("the other side closed without close_notify") from None
                    self.tls.bio_write(data)
                except SSL.Error as error:
                    self.alert = str(error.args[0][0][2]) if error.args and error.args[0] else str(error)
                    await self.flush()
                    raise
                else:
                    await self.flush()
                    return result

    async def handshake(self) -> None:
        await self._drive(self.tls.do_handshake)

    async def send(self, data: bytes) -> None:
        await self._drive(lambda: self.tls.sendall(data))

    async def receive(self, limit: int = 65536) -> bytes:
        """Decrypted bytes; b"" at close_notify; EOFError without one; SSL.Error at an alert."""
        try:
            data: bytes = await self._drive(lambda: self.tls.recv(limit))
        except SSL.ZeroReturnError:
            return b""
        return data

    async def verdict(self) -> str:
        """The callee's verdict frame."""
        size = (await self.receive(1))[0]
        return (await self.receive(size)).decode()

    async def close(self) -> None:
        """Sends close_notify."""
        self.tls.shutdown()
        await self.flush()


@asynccontextmanager
async def secure_pair(
    configure: Callable[[SSL.Context], None] = lambda _: None,
) -> AsyncIterator[tuple[SecureStream, SecureStream]]:
    """A CA's end and a caller's, who shows no certificate, after their handshake; over TCP on loopback. ``configure``: the
    caller's OpenSSL."""
    mesh = Authority()
    here = tls.Context(key_pair(mesh.leaf("mesh/ca")), VerifyParams("shop.internal", anonymous=True))
    there = tls.Context(mesh.roots, VerifyParams("shop.internal"))
    configure(there._ssl)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        calling = socket.create_connection(listener.getsockname())
        called, _ = listener.accept()
    ends = (
        (called, here.server("http/1.1", utc_now)),
        (calling, there.client("http/1.1", SpiffeId("shop.internal", ("mesh", "ca")), utc_now)),
    )
    try:
        async with trio.open_nursery() as nursery:
            for sock, channel in ends:
                sockets.prepare(sock)
                nursery.start_soon(run, shake_hands(sock, channel))
        yield SecureStream(*ends[0]), SecureStream(*ends[1])
    finally:
        for sock, _ in ends:
            sockets.hard_close(sock)
