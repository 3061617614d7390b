"""A real CA on loopback and real memberships, inside the test's own trio loop, on time that the test moves.

:class:`CaBed` serves the CA of a :class:`~tests.beds.ca_files.CaFiles`: under virtual time (:func:`ca_bed`), or with a time
of day that is the test's while trio's clock passes by itself (:func:`serving`). A test reads as a transcript: ``async with
ca_bed(…) as bed``, ``api = bed.sidecar("api", bed.secret("api"))``, ``await api.joins()``, ``await bed.time.passes(150)``,
and ask what ``api`` has and what it said.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from trio.testing import MockClock

from certs.protocol.client import CaClient
from certs.protocol.documents import RevocationList, read_revocations
from certs.protocol.enrolment import Kind
from certs.protocol.wire import ALPN, CA_SEGMENTS
from certs.service import serve
from certs.service.api import CaApi, RateLimits
from certs.service.serve import CaServer
from sidecar.agent.agent import Agent
from sidecar.agent.credentials import Credentials
from sidecar.config.sidecar_yaml import CaIdentity
from sidecar.documents.address import Address
from sidecar.host.disk import Disk
from sidecar.host.follow import LOOK_SECONDS, OPEN_SECONDS
from sidecar.identity.judge import Presented, Revocations, VerifyParams, judge
from sidecar.identity.reasons import Refused
from sidecar.identity.spiffe import SpiffeId, parse_svid
from sidecar.observe.logs import Log
from sidecar.relay.strand import run
from sidecar.transport import sockets, tls
from sidecar.transport.handshake import shake_hands
from sidecar.transport.http1 import Handler, Request, Response, Routes
from sidecar.transport.stream import SecureStream
from sidecar.transport.tls import Context, KeyPair, Roots
from tests.beds.ca_files import DOMAIN, CaFiles
from tests.beds.certificates import csr
from tests.beds.clock import Time, moment
from tests.beds.impostor import FalseCa, always
from tests.beds.mesh import LogSink
from tests.beds.patience import PATIENCE

TTL = timedelta(minutes=5)
"""Of the certificates under virtual time: the shortest there are, so half of a life is 150 s and a test has little to step
through."""

NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME: OpenSSL goes by the machine's clock, which no test sets. What it would say of a leaf's time,
``judge`` says too, by the clock that it is given."""


_T = TypeVar("_T")


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


