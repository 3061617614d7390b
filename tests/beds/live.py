"""Two sidecars that serve from files in the test's own trio loop: a test says what the files hold, and when that counts.

``async with stage(tmp_path) as made``, then ``await made.api.policy(…)``, ``await made.api.trusts(…)``,
``await made.api.is_now(…)``: each writes a file and has it reloaded, as SIGHUP does.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from sidecar.config.wiring import load_config
from sidecar.documents.address import Address
from sidecar.lifecycle.run import machinery, prepare
from sidecar.observe.logs import Log
from sidecar.transport import sockets
from tests.beds.certificates import Authority, Credential
from tests.beds.mesh import App, Foreigner, LogSink, MeshBed, connect, mesh_bed, receive_all
from tests.beds.patience import PATIENCE

MESH = """\
trust_domain: shop.internal
services:
  web: {}
  job: {}
  api: {ports: {http: 8080, metrics: 9090}}
policy:
  - {from: web, to: "api:http"}
  - {from: web, to: "api:metrics"}
  - {from: job, to: "api:http"}
"""
NO_HTTP = MESH.replace('  - {from: web, to: "api:http"}\n', "")
"""The policy after a change: web may call metrics still, and job http."""


class Live:
    """One sidecar that serves what its files say."""

    def __init__(self, path: Path, service: str, credential: Credential, body: str, mesh: str = MESH) -> None:
        self.path = path
        self.own = path / "own"
        credential.write(self.own)
        self.mesh = path / "mesh.yaml"
        self.mesh.write_text(mesh)
        file = path / "sidecar.yaml"
        file.write_text(
            f"service: {service}\nmesh: mesh.yaml\ntimeouts: {{drain: 10s}}\n"
            "identity: {files: {certificate: own/certificate.pem, key: own/key.pem, bundle: own/bundle.pem}}\n" + body
        )
        self.log = LogSink()
        self.server, self.reloader = prepare(load_config(file, {}), {}, Log(self.log, "json"))
        self.node = self.server.node
        self.stop = trio.Event()

    async def serve(self) -> None:
        async with machinery(self.node):
            await self.server.serve(self.stop)

    def address(self, name: str) -> Address:
        """Where it listens: ``http`` inbound, ``api:http`` outbound."""
        for listener in self.server.listeners:
            if name == (listener.port if listener.direction == "inbound" else listener.upstream):
                return Address(*listener.address)
        raise LookupError(name)

    async def policy(self, text: str) -> None:
        self.mesh.write_text(text)
        await self.reloader.reload()

    async def trusts(self, *authorities: Authority) -> None:
        (self.own / "bundle.pem").write_bytes(b"".join(authority.bundle_pem for authority in authorities))
        await self.reloader.reload()

    async def is_now(self, credential: Credential) -> None:
        """Gets another certificate; what it trusts stays."""
        (self.own / "certificate.pem").write_bytes(credential.chain_pem)
        (self.own / "key.pem").write_bytes(credential.key_pem)
        await self.reloader.reload()

    def said(self, event: str) -> list[str]:
        return [line["message"] for line in self.log.events(event)]

    @property
    def reasons(self) -> list[str]:
        return [line["reason"] for line in self.log.connections]


class Endings:
    """An app that sends everything back, and how each of its connections ended: ``end`` or ``reset``."""

    def __init__(self) -> None:
        self.ends: list[str] = []
        self.received = bytearray()
        self._news = trio.lowlevel.ParkingLot()

    async def __call__(self, sock: socket.socket, _app: App) -> None:
        try:
            while data := await sockets.receive(sock, 65536):
                self.received += data
                await sockets.send_all(sock, data)
            sock.shutdown(socket.SHUT_WR)
        except ConnectionResetError:
            self._add("reset")
        else:
            self._add("end")

    def _add(self, how: str) -> None:
        self.ends.append(how)
        self._news.unpark_all()

    async def until(self, *ends: str) -> None:
        with trio.fail_after(PATIENCE):
            while len(self.ends) < len(ends):
                await self._news.park()
        assert sorted(self.ends) == sorted(ends)


class Stage:
    """web's sidecar and api's, and the app behind api's two ports."""

    def __init__(self, bed: MeshBed, authority: Authority, http: Endings, metrics: Endings) -> None:
        self.bed, self.authority, self.http, self.metrics = bed, authority, http, metrics
        self.web: Live
        self.api: Live
        self.sockets: list[socket.socket] = []

    def both(self) -> Iterable[Live]:
        return self.web, self.api

    async def call(self, port: str = "http") -> socket.socket:
        """A connection of web's app to api, which has carried bytes both ways."""
        sock = await connect(self.web.address(f"api:{port}"))
        self.sockets.append(sock)
        await exchange(sock)
        return sock

    async def foreigner(self, credential: Credential, port: str = "http") -> Foreigner:
        """A handshake with api's sidecar, done."""
        sock = await connect(self.api.address(port))
        self.sockets.append(sock)
        there = Foreigner(sock, credential, alpn=[b"mesh/1/" + port.encode()])
        await there.handshake()
        return there


@asynccontextmanager
async def stage(path: Path, *, web: Credential | None = None, api: Credential | None = None) -> AsyncIterator[Stage]:
    """Both sidecars, serving; ``web`` and ``api`` are their first certificates and what they trust."""
    authority = Authority()
    http, metrics = Endings(), Endings()
    async with mesh_bed() as bed, trio.open_nursery() as nursery:
        made = Stage(bed, authority, http, metrics)
        apps = {"http": await bed.app(http), "metrics": await bed.app(metrics)}
        inbound = ", ".join(
            f'{{port: {port}, listen: "127.0.0.1:0", app: "{app.address}"}}' for port, app in apps.items()
        )
        made.api = Live(path / "api", "api", api or authority.leaf("api"), f"inbound: [{inbound}]\n")
        outbound = ", ".join(
            f'{{to: "api:{port}", listen: "127.0.0.1:0", peers: ["{made.api.address(port)}"]}}' for port in apps
        )
        made.web = Live(path / "web", "web", web or authority.leaf("web"), f"outbound: [{outbound}]\n")
        for one in made.both():
            nursery.start_soon(one.serve)
        try:
            yield made
        finally:
            for sock in made.sockets:
                sock.close()
        nursery.cancel_scope.cancel()


async def exchange(sock: socket.socket, data: bytes = b"hello") -> None:
    """Sends, and has the same back."""
    with trio.fail_after(PATIENCE):
        await sockets.send_all(sock, data)
        got = b""
        while len(got) < len(data):
            more = await sockets.receive(sock, len(data) - len(got))
            assert more, "the connection ended"
            got += more
    assert got == data


async def is_reset(sock: socket.socket) -> None:
    """Passes once the connection is reset; a clean end fails."""
    with sock, pytest.raises(ConnectionResetError):
        await receive_all(sock)


async def is_refused(connecting: Awaitable[socket.socket]) -> None:
    """Passes if a connection that is about to be made is reset, be it so soon that it never seemed to be there."""
    with pytest.raises(ConnectionResetError):
        await _read_to_end(connecting)


async def _read_to_end(connecting: Awaitable[socket.socket]) -> None:
    with await connecting as sock:
        await receive_all(sock)


async def ends_well(sock: socket.socket) -> None:
    """Ends our direction, and passes once the other has ended cleanly."""
    with sock:
        sock.shutdown(socket.SHUT_WR)
        assert await receive_all(sock) == b""
