"""A real CA on loopback and real memberships, inside the test's own trio loop, on time that the test moves.

How time goes. The test's run has trio's :class:`~trio.testing.MockClock` at rate 0, so nothing is waited for in real time:
:meth:`Time.until` lets everything run until all are blocked and no thread works (what was sent over loopback is there by
then), and only then goes on to the next deadline. The wall clock goes along, and can be set as a person or NTP sets it.

A test reads as a transcript: ``async with ca_bed(…) as bed``, ``api = bed.sidecar("api", bed.secret("api"))``, ``await
api.joins()``, ``await bed.time.passes(150)``, and ask what ``api`` has and what it said.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import h11
import pytest
import trio
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from trio.testing import MockClock, wait_all_tasks_blocked

from certs.authority import authority
from certs.protocol import enrolment
from certs.protocol.enrolment import Kind
from certs.registrar import registrar, revocations
from certs.service import serve
from certs.service.api import CaApi, RateLimits
from certs.service.serve import CaServer, Settings
from certs.store import store, writer
from sidecar.agent.agent import Agent
from sidecar.agent.credentials import Credentials
from sidecar.config.wiring import CaIdentity
from sidecar.documents.address import Address
from sidecar.identity.judge import Presented, Revocations, VerifyParams, judge
from sidecar.identity.reasons import Refused
from sidecar.identity.spiffe import SpiffeId
from sidecar.observe.logs import Log
from sidecar.policy.mesh import Mesh, load_mesh
from sidecar.transport import sockets, tls
from sidecar.transport.handshake import shake_hands
from sidecar.transport.http1 import Handler, Request, Response, Routes
from sidecar.transport.stream import BrokenStreamError, SecureStream
from tests import certificates
from tests.harness import MESH, LogSink

_T = TypeVar("_T")

TTL = timedelta(minutes=5)
"""Of the certificates here: the shortest there are, so half of a life is 150 s and a test has little to step through."""

NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME: OpenSSL goes by the machine's clock, which no test sets. What it would say of a leaf's time,
``judge`` says too, by the clock that it is given."""


class Time:
    """Called, it is the wall clock."""

    def __init__(self, clock: MockClock) -> None:
        self._clock = clock
        self._begin = datetime.now(UTC).replace(microsecond=0)
        self.offset = timedelta()

    def __call__(self) -> datetime:
        return self._begin + timedelta(seconds=self._clock.current_time()) + self.offset

    def steps(self, by: timedelta) -> None:
        """The wall clock is set, or goes on while the machine is suspended; the monotonic one knows nothing of either."""
        self.offset += by

    async def settles(self) -> None:
        """Returns when nothing goes on but waiting."""
        while True:
            await wait_all_tasks_blocked(0.002)
            if not trio.to_thread.current_default_thread_limiter().borrowed_tokens and not writer._ONE.borrowed_tokens:
                return

    async def gives_up(self, step: Callable[[], Awaitable[object]], after: float) -> None:
        """Something is cut off after some time."""
        scope = trio.CancelScope()

        async def run() -> None:
            with scope:
                await step()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await self.passes(after)
            scope.cancel()

    async def until(self, condition: Callable[[], object], within: float = 120.0) -> float:
        """Lets time pass until something is so; returns how many seconds that took."""
        begin = trio.current_time()
        while True:
            await self.settles()
            passed = trio.current_time() - begin
            if condition():
                return passed
            assert passed < within, f"not so within {within} s"
            next_deadline = trio.lowlevel.current_statistics().seconds_to_next_deadline
            self._clock.jump(min(within - passed, max(next_deadline, 0.001)))

    async def passes(self, seconds: float) -> None:
        end = trio.current_time() + seconds
        await self.until(lambda: trio.current_time() >= end - 1e-6, seconds)

    async def finishes(self, step: Callable[[], Awaitable[_T]], within: float = 120.0) -> _T:
        """The result of something that takes time."""
        results: list[_T] = []
        failures: list[Exception] = []

        async def run() -> None:
            try:
                results.append(await step())
            except Exception as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            try:
                await self.until(lambda: results or failures, within)
            finally:
                nursery.cancel_scope.cancel()
        for failure in failures:
            raise failure
        return results[0]


