"""Somebody else at an address where a service, or the CA, is expected.

:class:`Impostor` answers each connection by ``answer``, which a test sets: as a raw server, or by TLS with any certificate.
:class:`FalseCa` speaks HTTP as the CA does, under any certificate, and lies where it is told to.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import trio
from OpenSSL import SSL

from sidecar.documents.address import Address
from sidecar.host.clock import utc_now
from sidecar.identity.judge import VerifyParams
from sidecar.identity.reasons import Refused
from sidecar.relay.strand import run
from sidecar.transport import sockets
from sidecar.transport.handshake import shake_hands
from sidecar.transport.http1 import Handler, Peer, Request, Response, Routes, converse
from sidecar.transport.stream import BrokenStreamError, SecureStream
from sidecar.transport.tls import Context, KeyPair
from tests.beds.certificates import Credential
from tests.beds.mesh import App, Foreigner
from tests.beds.patience import PATIENCE

Answer = Callable[[socket.socket], Awaitable[None]]
STOLEN = b"bytes that nobody may get"


class Impostor:
    """Answers in a service's place; ``received`` is every plaintext byte that it got, ``alerts`` what its TLS heard."""

    def __init__(self) -> None:
        self.answer: Answer = self.hang_up
        self.received = bytearray()
        self.alerts: list[str | None] = []

    async def serve(self, sock: socket.socket, _app: App) -> None:
        """For :meth:`tests.beds.mesh.MeshBed.app`."""
        await self.answer(sock)

    async def hang_up(self, sock: socket.socket) -> None:
        """Says nothing at all."""

    def says(self, *raw: bytes) -> Answer:
        """Speaks first, plainly, and listens for the app's bytes: a ClientHello or an alert is no secret."""

        async def answer(sock: socket.socket) -> None:
            heard = b""
            for one in raw:
                await sockets.send_all(sock, one)
            while data := await sockets.receive(sock, 65536):
                heard += data
                if STOLEN in heard:
                    self.received += STOLEN

        return answer

    def shows(self, credential: Credential | None, *, frame: bytes = b"\x02ok", **options: Any) -> Answer:
        """Serves TLS with this credential: verdict, then an echo."""

        async def answer(sock: socket.socket) -> None:
            peer = Foreigner(sock, credential, server=True, **options)
            try:
                await peer.handshake()
                if peer.tls.get_alpn_proto_negotiated():
                    await peer.send(frame)
                while data := await peer.receive():
                    self.received += data
                    await peer.send(data)
                await peer.close()
            except (SSL.Error, EOFError):
                pass
            finally:
                self.alerts.append(peer.alert)

        return answer


# -- in the CA's place -------------------------------------------------------------------------------------------------


@dataclass
class FalseCa:
    """Answers at ``listener`` by the certificate that it ``shows``. ``lies``: path → what it answers there, else by
    ``truth``, the routes of a true CA; ``raw``: sent instead of any answer, and then it closes; ``answer``: does it all
    instead. ``received``: every decrypted byte that it was sent; ``asked`` every path, and ``bodies`` all that was told to
    it."""

    listener: socket.socket
    shows: KeyPair
    truth: Routes = field(default_factory=dict)
    clock: Callable[[], datetime] = utc_now
    lies: dict[str, Handler] = field(default_factory=dict)
    raw: bytes | None = None
    answer: Answer | None = None
    received: bytearray = field(default_factory=bytearray)
    connections: int = 0
    asked: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    refusals: list[Refused] = field(default_factory=list)
    _news: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    @property
    def address(self) -> Address:
        return Address(*self.listener.getsockname()[:2])

    @property
    def port(self) -> int:
        return self.address.port

    @property
    def url(self) -> str:
        return f"https://{self.address}"

    async def serve(self) -> None:
        with self.listener:
            async with trio.open_nursery() as nursery:
                while True:
                    await trio.lowlevel.wait_readable(self.listener)
                    sock, _ = self.listener.accept()
                    sockets.prepare(sock)
                    self.connections += 1
                    nursery.start_soon(self.answer or self._one, sock)

    async def _one(self, sock: socket.socket) -> None:
        channel = Context(self.shows, VerifyParams("shop.internal", anonymous=True)).server(("http/1.1",), self.clock)
        try:
            await run(shake_hands(sock, channel))
            stream = _Noting(sock, channel, self.received)
            if self.raw is None:
                await converse(stream, Peer("127.0.0.1:1", channel.svid, channel.path), self._routes(), _nobody)
            else:
                await _hear_a_request(stream)
                if self.raw:
                    await stream.send_all(self.raw)
            await stream.close()
        except Refused as refusal:
            self.refusals.append(refusal)
        except (BrokenStreamError, OSError):
            pass
        finally:
            sockets.hard_close(sock)

    async def was_asked(self, path: str, times: int) -> None:
        """Once it was, so often."""
        with trio.fail_after(PATIENCE):
            while self.asked.count(path) < times:
                await self._news.park()

    def _routes(self) -> Routes:
        told = {path: dict.fromkeys(("GET", "POST"), _no_handler) for path in self.lies}
        return {
            path: {method: self._noting(path, handler) for method, handler in methods.items()}
            for path, methods in {**told, **self.truth}.items()
        }

    def _noting(self, path: str, handler: Handler) -> Handler:
        async def answer(request: Request) -> Response:
            self.asked.append(path)
            self.bodies.append(request.body)
            self._news.unpark_all()
            return await self.lies.get(path, handler)(request)

        return answer


class _Noting(SecureStream):
    def __init__(self, sock: socket.socket, channel: Any, received: bytearray) -> None:
        super().__init__(sock, channel)
        self._received = received

    async def receive_some(self) -> bytes:
        data = await super().receive_some()
        self._received += data
        return data


def _nobody(_path: str, _status: int) -> None:
    """Observes nothing."""


async def _no_handler(_request: Request) -> Response:
    return Response(404, b"{}")


async def _hear_a_request(stream: SecureStream) -> None:
    """A head, and as much body as it announces."""
    data = b""
    while not (head := re.match(rb"(?s).*?\r\n\r\n", data)):
        if not (more := await stream.receive_some()):
            return
        data += more
    length = re.search(rb"(?i)content-length: *(\d+)", head[0])
    left = int(length[1]) - len(data[head.end() :]) if length else 0
    while left > 0 and (more := await stream.receive_some()):
        left -= len(more)


def always(status: int, said: Any, headers: Mapping[str, str] | None = None) -> Handler:
    """A lie that does not depend on the question; ``said`` is JSON, or bytes as they are."""

    async def answer(_request: Request) -> Response:
        if isinstance(said, bytes):
            return Response(status, said, headers=headers or {})
        return Response.of(status, said, headers)

    return answer


@asynccontextmanager
async def false_ca(
    shows: KeyPair, truth: Routes | None = None, *, clock: Callable[[], datetime] = utc_now, port: int = 0
) -> AsyncIterator[FalseCa]:
    """A :class:`FalseCa` for the block; ``port``: that of a CA that went down."""
    false = FalseCa(sockets.listen("test", "127.0.0.1", port), shows, truth or {}, clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(false.serve)
        with contextlib.closing(false.listener):
            yield false
        nursery.cancel_scope.cancel()