class CaBed:
    """A CA that serves, its log, and whoever asks it. ``time`` moves trio's clock, where that is virtual."""

    def __init__(self, nursery: trio.Nursery, files: CaFiles, time: Time | None = None) -> None:
        self.nursery, self.files, self._time = nursery, files, time
        self.path, self.clock, self.directory, self.mesh = files.path, files.clock, files.directory, files.mesh
        self.ca = files.ca
        self.log = LogSink()
        self.sidecars: list[Sidecar] = []
        self.server: CaServer
        self.port = 0
        self._scope = trio.CancelScope()
        self.stop, self.stopped = trio.Event(), trio.Event()
        self._number = 0

    @property
    def time(self) -> Time:
        assert self._time is not None, "this bed's time passes by itself"
        return self._time

    @property
    def api(self) -> BentApi:
        assert isinstance(self.server.api, BentApi)
        return self.server.api

    @property
    def address(self) -> Address:
        return Address("127.0.0.1", self.port)

    @property
    def url(self) -> str:
        return f"https://{self.address}"

    def starts(self, **settings: Any) -> CaServer:
        """Starts the CA, at the port at which it was before."""
        self.server = self.files.new_server(self.log, **{"listen": self.address, **settings})
        self.port = self.server.sockets[0].getsockname()[1]
        self._scope, self.stop, self.stopped = trio.CancelScope(), trio.Event(), trio.Event()
        self.nursery.start_soon(self._serve, self.server, self._scope, self.stop, self.stopped)
        return self.server

    @staticmethod
    async def _serve(server: CaServer, scope: trio.CancelScope, stop: trio.Event, stopped: trio.Event) -> None:
        try:
            with scope:
                await server.run(stop)
        finally:
            stopped.set()

    async def goes_down(self) -> None:
        """Ends the CA at once."""
        self._scope.cancel()
        await self.time.until(self.stopped.is_set)

    async def look(self) -> None:
        """Until it has looked twice at all that it follows, as it is now."""
        await self.time.passes(3 * LOOK_SECONDS)

    async def opens(self) -> None:
        """Until a change that could allow more has taken effect."""
        await self.time.passes(OPEN_SECONDS + 3 * LOOK_SECONDS)

    def said(self, event: str) -> list[str]:
        return [line.get("message", "") for line in self.log.events(event)]

    def warnings(self) -> list[str]:
        return self.said("warning")

    def mended(self) -> list[str]:
        return self.said("mended")

    def reloaded(self) -> list[str]:
        return self.said("reloaded")

    # -- what its commands do ------------------------------------------------------------------------------------------

    def pass_for(self, kind: Kind, service: str, root: bytes | None = None) -> Path:
        """The file of a new token or secret."""
        root = root or self.server.in_force.policy.authority.root_digest
        return self.write_credential(self.files.make_credential(service, kind, root))

    def write_credential(self, text: str) -> Path:
        """A file for its owner alone."""
        self._number += 1
        file = self.path / f"pass-{self._number}.enrol"
        file.touch(0o600)
        file.write_text(f"{text}\n")
        return file

    def secret(self, service: str = "api") -> Path:
        return self.pass_for("secret", service)

    def token(self, service: str = "api") -> Path:
        return self.pass_for("token", service)

    def revokes(self, service: str) -> None:
        self.files.revokes(service)

    # -- who asks it ---------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def client(self, keys: KeyPair | Roots | None = None) -> AsyncIterator[CaClient]:
        """Somebody who trusts the root, and shows what it is given."""
        client = CaClient(self.address, DOMAIN, self.clock)
        await client.use(self.ca.roots if keys is None else keys, Revocations())
        try:
            yield client
        finally:
            await client.close()

    async def stream(self, keys: KeyPair | Roots | None = None) -> SecureStream:
        """A connection to say anything on, to a CA that has proved who it is."""
        context = Context(self.ca.roots if keys is None else keys, VerifyParams(DOMAIN))
        with trio.fail_after(PATIENCE):
            sock = await sockets.connect(socket.AF_INET, (self.address.host, self.address.port))
            channel = context.client((ALPN,), SpiffeId(DOMAIN, CA_SEGMENTS), self.clock)
            await run(shake_hands(sock, channel))
        return SecureStream(sock, channel)

    async def listed(self) -> tuple[RevocationList, int]:
        """The list, and the newest bundle's version."""
        async with self.client() as client:
            polled = await client.revocations("", "", 0)
        assert polled.document is not None
        bundle = self.server.in_force.bundle
        return read_revocations(polled.document, bundle, self.clock()), bundle.version

    async def enrolled(self, service: str, shown: str) -> tuple[x509.Certificate, ...]:
        """The chain that a token or secret is worth."""
        async with self.client() as client:
            return tuple(x509.load_pem_x509_certificates(await client.enrol(service, shown, csr().encode())))

    async def metrics(self) -> str:
        stream = await self.stream()
        await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: ca\r\nConnection: close\r\n\r\n")
        text = b""
        while more := await stream.receive_some():
            text += more
        await stream.close()
        return text.decode()

    def identity(
        self, enrolment: Path | None, *, name: str = "state", ca: str | None = None, pin: bytes | None = None
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
        """``clock``: its machine's, if that is not the bed's. ``options``: of :meth:`identity`."""
        return Sidecar(self, service, self.identity(enrolment, **options), clock)

    async def joined(self, service: str = "api", enrolment: Path | None = None, **options: Any) -> Sidecar:
        """One that has enrolled, by a secret of its own unless told otherwise, and follows."""
        sidecar = self.sidecar(service, enrolment or self.secret(service), **options)
        await sidecar.joins()
        sidecar.follows()
        await self.time.settles()
        return sidecar

    def impostor(self, keys: KeyPair, says: dict[str, bytes] | None = None, port: int = 0) -> FalseCa:
        """Somebody in the CA's place, until the bed's end; ``port``: that of a CA that went down. ``says``: path → the body
        of its answer; anything else gets a 404."""
        lies = {path: always(200, body) for path, body in (says or {}).items()}
        false = FalseCa(sockets.listen("test", "127.0.0.1", port), keys, {}, self.clock, lies)
        self.nursery.start_soon(false.serve)
        return false


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
        self.agent = Agent(service, identity, bed.files.load_mesh, Log(self.log, "json"), clock or bed.clock)
        self._scope = trio.CancelScope()
        self._ended: trio.Event | None = None
        bed.sidecars.append(self)

    @property
    def own(self) -> Credentials:
        assert self.agent.credentials is not None
        return self.agent.credentials

    @property
    def serial(self) -> int:
        return self.own.svid.serial

    def said(self, event: str) -> list[str]:
        return [line.get("message", "") for line in self.log.events(event)]

    def words(self, event: str) -> str:
        """All that it said of an event."""
        return " ".join(self.said(event))

    @property
    def events(self) -> list[str]:
        return [line["event"] for line in self.log.lines]

    async def joins(self, within: float = 120.0) -> None:
        await self.bed.time.finishes(self.agent.enrol, within)

    async def adopt(self, credentials: Credentials, revocations: Revocations) -> None:
        self.adopted.append((credentials, revocations))

    def follows(self) -> None:
        """Runs until :meth:`ends`."""
        self.bed.nursery.start_soon(self._run)

    async def _run(self) -> None:
        self._ended = trio.Event()
        with self._scope:
            await self.agent.run(self.adopt)
        self._ended.set()

    async def ends(self) -> None:
        """As a restart ends it: what is in memory is gone."""
        self._scope.cancel()
        if self._ended is not None:
            await self.bed.time.until(self._ended.is_set)
        await self.bed.time.finishes(self.agent.close)
        self.bed.sidecars.remove(self)

    def drops(self) -> None:
        """Gives back its descriptors, as a process that dies does."""
        if self.agent._client._open is not None:
            self.agent._client._open.stream.abandon()
        with contextlib.suppress(OSError):
            self.agent._saved.close()
        self.bed.sidecars.remove(self)


@asynccontextmanager
async def ca_bed(
    path: Path,
    clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    *,
    limits: RateLimits | None = None,
    ttl: timedelta = TTL,
) -> AsyncIterator[CaBed]:
    """A CA that serves under virtual time until the block ends."""
    assert trio.lowlevel.current_clock() is clock, "the test itself must ask for mock_clock"
    ignore_the_machine_s_clock(monkeypatch)
    monkeypatch.setattr(serve, "CaApi", BentApi)
    monkeypatch.setattr(Disk, "run", at_once)
    time = Time(clock)
    async with trio.open_nursery() as nursery:
        bed = CaBed(nursery, CaFiles(path, time, ttl=ttl, limits=limits), time)
        bed.starts()
        try:
            yield bed
        finally:
            clock.autojump_threshold = moment(0.01)  # nobody moves the time any more
            for sidecar in [*bed.sidecars]:
                sidecar.drops()
        nursery.cancel_scope.cancel()


async def at_once(_disk: Disk, work: Callable[[], _T]) -> _T:
    """As :meth:`Disk.run`, on a disk that answers: without a thread, which costs more than the look at a file, each second
    of hours."""
    await trio.lowlevel.checkpoint()
    return work()


def ignore_the_machine_s_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """See :data:`NO_CHECK_TIME`."""
    fill = tls._fill

    def timeless(store: Any, roots: Any) -> None:
        fill(store, roots)
        store.set_flags(NO_CHECK_TIME)

    monkeypatch.setattr(tls, "_fill", timeless)


@asynccontextmanager
async def serving(files: CaFiles, clock: MockClock, **settings: Any) -> AsyncIterator[CaBed]:
    """A CA that serves for the block, and is stopped then, which must not take long. trio's clock passes by itself, for
    sockets and threads are real, and is set forward where a test would have to wait."""
    clock.rate = 1.0
    async with trio.open_nursery() as nursery:
        bed = CaBed(nursery, files, Time(clock))
        bed.starts(**settings)
        with trio.fail_after(10 * PATIENCE):
            yield bed
        bed.stop.set()
        with trio.fail_after(PATIENCE):
            await bed.stopped.wait()
    assert bed.log.events("internal_error") == bed.log.events("reload_failed") == []


# -- what is seen ------------------------------------------------------------------------------------------------------


def identity_of(chain: tuple[x509.Certificate, ...]) -> SpiffeId:
    return parse_svid(chain[0].public_bytes(Encoding.DER)).id


def files_of(directory: Path) -> dict[str, bytes]:
    """A directory's files, by name."""
    return {name: (directory / name).read_bytes() for name in sorted(os.listdir(directory))}  # noqa: PTH208


def asked(bed: CaBed, path: str) -> int:
    return sum(1 for one, _ in bed.api.asked if one == path)


def verdict(sidecar: Sidecar, peer: Sidecar) -> str:
    """What a sidecar says now of a peer that connects."""
    roots = {root.subject: root for root in sidecar.own.keys.roots}
    chain = [*peer.own.keys.chain]
    if chain[-1].issuer in roots:
        chain.append(roots[chain[-1].issuer])
    path = tuple(one.public_bytes(Encoding.DER) for one in chain)
    params = VerifyParams(DOMAIN, revocations=sidecar.agent.revocations())
    try:
        judge(Presented(path[:2], path), params, sidecar.bed.clock())
    except Refused as refusal:
        return str(refusal.reason)
    return "ok"