class BentApi(CaApi):
    """The real API, but for the paths in ``bent``: a CA that is wrong, or taken over."""

    bent: dict[str, Handler]
    asked: list[tuple[str, Request]]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.bent, self.asked = {}, []

    def routes(self) -> Routes:
        return {
            path: {method: self._or_bent(path, handler) for method, handler in methods.items()}
            for path, methods in super().routes().items()
        }

    def _or_bent(self, path: str, handler: Handler) -> Handler:
        async def answer(request: Request) -> Response:
            self.asked.append((path, request))
            return await self.bent.get(path, handler)(request)

        return answer


class Sidecar:
    """One membership: ``log`` is what it said, ``adopted`` what it put in force."""

    def __init__(
        self, bed: CaBed, service: str, identity: CaIdentity, clock: Callable[[], datetime] | None = None
    ) -> None:
        self.bed = bed
        self.log = LogSink()
        self.identity = identity
        self.state = identity.state_dir
        self.adopted: list[tuple[Credentials, Revocations]] = []
        self.member = Agent(service, identity, bed.mesh, Log(self.log, "json"), clock or bed.time)
        self._scope = trio.CancelScope()
        self._ended: trio.Event | None = None
        bed.sidecars.append(self)

    @property
    def own(self) -> Credentials:
        assert self.member.credentials is not None
        return self.member.credentials

    @property
    def serial(self) -> int:
        return self.own.svid.serial

    def said(self, event: str) -> list[str]:
        return [line.get("message", "") for line in self.log.events(event)]

    @property
    def events(self) -> list[str]:
        return [line["event"] for line in self.log.lines]

    async def joins(self, within: float = 120.0) -> None:
        await self.bed.time.finishes(self.member.join, within)

    async def adopt(self, credentials: Credentials, revocations: Revocations) -> None:
        self.adopted.append((credentials, revocations))

    def follows(self) -> None:
        """Runs until :meth:`ends`."""
        self.bed.nursery.start_soon(self._run)

    async def _run(self) -> None:
        self._ended = trio.Event()
        with self._scope:
            await self.member.run(self.adopt)
        self._ended.set()

    async def ends(self) -> None:
        """As a restart ends it: what is in memory is gone."""
        self._scope.cancel()
        if self._ended is not None:
            await self.bed.time.until(self._ended.is_set)
        await self.bed.time.finishes(self.member.close)
        self.bed.sidecars.remove(self)

    def drops(self) -> None:
        """Gives back its descriptors, as a process that dies does."""
        if self.member._client._open is not None:
            sockets.hard_close(self.member._client._open[0]._sock)
        with contextlib.suppress(OSError):
            self.member._memory.close()
        self.bed.sidecars.remove(self)


