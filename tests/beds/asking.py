"""Requests to a CA that no client of ours would make, and what must come of them.

:class:`Desk` is a CA that serves while time passes by itself: ``await desk.post(…)`` asks it anything, ``await
desk.denied("bad_csr", …)`` asserts the whole of what a denial means (the word in the answer, one line in the log, nothing
issued) and that an honest enrolment beside it goes through.
"""

from __future__ import annotations

import json
import time
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from certs.authority import authority
from certs.protocol.csr import proof_of_possession
from certs.service.api import RateLimits
from sidecar.documents.address import Address
from sidecar.host.clock import utc_now
from sidecar.transport import sockets
from sidecar.transport.stream import BrokenStreamError, SecureStream
from sidecar.transport.tls import KeyPair
from tests.beds.ca import CaBed, Sidecar
from tests.beds.ca_files import DOMAIN, HOUR, CaFiles
from tests.beds.certificates import csr, ec_key, key_pair, pem
from tests.beds.clock import Clock
from tests.beds.impostor import FalseCa, false_ca
from tests.beds.patience import PATIENCE

MESH = """\
trust_domain: shop.internal
services:
  web: {}
  api: {ports: {http: 8080}}
  ca: {}
policy:
  - {from: web, to: "api:http"}
"""
CA_ID = f"spiffe://{DOMAIN}/mesh/ca"
NO_TIME = timedelta()


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


class Desk(CaBed):
    """A CA that serves, its log, and whoever asks it."""

    def __init__(self, nursery: trio.Nursery, files: CaFiles) -> None:
        super().__init__(nursery, files)
        self.write, self.make_credential, self.issued = files.elsewhere, files.make_credential, files.issued
        self._denials = 0

    @property
    def roots(self) -> tuple[x509.Certificate, ...]:
        return self.ca.roots

    def keys(
        self, service: str, *, dated: datetime | None = None, ttl: timedelta = HOUR, known: bool = True
    ) -> KeyPair:
        """A certificate of the service, with its key, as the CA issued it ``dated``."""
        return self.files.keys(service, ttl, dated=dated, known=known)

    @property
    def strangers(self) -> int:
        """How many connections are those of nobody known."""
        return len(self.server.connections.room.strangers)

    async def revoke(self, service: str) -> None:
        """``certs revoke``; returns once the CA tells everybody."""
        before = self.server.in_force.etag
        self.revokes(service)
        await until(lambda: self.server.in_force.etag != before)

    def membership(
        self,
        at: Address | None = None,
        *,
        service: str = "web",
        text: str | None = None,
        pin: bytes | None = None,
        state: str = "state",
    ) -> Sidecar:
        """A membership of the mesh, by the CA that is said to be ``at``; ``text``: its token or secret."""
        enrolment = None if text is None else self.write_credential(text)
        url = f"https://{at or self.address}"
        return self.sidecar(service, enrolment, name=state, ca=url, pin=pin)

    def false_ca(self, shows: KeyPair | None = None) -> AbstractAsyncContextManager[FalseCa]:
        """Somebody in the CA's place. By default it shows and answers what the true CA does: a CA that is taken over."""
        if shows is None:
            shows = key_pair(authority.issue(self.ca, "mesh/ca", self.clock(), HOUR))
        return false_ca(shows, self.server.api.routes(), clock=self.clock)

    # -- asking --------------------------------------------------------------------------------------------------------

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
            certificate=pem(certificate).decode(),
            nonce=b64encode(nonce).decode(),
            signature=b64encode(signer.sign(proof, ec.ECDSA(hashes.SHA256()))).decode(),
            csr=csr(key=new_key),
        )

    async def nonce(self) -> bytes:
        return b64decode((await self.post("/v1/nonce")).said["nonce"])

    # -- what must come of it ------------------------------------------------------------------------------------------

    async def denied(self, denial: str, asking: Awaitable[Answer]) -> Answer:
        """Asserts that one more request was denied with this word, and issued nothing; then serves the honest twin."""
        before = self.files.issued()
        answer = await asking
        assert answer.status >= 400, answer.body
        assert answer.said["error"] == denial, answer.said
        self._denials += 1
        await self.log.until(lambda: len(self.log.events("denied")) >= self._denials)
        line = self.log.events("denied")[-1]
        assert (line["reason"], line["message"]) == (denial, answer.said["message"])
        assert len(self.log.events("denied")) == self._denials
        assert self.files.issued() == before
        await self.honest()
        return answer

    async def honest(self) -> x509.Certificate:
        """The twin: web's own new token is worth one certificate of web's."""
        leaf = (await self.enrol("web", self.files.make_credential("web"))).certificate
        assert names_of(leaf)[0] == f"spiffe://{DOMAIN}/web"
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


def drop(stream: SecureStream) -> None:
    """Ends a connection at once, without a word."""
    sockets.hard_close(stream._sock)


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
    before that the CA was made. OpenSSL looks at the machine's clock besides, so what is to pass a handshake must be good by
    both: begin some time ``ago`` and jump towards now."""
    clock = Clock(utc_now() - ago, time.monotonic)
    async with trio.open_nursery() as nursery:
        desk = Desk(nursery, CaFiles(path, clock, mesh=mesh, ttl=ttl, limits=limits, age=age))
        desk.starts()
        yield desk
        nursery.cancel_scope.cancel()
