"""The stage on which the CA, and a sidecar's trust in it, are attacked: a real CA in the test's own loop, on a real socket.

:class:`Desk` is that CA: ``await desk.post(…)`` asks it what no client of ours would, ``await desk.denied("bad_csr", …)``
asserts the whole of what a no means (the word in the answer, one line in the log, nothing issued) and that an honest
enrolment beside it goes through. :class:`FalseCa` answers in the CA's place, and :class:`Sidecar` is a membership that asks.
"""

from __future__ import annotations

import json
import socket
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from certs.authority import authority
from certs.protocol import enrolment as passes
from certs.protocol.csr import proof_of_possession
from certs.registrar import registrar
from certs.registrar import revocations as standing
from certs.service.api import RateLimits
from certs.service.serve import CaServer, Settings
from certs.store import store
from sidecar.agent.agent import Agent
from sidecar.agent.credentials import Credentials
from sidecar.config.wiring import CaIdentity
from sidecar.documents.address import Address
from sidecar.identity.judge import Revocations, VerifyParams
from sidecar.identity.reasons import Refused
from sidecar.identity.spiffe import SpiffeId, parse_spiffe_id
from sidecar.observe.logs import Log
from sidecar.policy.mesh import Mesh, parse_mesh
from sidecar.transport import sockets
from sidecar.transport.handshake import shake_hands
from sidecar.transport.http1 import Peer, Request, Response, Routes, converse
from sidecar.transport.stream import BrokenStreamError, SecureStream
from sidecar.transport.tls import Context, KeyPair, TlsChannel, utc_now
from tests.certificates import ec_key
from tests.harness import PATIENCE, LogSink, connect

MESH = """\
trust_domain: shop.internal
services:
  web: {}
  api: {ports: {http: 8080}}
  ca: {}
policy:
  - {from: web, to: "api:http"}
"""
TRUST_DOMAIN = "shop.internal"
CA_ID = f"spiffe://{TRUST_DOMAIN}/mesh/ca"
ALPN = "http/1.1"
HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)
NO_TIME = timedelta()


class Clock:
    """The time of day, moved by the test. OpenSSL looks at the true one besides, so what is to pass a handshake must be
    good by both: begin some time ``ago`` and jump towards now."""

    def __init__(self, ago: timedelta = NO_TIME) -> None:
        self._ahead = -ago

    def __call__(self) -> datetime:
        return utc_now() + self._ahead

    def jump(self, by: timedelta) -> None:
        self._ahead += by


@dataclass(frozen=True)
class Answer:
    """What the CA said."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def said(self) -> Any:
        return json.loads(self.body)

    @property
    def certificate(self) -> x509.Certificate:
        """The leaf of a yes."""
        assert self.status == 200, self.body
        return x509.load_pem_x509_certificates(self.said["certificate"].encode())[0]


def csr(
    *names: x509.GeneralName,
    key: Any = None,
    subject: str | None = None,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    attribute: bytes | None = None,
) -> str:
    """A CSR in PEM; honest, and asking for nothing, unless told otherwise."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([] if subject is None else [x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)])
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    if attribute is not None:
        builder = builder.add_attribute(x509.oid.AttributeOID.CHALLENGE_PASSWORD, attribute)
    return pem_of(builder.sign(key or ec_key(), hashes.SHA256()))


def pem_of(one: x509.CertificateSigningRequest | x509.Certificate) -> str:
    return one.public_bytes(serialization.Encoding.PEM).decode()