class CaBed:
    """A CA directory, its policy file, and whoever serves it. Made by :func:`ca_bed`."""

    def __init__(
        self, nursery: trio.Nursery, path: Path, time: Time, limits: RateLimits | None, ttl: timedelta
    ) -> None:
        self.nursery = nursery
        self.path = path
        self.time = time
        self.log = LogSink()
        self.sidecars: list[Sidecar] = []
        self.directory = path / "ca"
        self.mesh_path = path / "mesh.yaml"
        self.mesh_path.write_text(MESH)
        self.ca = authority.init(self.directory, "shop.internal", time())
        self.settings = Settings(
            self.directory,
            self.mesh_path,
            Address("127.0.0.1", 0),
            store.file_url(self.directory / authority.STORE),
            ttl,
            limits or RateLimits(),
        )
        self.server: CaServer
        self.port = 0
        self._scope = trio.CancelScope()
        self._stopped = trio.Event()
        self.stop = trio.Event()
        self._number = 0

    def mesh(self) -> Mesh:
        return load_mesh(self.mesh_path)

    @property
    def api(self) -> BentApi:
        assert isinstance(self.server.api, BentApi)
        return self.server.api

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def starts(self) -> CaServer:
        """Starts the CA, at the port at which it was before."""
        settings = Settings(
            self.settings.directory,
            self.settings.mesh,
            Address("127.0.0.1", self.port),
            self.settings.store_url,
            self.settings.ttl,
            self.settings.limits,
        )
        self.server = CaServer(settings, Log(self.log, "json"), self.time)
        self.port = self.server.address[1]
        self._scope, self._stopped, self.stop = trio.CancelScope(), trio.Event(), trio.Event()
        self.nursery.start_soon(self._serve, self.server, self._scope, self._stopped, self.stop)
        return self.server

    @staticmethod
    async def _serve(server: CaServer, scope: trio.CancelScope, stopped: trio.Event, stop: trio.Event) -> None:
        with scope:
            await server.run(stop)
        stopped.set()

    async def goes_down(self) -> None:
        """Ends the CA at once."""
        self._scope.cancel()
        await self.time.until(self._stopped.is_set)

    def said(self, event: str) -> list[str]:
        return [line.get("message", "") for line in self.log.events(event)]

    # -- what its commands do --------------------------------------------------------------------------------------

    def pass_for(self, kind: Kind, service: str, root: bytes | None = None) -> Path:
        """The file of a new token or secret."""
        made = enrolment.make(kind, root or self.server.in_force.policy.authority.root_digest)
        identity = SpiffeId("shop.internal", (service,))
        self.server.store.write(lambda transaction: registrar.add_pass(transaction, made, identity))
        self._number += 1
        file = self.path / f"{kind}-{self._number}"
        file.touch(0o600)
        file.write_text(f"{made}\n")
        return file

    def secret(self, service: str = "api") -> Path:
        return self.pass_for("secret", service)

    def token(self, service: str = "api") -> Path:
        return self.pass_for("token", service)

    def revokes(self, service: str) -> None:
        identity = SpiffeId("shop.internal", (service,))
        self.server.store.write(lambda transaction: revocations.revoke_identity(transaction, identity))

    # -- who asks it -----------------------------------------------------------------------------------------------

    def identity(
        self,
        enrolment: Path | None,
        *,
        name: str = "state",
        ca: str | None = None,
        pin: bytes | None = None,
    ) -> CaIdentity:
        return CaIdentity(
            ca=ca or self.url,
            root_sha256=(pin or self.ca.root_digest).hex(),
            enrolment=enrolment,
            state_dir=self.path / name,
        )

    def sidecar(
        self,
        service: str = "api",
        enrolment: Path | None = None,
        *,
        clock: Callable[[], datetime] | None = None,
        **options: Any,
    ) -> Sidecar:
        """``clock``: its machine's, if that is not the bed's."""
        return Sidecar(self, service, self.identity(enrolment, **options), clock)

    async def joined(self, service: str = "api", enrolment: Path | None = None, **options: Any) -> Sidecar:
        """One that has enrolled, by a secret of its own unless told otherwise, and follows."""
        sidecar = self.sidecar(service, enrolment or self.secret(service), **options)
        await sidecar.joins()
        sidecar.follows()
        await self.time.settles()
        return sidecar


@asynccontextmanager
async def ca_bed(
    path: Path,
    clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    *,
    limits: RateLimits | None = None,
    ttl: timedelta = TTL,
) -> AsyncIterator[CaBed]:
    """A CA that serves until the block ends."""
    assert trio.lowlevel.current_clock() is clock, "the test itself must ask for mock_clock"
    ignore_the_machine_s_clock(monkeypatch)
    monkeypatch.setattr(serve, "CaApi", BentApi)
    async with trio.open_nursery() as nursery:
        bed = CaBed(nursery, path, Time(clock), limits, ttl)
        bed.starts()
        try:
            yield bed
        finally:
            clock.autojump_threshold = 0.01  # nobody moves the time any more
            for sidecar in [*bed.sidecars]:
                sidecar.drops()
        nursery.cancel_scope.cancel()


def ignore_the_machine_s_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """See :data:`NO_CHECK_TIME`."""
    fill = tls._fill

    def timeless(store: Any, roots: Any) -> None:
        fill(store, roots)
        store.set_flags(NO_CHECK_TIME)

    monkeypatch.setattr(tls, "_fill", timeless)


# -- somebody else in the CA's place -----------------------------------------------------------------------------------


