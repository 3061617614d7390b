"""A real CA on loopback, for the tests of its process: its files, what others do to them, and somebody who asks it.

Its time of day is the test's to move; but OpenSSL sees the real one, so that a CA which is to get old in a test begins in
the past. trio's clock passes by itself here, for sockets and threads are real, and is set forward where a test would have
to wait.
"""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from certs import authority, passes, registrar
from certs.client import ALPN, CA_SEGMENTS, CaClient
from certs.serve import CaServer, Settings
from certs.store import Store, file_url
from certs.trust import Bundle, RevocationList, read_revocations, sign_bundle
from sidecar import sockets
from sidecar.address import Address
from sidecar.follow import LOOK_SECONDS
from sidecar.handshake import shake_hands
from sidecar.identity import SpiffeId, parse_svid
from sidecar.judge import Revocations, Terms
from sidecar.logs import Log
from sidecar.stream import SecureStream
from sidecar.tls import Context, KeyPair, Roots
from tests.harness import PATIENCE, LogSink

NOW = datetime.now(UTC).replace(microsecond=0)
DOMAIN = "shop.internal"
API, WEB = (SpiffeId(DOMAIN, (name,)) for name in ("api", "web"))
MESH = "trust_domain: shop.internal\nservices: {api: {ports: 80}, web: {}}\n"
GET = b"GET /v1/revocations HTTP/1.1\r\nHost: ca\r\n\r\n"


@dataclass
class Clock:
    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now


@dataclass
class Site:
    """A CA's files, and what others do to them."""

    path: Path
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.directory, self.mesh, self.db = self.path / "ca", self.path / "mesh.yaml", self.path / "store.db"
        self.own = authority.init(self.directory, DOMAIN, self.clock())
        self.mesh.write_text(MESH)

    def settings(self, **more: Any) -> Settings:
        listen = Address("127.0.0.1", 0)
        return replace(
            Settings(self.directory, self.mesh, listen, file_url(self.db), timedelta(hours=1)),
            **more,
        )

    def server(self, log: LogSink | None = None, **more: Any) -> CaServer:
        return CaServer(self.settings(**more), Log(log or LogSink(), "json"), self.clock)

    def start_once(self) -> None:
        """So that its store is there."""
        server = self.server()
        server.socket.close()
        server.store.close()

    def elsewhere(self, operation: Callable[..., Any]) -> Any:
        """What another program does to the store: ``certs revoke`` in another terminal, another CA."""
        with closing(Store(file_url(self.db), clock=lambda: int(self.clock().timestamp()))) as store:
            return store.write(operation)

    def sql(self, text: str) -> None:
        with closing(sqlite3.connect(self.db)) as connection, connection:
            connection.execute(text)

    def make_secret(self, identity: SpiffeId) -> str:
        made = passes.make("secret", self.own.root_digest)
        self.elsewhere(lambda it: registrar.add_pass(it, made, identity))
        return str(made)

    def keys(self, service: str = "api", ttl: timedelta = timedelta(hours=1)) -> KeyPair:
        """A certificate that this CA made, and its key."""
        made = authority.issue(authority.load(self.directory, self.clock()), service, self.clock(), ttl)
        return KeyPair(made.chain, made.key, made.roots)

    def bundle(self, version: int) -> tuple[Bundle, bytes]:
        bundle = Bundle(DOMAIN, version, self.own.roots, self.own.root_digest)
        return bundle, sign_bundle(bundle, [authority.load_root(self.directory, None, None)])


class Running:
    """A CA that serves."""

    def __init__(self, site: Site, clock: trio.testing.MockClock, **settings: Any) -> None:
        self.site, self._trio = site, clock
        self.log = LogSink()
        self.server = site.server(self.log, **settings)
        self.address = Address(*self.server.address)
        self.stop, self.stopped = trio.Event(), trio.Event()
        self._looks, self._looked = 0, trio.lowlevel.ParkingLot()
        look = self.server._look

        async def counted() -> None:
            await look()
            self._looks += 1
            self._looked.unpark_all()

        self.server._look = counted  # type: ignore[method-assign]

    async def run(self) -> None:
        try:
            await self.server.run(self.stop)
        finally:
            self.stopped.set()

    async def look(self) -> None:
        """Until it has looked twice at all that it follows, as it is now."""
        with trio.fail_after(PATIENCE + 3 * LOOK_SECONDS):
            for _ in range(3):  # the first may have begun before
                before = self._looks
                self._trio.jump(LOOK_SECONDS)
                while self._looks == before:
                    await self._looked.park()

    def wait(self, seconds: float) -> None:
        self._trio.jump(seconds)

    @asynccontextmanager
    async def client(self, keys: KeyPair | Roots | None = None) -> AsyncIterator[CaClient]:
        """Somebody who trusts the root, and shows what it is given."""
        client = CaClient(self.address, DOMAIN, self.site.clock)
        await client.use(self.site.own.roots if keys is None else keys, Revocations())
        try:
            yield client
        finally:
            await client.close()

    async def stream(self, keys: KeyPair | Roots | None = None) -> SecureStream:
        """A connection to say anything on."""
        context = Context(self.site.own.roots if keys is None else keys, Terms(DOMAIN))
        sock = await sockets.connect(socket.AF_INET, (self.address.host, self.address.port))
        endpoint = context.client(ALPN, SpiffeId(DOMAIN, CA_SEGMENTS), self.site.clock)
        await shake_hands(sock, endpoint)
        return SecureStream(sock, endpoint)

    async def listed(self) -> tuple[RevocationList, int]:
        """The list, and the newest bundle's version."""
        async with self.client() as client:
            polled = await client.revocations("", "", 0)
        assert polled.document is not None
        return read_revocations(polled.document, self.server.in_force.bundle, self.site.clock()), polled.bundle

    async def enrol(self, service: str, secret: str) -> tuple[x509.Certificate, ...]:
        async with self.client() as client:
            return tuple(x509.load_pem_x509_certificates(await client.enrol(service, secret, csr())))

    async def metrics(self) -> str:
        stream = await self.stream()
        await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: ca\r\nConnection: close\r\n\r\n")
        text = b""
        while more := await stream.receive_some():
            text += more
        await stream.close()
        return text.decode()

    def warnings(self) -> list[str]:
        return [line["message"] for line in self.log.events("warning")]

    def mended(self) -> list[str]:
        return [line["message"] for line in self.log.events("mended")]

    def reloaded(self) -> list[str]:
        return [line["message"] for line in self.log.events("reloaded")]


def csr() -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(
        serialization.Encoding.PEM
    )


def identity_of(chain: tuple[x509.Certificate, ...]) -> SpiffeId:
    return parse_svid(chain[0].public_bytes(serialization.Encoding.DER)).id


@asynccontextmanager
async def serving(site: Site, clock: trio.testing.MockClock, **settings: Any) -> AsyncIterator[Running]:
    """A CA that serves for the block, and is stopped then, which must not take long."""
    clock.rate = 1.0
    running = Running(site, clock, **settings)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(running.run)
        with trio.fail_after(10 * PATIENCE):
            yield running
        running.stop.set()
        with trio.fail_after(PATIENCE):
            await running.stopped.wait()
    assert running.log.events("internal_error") == running.log.events("reload_failed") == []