def uri(text: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(text)


def service_id(name: str) -> SpiffeId:
    return parse_spiffe_id(f"spiffe://{TRUST_DOMAIN}/{name}")


class Desk:
    """A CA that serves, its log, and whoever asks it."""

    def __init__(self, path: Path, server: CaServer, clock: Clock, log: LogSink) -> None:
        self.path, self.server, self.clock, self.log = path, server, clock, log
        self.ca = authority.load(path / "ca", clock())
        self._denials = 0

    @property
    def address(self) -> Address:
        return Address(*self.server.address)

    @property
    def roots(self) -> tuple[x509.Certificate, ...]:
        return self.ca.roots

    # -- what the commands do ------------------------------------------------------------------------------------------

    def write(self, operation: Callable[[store.Transaction], Any]) -> Any:
        """Another process on the same store, such as ``certs revoke``."""
        with store.opened(self.server.settings.store_url, clock=lambda: int(self.clock().timestamp())) as opened:
            return opened.write(operation)

    def make_pass(self, service: str, kind: passes.Kind = "token", root: bytes | None = None) -> str:
        made = passes.make(kind, root or self.ca.root_digest)
        self.write(lambda transaction: registrar.add_pass(transaction, made, service_id(service)))
        return str(made)

    async def revoke(self, service: str) -> None:
        """``certs revoke``; returns once the CA tells everybody."""
        before = self.server.in_force.etag
        self.write(lambda transaction: standing.revoke_identity(transaction, service_id(service)))
        await until(lambda: self.server.in_force.etag != before)

    def issued(self) -> list[tuple[str, str]]:
        """(identity, how) of every certificate that the store knows."""
        question = sa.select(store.issued.c.identity, store.issued.c.how)
        return [(row.identity, row.how) for row in self.server.store.read(lambda one: one.execute(question).all())]

    def keys(
        self, service: str, *, dated: datetime | None = None, ttl: timedelta = HOUR, known: bool = True
    ) -> KeyPair:
        """A certificate of the service, with its key, as the CA issued it ``dated``."""
        made = authority.issue(self.ca, service, dated or self.clock(), ttl)
        if known:
            self.write(lambda transaction: registrar.remember(transaction, made.chain, "test"))
        return KeyPair(made.chain, made.key, made.roots)

    # -- asking --------------------------------------------------------------------------------------------------------

    async def stream(self, keys: KeyPair | None = None) -> SecureStream:
        """A connection to the CA, which has proved who it is."""
        terms = VerifyParams(TRUST_DOMAIN)
        channel = Context(keys or self.roots, terms).client(ALPN, service_id("mesh/ca"), self.clock)
        sock = await connect(self.address)
        with trio.fail_after(PATIENCE):
            await shake_hands(sock, channel)
        return SecureStream(sock, channel)

    async def say(self, raw: bytes, keys: KeyPair | None = None) -> bytes:
        """Sends bytes of any kind and returns all that comes back until the CA closes."""
        stream = await self.stream(keys)
        with trio.fail_after(PATIENCE):
            with suppress(BrokenStreamError):
                await stream.send_all(raw)
            try:
                return await read_to_end(stream)
            finally:
                await stream.close()

    async def ask(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        keys: KeyPair | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        lines = {"Host": "ca", "Content-Length": str(len(body)), "Connection": "close", **(headers or {})}
        head = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return parse_answer(await self.say(head.encode() + b"\r\n" + body, keys))

    async def post(self, target: str, keys: KeyPair | None = None, **said: Any) -> Answer:
        return await self.ask("POST", target, json.dumps(said).encode(), keys)

    async def enrol(self, service: str, text: str, request: str | None = None) -> Answer:
        said = {"service": service, "pass": text, "csr": csr() if request is None else request}
        return await self.ask("POST", "/v1/enrol", json.dumps(said).encode())

    async def renew(self, keys: KeyPair | None, request: str | None = None) -> Answer:
        return await self.post("/v1/renew", keys, csr=csr() if request is None else request)

    async def reenrol(
        self,
        certificate: x509.Certificate,
        signer: Any,
        *,
        nonce: bytes | None = None,
        new_key: ec.EllipticCurvePrivateKey | None = None,
        signed_key: ec.EllipticCurvePrivateKey | None = None,
    ) -> Answer:
        """By the key of an old certificate; ``signed_key``: the one that was signed for, if not the CSR's."""
        new_key = new_key or ec_key()
        nonce = nonce if nonce is not None else await self.nonce()
        proof = proof_of_possession(nonce, (signed_key or new_key).public_key())
        return await self.post(
            "/v1/reenrol",
            certificate=pem_of(certificate),
            nonce=b64encode(nonce).decode(),
            signature=b64encode(signer.sign(proof, ec.ECDSA(hashes.SHA256()))).decode(),
            csr=csr(key=new_key),
        )

    async def nonce(self) -> bytes:
        return b64decode((await self.post("/v1/nonce")).said["nonce"])

    # -- what must come of it ------------------------------------------------------------------------------------------

    async def denied(self, denial: str, asking: Awaitable[Answer]) -> Answer:
        """Asserts that one more request was denied with this word, and issued nothing; then serves the honest twin."""
        before = self.issued()
        answer = await asking
        assert answer.status >= 400, answer.body
        assert answer.said["error"] == denial, answer.said
        self._denials += 1
        await self.log.until(lambda: len(self.log.events("denied")) >= self._denials)
        line = self.log.events("denied")[-1]
        assert (line["reason"], line["message"]) == (denial, answer.said["message"])
        assert len(self.log.events("denied")) == self._denials
        assert self.issued() == before
        await self.honest()
        return answer

    async def honest(self) -> x509.Certificate:
        """The twin: web's own new token is worth one certificate of web's."""
        leaf = (await self.enrol("web", self.make_pass("web"))).certificate
        assert names_of(leaf)[0] == f"spiffe://{TRUST_DOMAIN}/web"
        assert not self.log.events("internal_error"), self.log.events("internal_error")
        return leaf


def names_of(leaf: x509.Certificate) -> list[str]:
    return [str(name.value) for name in leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value]


def parse_answer(raw: bytes) -> Answer:
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    assert status.startswith("HTTP/1.1 "), raw
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return Answer(int(status.split()[1]), headers, body)


async def read_to_end(stream: SecureStream) -> bytes:
    data = b""
    with suppress(BrokenStreamError):
        while more := await stream.receive_some():
            data += more
    return data


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what other tasks will bring about."""
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 (what changes is a plain value of somebody else's)
            await trio.sleep(0.01)


@asynccontextmanager
async def ca_desk(
    path: Path,
    *,
    mesh: str = MESH,
    ttl: timedelta = HOUR,
    limits: RateLimits | None = None,
    ago: timedelta = NO_TIME,
    age: timedelta = NO_TIME,
) -> AsyncIterator[Desk]:
    """A :class:`Desk`, made as ``certs init`` and ``certs serve`` make it; ``ago``: what time it begins, ``age``: how long
    before that the CA was made."""
    clock, log = Clock(ago), LogSink()
    authority.init(path / "ca", TRUST_DOMAIN, clock().replace(microsecond=0) - age)
    (path / "mesh.yaml").write_text(mesh)
    settings = Settings(
        path / "ca",
        path / "mesh.yaml",
        Address("127.0.0.1", 0),
        store.file_url(path / "ca" / "store.db"),
        ttl,
        limits or RateLimits(),
    )
    server = CaServer(settings, Log(log, "json"), clock)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run, stop)
        yield Desk(path, server, clock, log)
        nursery.cancel_scope.cancel()
    server.store.close()


# -- somebody in the CA's place ----------------------------------------------------------------------------------------


@dataclass
class FalseCa:
    """Answers at an address of its own. ``shows``: its key pair; ``lies``: path → what it answers there, else what the true
    CA would. ``asked``: every path, and ``bodies`` all that was told to it."""

    truth: Desk
    listener: socket.socket
    shows: KeyPair
    lies: dict[str, Callable[[Request], Awaitable[Response]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    refusals: list[Refused] = field(default_factory=list)

    @property
    def address(self) -> Address:
        return Address(*self.listener.getsockname()[:2])

    async def serve(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                await trio.lowlevel.wait_readable(self.listener)
                sock, _ = self.listener.accept()
                nursery.start_soon(self._one, sock)

    async def _one(self, sock: socket.socket) -> None:
        sockets.prepare(sock)
        channel: TlsChannel = Context(self.shows, VerifyParams(TRUST_DOMAIN, anonymous=True)).server(
            ALPN, self.truth.clock
        )
        with sock:
            try:
                await shake_hands(sock, channel)
                stream = SecureStream(sock, channel)
                peer = Peer("127.0.0.1:1", channel.svid, channel.path)
                await converse(stream, peer, self._routes(), lambda *_: None)
            except Refused as refusal:
                self.refusals.append(refusal)
            except (BrokenStreamError, OSError):
                return

    def _routes(self) -> Routes:
        routes = self.truth.server.api.routes()
        return {
            path: {method: self._noting(path, handler) for method, handler in methods.items()}
            for path, methods in routes.items()
        }

    def _noting(self, path: str, handler: Callable[[Request], Awaitable[Response]]) -> Any:
        async def answer(request: Request) -> Response:
            self.asked.append(path)
            self.bodies.append(request.body)
            return await self.lies.get(path, handler)(request)

        return answer


def always(
    status: int, said: Any, headers: Mapping[str, str] | None = None
) -> Callable[[Request], Awaitable[Response]]:
    """A lie that does not depend on the question; ``said`` is JSON, or bytes as they are."""

    async def answer(_request: Request) -> Response:
        if isinstance(said, bytes):
            return Response(status, said, headers=headers or {})
        return Response.of(status, said, headers)

    return answer


@asynccontextmanager
async def false_ca(desk: Desk, shows: KeyPair | None = None) -> AsyncIterator[FalseCa]:
    """By default it shows what the true CA shows: a CA that is taken over."""
    if shows is None:
        made = authority.issue(desk.ca, "mesh/ca", desk.clock(), HOUR)
        shows = KeyPair(made.chain, made.key, made.roots)
    with sockets.listen("test", "127.0.0.1", 0) as listener:
        false = FalseCa(desk, listener, shows)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(false.serve)
            yield false
            nursery.cancel_scope.cancel()


# -- a sidecar that asks -----------------------------------------------------------------------------------------------


class Sidecar:
    """A sidecar's membership, and what it put in force."""

    def __init__(self, desk: Desk, member: Agent, log: LogSink, state: Path) -> None:
        self.desk, self.member, self.log, self.state = desk, member, log, state
        self.adopted: list[tuple[Credentials, Revocations]] = []

    async def adopt(self, credentials: Credentials, revocations: Revocations) -> None:
        self.adopted.append((credentials, revocations))

    @property
    def in_force(self) -> Credentials:
        assert self.member.credentials is not None
        return self.member.credentials

    def said(self, event: str) -> str:
        return " ".join(line["message"] for line in self.log.events(event))


def membership(
    desk: Desk,
    at: Address,
    *,
    service: str = "web",
    text: str | None = None,
    pin: bytes | None = None,
    state: str = "state",
    mesh: Mesh | None = None,
) -> Sidecar:
    """web's membership of the mesh, by the CA that is said to be ``at``."""
    enrolment = None
    if text is not None:
        enrolment = desk.path / f"{service}.enrol"
        enrolment.unlink(missing_ok=True)
        enrolment.touch(mode=0o600)
        enrolment.write_text(text + "\n")
    identity = CaIdentity(
        ca=f"https://{at.host}:{at.port}",
        root=None,
        root_sha256=(pin or desk.ca.root_digest).hex(),
        enrolment=enrolment,
        state_dir=desk.path / state,
    )
    log = LogSink()
    found = mesh or parse_mesh(MESH, "mesh.yaml")
    member = Agent(service, identity, lambda: found, Log(log, "json"), desk.clock)
    return Sidecar(desk, member, log, desk.path / state)


def utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