@dataclass
class Impostor:
    """Answers at an address by whatever certificate it has. ``received``: every decrypted byte that it was sent.

    ``says``: path → the body of its answer (status 200); anything else gets a 404. ``raw``: sent instead of any answer, and
    then it closes."""

    keys: tls.KeyPair
    port: int
    says: dict[str, bytes] = field(default_factory=dict)
    received: bytearray = field(default_factory=bytearray)
    connections: int = 0
    refused: list[str] = field(default_factory=list)
    raw: bytes | None = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    async def serve(self, listener: Any) -> None:
        with listener:
            async with trio.open_nursery() as nursery:
                while True:
                    await trio.lowlevel.wait_readable(listener)
                    sock, _ = listener.accept()
                    sockets.prepare(sock)
                    self.connections += 1
                    nursery.start_soon(self._one, sock)

    async def _one(self, sock: Any) -> None:
        context = tls.Context(self.keys, VerifyParams("shop.internal", anonymous=True))
        channel = context.server("http/1.1", tls.utc_now)
        try:
            await shake_hands(sock, channel)
            stream = SecureStream(sock, channel)
            http = h11.Connection(h11.SERVER)
            while True:
                event: Any = http.next_event()
                if event is h11.NEED_DATA:
                    data = await stream.receive_some()
                    self.received += data
                    http.receive_data(data)
                elif isinstance(event, h11.Request):
                    path = event.target.decode().partition("?")[0]
                elif isinstance(event, h11.EndOfMessage):
                    if self.raw is not None:
                        if self.raw:
                            await stream.send_all(self.raw)
                        break
                    await stream.send_all(_answer(http, self.says.get(path)))
                    if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
                        break
                    http.start_next_cycle()
                elif not isinstance(event, h11.Data):
                    break
            await stream.close()
        except Refused as refusal:
            self.refused.append(str(refusal.reason))
        except (BrokenStreamError, h11.RemoteProtocolError, OSError):
            pass
        finally:
            sockets.hard_close(sock)


def _answer(http: h11.Connection, body: bytes | None) -> bytes:
    status, text = (404, b"{}") if body is None else (200, body)
    head = h11.Response(status_code=status, headers=[("Content-Length", str(len(text)))])
    parts = [http.send(head), http.send(h11.Data(data=text)), http.send(h11.EndOfMessage())]
    return b"".join(part or b"" for part in parts)


def impostor(bed: CaBed, keys: tls.KeyPair, says: dict[str, bytes] | None = None, port: int = 0) -> Impostor:
    """Starts one; ``port``: that of a CA that went down."""
    listener = sockets.listen("test", "127.0.0.1", port)
    found = Impostor(keys, listener.getsockname()[1], says or {})
    bed.nursery.start_soon(found.serve, listener)
    return found


def keys_of(issued: authority.Issued) -> tls.KeyPair:
    """What ``certs issue`` made, to show."""
    return tls.KeyPair(issued.chain, issued.key, issued.roots)


def files_of(directory: Path) -> dict[str, bytes]:
    """A directory's files, by name."""
    return {name: (directory / name).read_bytes() for name in sorted(os.listdir(directory))}  # noqa: PTH208


# -- one connection ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def secure_pair(
    configure: Callable[[SSL.Context], None] = lambda _: None,
) -> AsyncIterator[tuple[SecureStream, SecureStream]]:
    """A CA's end and a caller's, who shows no certificate, after their handshake; over TCP on loopback. ``configure``: the
    caller's OpenSSL."""
    mesh = certificates.Authority()
    own = mesh.leaf("mesh/ca")
    assert isinstance(own.key, tls.PrivateKey)
    here = tls.Context(tls.KeyPair(own.chain, own.key, mesh.roots), VerifyParams("shop.internal", anonymous=True))
    there = tls.Context(mesh.roots, VerifyParams("shop.internal"))
    configure(there._ssl)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        calling = socket.create_connection(listener.getsockname())
        called, _ = listener.accept()
    ends = (
        (called, here.server("http/1.1", tls.utc_now)),
        (calling, there.client("http/1.1", SpiffeId("shop.internal", ("mesh", "ca")), tls.utc_now)),
    )
    try:
        async with trio.open_nursery() as nursery:
            for sock, channel in ends:
                sockets.prepare(sock)
                nursery.start_soon(shake_hands, sock, channel)
        yield SecureStream(*ends[0]), SecureStream(*ends[1])
    finally:
        for sock, _ in ends:
            sockets.hard_close(sock)


def asked(bed: CaBed, path: str) -> int:
    return sum(1 for one, _ in bed.api.asked if one == path)


def verdict(sidecar: Sidecar, peer: Sidecar) -> str:
    """What a sidecar says now of a peer that connects."""
    roots = {root.subject: root for root in sidecar.own.keys.roots}
    chain = [*peer.own.keys.chain]
    if chain[-1].issuer in roots:
        chain.append(roots[chain[-1].issuer])
    path = tuple(one.public_bytes(Encoding.DER) for one in chain)
    terms = VerifyParams("shop.internal", revocations=sidecar.member.revocations())
    try:
        judge(Presented(path[:2], path), terms, sidecar.bed.time())
    except Refused as refusal:
        return str(refusal.reason)
    return "ok"
