"""That a pair keeps the conditions, seen on the wire and by trying, before anything of it is measured. Assumes nothing.

A pair is started with a tap between its proxies, in the very configuration that is measured later (but for one port):

* the hellos of two connections, one after the other, tell version, cipher and group; if ``cold``, also that there are two
  of them, and that no session is resumed;
* a client with the caller's certificate is let in at the callee's proxy, one with another service's or with none is not;
* a server with the callee's certificate is spoken to by the caller's proxy, one with another service's is told nothing.

Each refusal stands beside its control, so that no refusal is of our clumsiness.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import trio
from OpenSSL import SSL

from tests.bench.contestants import CALLEE, CALLER, CIPHER, STRANGER, Certificates
from tests.bench.errors import BenchError
from tests.bench.hello import Negotiated, read_hellos
from tests.bench.pairs import ANSWER_SECONDS, Pair, get, is_success, request, try_get

T = TypeVar("T")

SETTLE_SECONDS = 0.1
"""For a proxy to put by what it keeps of a connection."""

_KEPT = 64 * 1024
_READ = 64 * 1024
IMPOSTOR_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Proof:
    """``channels``: how many connections between the proxies carried two of the caller's, one after the other."""

    negotiated: Negotiated
    channels: int

    def __str__(self) -> str:
        return f"{self.negotiated}{', keeps channels' if self.channels == 1 else ''}"


async def prove(pair: Pair, tap: Tap, certificates: Certificates) -> Proof:
    """What the pair negotiates. Raises :class:`BenchError` naming the condition that it does not keep."""
    tap.aim(pair.http.between)
    for _ in range(2):
        await get(pair.http.entrance)
        await trio.sleep(SETTLE_SECONDS)
    channels = len(tap.recordings)
    found = [read_hellos(bytes(one.from_client), bytes(one.from_server)) for one in tap.recordings]
    for negotiated in found:
        expected = Negotiated("TLS 1.3", CIPHER, pair.group, resumes=pair.mode == "run" and negotiated.resumes)
        if negotiated != expected:
            raise BenchError(f"{pair.label} negotiated {negotiated} instead of {expected}")
    if pair.mode == "cold" and channels != 2:
        raise BenchError(f"{pair.label} carried two connections over {channels} between its proxies")
    await _prove_callee(pair, certificates)
    await _prove_caller(pair, tap, certificates)
    return Proof(found[-1], channels)


async def _prove_callee(pair: Pair, certificates: Certificates) -> None:
    for service, welcome in ((CALLER, True), (STRANGER, False), (None, False)):
        answer = await ask(pair.http.between, _context(certificates, service))
        if is_success(answer) is not welcome:
            who = f"the certificate of {service}" if service else "no certificate"
            raise BenchError(f"{pair.label}: the callee's proxy {_did(welcome)} a client with {who}")


async def _prove_caller(pair: Pair, tap: Tap, certificates: Certificates) -> None:
    for service, welcome in ((CALLEE, True), (STRANGER, False)):
        impostor = Impostor(_context(certificates, service))
        async with trio.open_nursery() as nursery:
            tap.aim(await nursery.start(impostor.serve))
            answer = await try_get(pair.http.entrance)
            nursery.cancel_scope.cancel()
        if is_success(answer) is not welcome or bool(impostor.heard) is not welcome:
            raise BenchError(
                f"{pair.label}: the caller's proxy {_did(welcome)} a server with the certificate of {service}"
            )


def _did(welcome: bool) -> str:
    return "refused" if welcome else "spoke to"


# -- the tap -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Recording:
    """The beginnings of one connection's two directions."""

    from_client: bytearray
    from_server: bytearray


class Tap:
    """Carries bytes between the two proxies, unchanged, and keeps the first of them."""

    def __init__(self) -> None:
        self._target = 0
        self._carrying: set[trio.CancelScope] = set()
        self.recordings: list[Recording] = []

    def aim(self, port: int) -> None:
        """Leads to this port from now on. What it carries is cut, or a kept channel would go on to where it led before."""
        self._target = port
        for scope in self._carrying:
            scope.cancel()

    async def serve(self, port: int, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED) -> None:
        await trio.serve_tcp(self._carry, port, host="127.0.0.1", task_status=task_status)

    async def _carry(self, client: trio.SocketStream) -> None:
        recording = Recording(bytearray(), bytearray())
        self.recordings.append(recording)
        with trio.CancelScope() as scope:
            self._carrying.add(scope)
            try:
                async with (
                    await trio.open_tcp_stream("127.0.0.1", self._target) as server,
                    trio.open_nursery() as nursery,
                ):
                    nursery.start_soon(_pump, client, server, recording.from_client)
                    nursery.start_soon(_pump, server, client, recording.from_server)
            except OSError:
                return
            finally:
                self._carrying.discard(scope)


async def _pump(source: trio.SocketStream, sink: trio.SocketStream, kept: bytearray) -> None:
    try:
        async for data in source:
            kept += data[: max(0, _KEPT - len(kept))]
            await sink.send_all(data)
        await sink.send_eof()
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(sink)


# -- a client and a server that may be the wrong ones ------------------------------------------------------------------


async def ask(port: int, context: SSL.Context) -> bytes:
    """What is answered to a request over TLS; nothing if we are refused."""
    connection = SSL.Connection(context, None)
    connection.set_connect_state()
    answer = b""
    with trio.move_on_after(ANSWER_SECONDS):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            tls = _Tls(connection, stream)
            try:
                await tls.drive(connection.do_handshake)
                await tls.drive(lambda: connection.send(request(close=True)))
                while True:
                    answer += await tls.drive(lambda: connection.recv(_READ))
            except (SSL.Error, OSError, trio.BrokenResourceError):
                return answer
    return answer


class Impostor:
    """A server that takes anybody, and answers success to whatever it is told. ``heard`` is what it was told."""

    def __init__(self, context: SSL.Context) -> None:
        self._context = context
        self.heard = b""

    async def serve(self, *, task_status: trio.TaskStatus[int]) -> None:
        """Starts with the port on which it listens."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        task_status.started(listeners[0].socket.getsockname()[1])
        await trio.serve_listeners(self._answer, listeners)

    async def _answer(self, stream: trio.SocketStream) -> None:
        connection = SSL.Connection(self._context, None)
        connection.set_accept_state()
        async with stream:
            tls = _Tls(connection, stream)
            try:
                await tls.drive(connection.do_handshake)
                self.heard += await tls.drive(lambda: connection.recv(_READ))
                await tls.drive(lambda: connection.send(IMPOSTOR_ANSWER))
                connection.shutdown()
                await tls.flush()
            except (SSL.Error, OSError, trio.BrokenResourceError):
                return


class _Tls:
    """A TLS connection over memory, driven over a stream."""

    def __init__(self, connection: SSL.Connection, stream: trio.SocketStream) -> None:
        self._connection, self._stream = connection, stream

    async def drive(self, step: Callable[[], T]) -> T:
        """Repeats a step until it needs nothing more from the peer. Raises SSL.Error at any end."""
        while True:
            try:
                result = step()
            except SSL.WantReadError:
                await self.flush()
                data = await self._stream.receive_some(_READ)
                if not data:
                    raise SSL.SysCallError(-1, "the peer closed") from None
                self._connection.bio_write(data)
            except SSL.Error:
                await self.flush()
                raise
            else:
                await self.flush()
                return result

    async def flush(self) -> None:
        while True:
            try:
                data = self._connection.bio_read(_READ)
            except SSL.WantReadError:
                return
            await self._stream.send_all(data)


def _context(certificates: Certificates, service: str | None) -> SSL.Context:
    """Takes any peer. Shows the service's certificate, or none."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_verify(SSL.VERIFY_NONE)
    if service is not None:
        context.use_certificate_chain_file(str(certificates.chain(service)))
        context.use_privatekey_file(str(certificates.key(service)))
    return context
