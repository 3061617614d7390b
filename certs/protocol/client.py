"""Asking the CA: HTTP/1.1 by h11, over TLS in which the CA proves to be ``mesh/ca`` before anything is said.

:class:`CaClient` is given what to trust and, once there is one, the certificate to show. Why no HTTP library: they know
hosts, by the interpreter's TLS; here the peer is a SPIFFE identity, judged as every peer of a sidecar's is
(:mod:`sidecar.identity.judge`).

A CA whose certificate is under a root that is not known yet cannot be verified. All that may be asked of it then is the
trust bundle, which proves itself by a root's own signature: :meth:`CaClient.bundles` with ``unverified``.
"""

from __future__ import annotations

import json
import socket
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import h11
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from certs.protocol import wire
from certs.protocol.csr import proof_of_possession
from certs.protocol.denial import is_passing
from sidecar.documents.address import Address
from sidecar.identity.judge import Revocations, VerifyParams
from sidecar.identity.reasons import Reason, Refused
from sidecar.identity.spiffe import SpiffeId, shown
from sidecar.transport import sockets
from sidecar.transport.handshake import shake_hands
from sidecar.transport.stream import BrokenStreamError, SecureStream
from sidecar.transport.tls import Context, KeyPair, Roots

SECONDS = 10.0
"""For connecting and the handshake, and again for each request."""


class CaError(Exception):
    """The CA could not be asked, or its answer made no sense. Worth trying again."""


class CaUnverifiedError(CaError):
    """Whoever answered did not prove to be the CA. ``refusal`` says how."""

    def __init__(self, message: str, refusal: Refused) -> None:
        super().__init__(message)
        self.refusal = refusal


class CaDeniedError(CaError):
    """The CA said no: ``denial`` is one of :class:`certs.protocol.denial.Denial`. Asking again the same way is of no use,
    unless ``passing``."""

    def __init__(self, denial: str, message: str, *, passing: bool) -> None:
        super().__init__(message)
        self.denial = denial
        self.passing = passing


@dataclass(frozen=True, slots=True)
class Polled:
    """An answer to :meth:`CaClient.revocations`. ``document``: None while it is the one that ``etag`` names. ``bundle``: the
    newest bundle's version."""

    document: bytes | None
    etag: str
    bundle: int


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


class CaClient:
    """One CA, at ``address``. Connections are kept and used again; a change of what is shown or trusted makes new ones."""

    def __init__(self, address: Address, trust_domain: str, clock: Callable[[], datetime]) -> None:
        self._address = address
        self._ca = SpiffeId(trust_domain, wire.CA_SEGMENTS)
        self._clock = clock
        self._keys: KeyPair | Roots = ()
        self._revocations = Revocations()
        self._open: tuple[SecureStream, h11.Connection] | None = None
        self._lock = trio.Lock()

    async def use(self, keys: KeyPair | Roots, revocations: Revocations) -> None:
        """From now on show and trust these."""
        self._keys, self._revocations = keys, revocations
        await self.close()

    async def close(self) -> None:
        if self._open is not None:
            stream, self._open = self._open[0], None
            await stream.close()

    # -- what can be asked ---------------------------------------------------------------------------------------------

    async def enrol(self, service: str, text: str, csr: bytes) -> bytes:
        """The first certificate, by a token or secret: the chain in PEM."""
        said = await self._post(wire.ENROL_PATH, {wire.SERVICE: service, wire.PASS: text, wire.CSR: csr.decode()})
        return _certificate(said)

    async def renew(self, csr: bytes) -> bytes:
        """The next certificate, by the one that is shown."""
        return _certificate(await self._post(wire.RENEW_PATH, {wire.CSR: csr.decode()}))

    async def reenrol(
        self,
        certificate: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
        csr: bytes,
        new_key: ec.EllipticCurvePublicKey,
    ) -> bytes:
        """The next certificate, by the key of one that has ended, or that is under a root that is gone."""
        try:
            nonce = b64decode((await self._post(wire.NONCE_PATH, {}))[wire.NONCE], validate=True)
        except (KeyError, TypeError, ValueError) as error:
            raise CaError("the CA answered something that is no nonce") from error
        signature = key.sign(proof_of_possession(nonce, new_key), ec.ECDSA(hashes.SHA256()))
        said = {
            wire.CERTIFICATE: certificate.public_bytes(Encoding.PEM).decode(),
            wire.NONCE: b64encode(nonce).decode(),
            wire.SIGNATURE: b64encode(signature).decode(),
            wire.CSR: csr.decode(),
        }
        return _certificate(await self._post(wire.REENROL_PATH, said))

    async def bundles(self, after: int, *, unverified: bool = False) -> list[bytes]:
        """The trust bundles newer than a version, the oldest first. None of them is checked here."""
        target = f"{wire.BUNDLE_PATH}?{wire.AFTER}={after}"
        if unverified:
            roots: Roots = ()
            context = Context(roots, VerifyParams(self._ca.trust_domain), unverified=True)
            stream = await self._connect(context)
            try:
                answer = await _exchange(stream, h11.Connection(h11.CLIENT), "GET", target, {}, b"")
            finally:
                await stream.close()
        else:
            answer = await self._request("GET", target, {}, b"")
        said = _json(answer)
        if not isinstance(said, dict) or not isinstance(said.get(wire.BUNDLES), list):
            raise CaError("the CA answered something that is no list of bundles")
        return [json.dumps(bundle).encode() for bundle in said[wire.BUNDLES]]

    async def revocations(self, etag: str, instance: str, bundle: int) -> Polled:
        """The list of revocations, if it is not the one that ``etag`` names. Tells the CA which bundle this sidecar has."""
        headers = {wire.IF_NONE_MATCH_HEADER: etag} if etag else {}
        headers |= {wire.INSTANCE_HEADER: instance, wire.BUNDLE_HEADER: str(bundle)}
        answer = await self._request("GET", wire.REVOCATIONS_PATH, headers, b"")
        if answer.status not in (wire.OK, wire.NOT_MODIFIED):
            _json(answer)
            raise CaError(f"the CA answered with status {answer.status}")
        try:
            newest = int(answer.headers[wire.BUNDLE_HEADER.lower()])
        except (KeyError, ValueError) as error:
            raise CaError("the CA's answer does not say which trust bundle is the newest") from error
        return Polled(
            answer.body if answer.status == wire.OK else None, answer.headers.get(wire.ETAG_HEADER.lower(), ""), newest
        )

    # -- how it is asked -----------------------------------------------------------------------------------------------

    async def _post(self, target: str, said: Mapping[str, str]) -> Any:
        body = json.dumps(said).encode()
        return _json(await self._request("POST", target, {wire.CONTENT_TYPE_HEADER: wire.JSON}, body))

    async def _request(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> _Answer:
        async with self._lock:
            if self._open is not None:
                # The CA may have closed it meanwhile, or died: that is no answer, and there is a new connection to be had.
                try:
                    return await self._over_open(method, target, headers, body)
                except CaError:
                    await self.close()
            self._open = (await self._connect(Context(self._keys, self._params())), h11.Connection(h11.CLIENT))
            return await self._over_open(method, target, headers, body)

    async def _over_open(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> _Answer:
        if self._open is None:
            raise CaError("the connection to the CA was closed")
        stream, connection = self._open
        try:
            answer = await _exchange(stream, connection, method, target, headers, body)
        except BaseException:
            self._open = None
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await stream.close()
            raise
        if connection.our_state is h11.DONE and connection.their_state is h11.DONE:
            connection.start_next_cycle()
        else:
            await self.close()
        return answer

    def _params(self) -> VerifyParams:
        return VerifyParams(self._ca.trust_domain, revocations=self._revocations)

    async def _connect(self, context: Context) -> SecureStream:
        """A connection on which the CA has proved who it is, unless the context asks for no proof."""
        failed: OSError | None = None
        try:
            with trio.fail_after(SECONDS):
                found = await trio.socket.getaddrinfo(
                    self._address.host, self._address.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICSERV
                )
                for family, _, _, _, address in found:
                    try:
                        sock = await sockets.connect(family, tuple(address))  # type: ignore[arg-type]
                        break
                    except OSError as error:
                        failed = error
                else:
                    raise failed or OSError("its name has no address")
                channel = context.client(wire.ALPN, self._ca, self._clock)
                try:
                    await shake_hands(sock, channel)
                except Refused:
                    await sockets.linger(sock)
                    raise
                except BaseException:
                    sockets.hard_close(sock)
                    raise
        except OSError as error:
            raise CaError(f"the CA at {self._address} cannot be reached: {error.strerror or error}") from error
        except trio.TooSlowError as error:
            raise CaError(f"the CA at {self._address} did not answer within {SECONDS:g} s") from error
        except Refused as refusal:
            message = f"expected {self._ca} at {self._address} but {refusal.detail}"
            if refusal.reason in (Reason.HANDSHAKE_FAILED, Reason.PEER_REFUSED):
                raise CaError(message) from refusal
            raise CaUnverifiedError(message, refusal) from refusal
        return SecureStream(sock, channel)


async def _exchange(
    stream: SecureStream,
    connection: h11.Connection,
    method: str,
    target: str,
    headers: Mapping[str, str],
    body: bytes,
) -> _Answer:
    """One request and its answer."""
    lines = [("Host", "ca"), ("Content-Length", str(len(body))), *headers.items()]
    try:
        with trio.fail_after(SECONDS):
            data = connection.send(h11.Request(method=method, target=target, headers=lines)) or b""
            data += connection.send(h11.Data(data=body)) or b""
            data += connection.send(h11.EndOfMessage()) or b""
            await stream.send_all(data)
            return await _answer(stream, connection)
    except trio.TooSlowError as error:
        raise CaError(f"the CA did not answer within {SECONDS:g} s") from error
    except BrokenStreamError as error:
        raise CaError(f"the CA did not answer: {error}") from error
    except (h11.RemoteProtocolError, h11.LocalProtocolError, UnicodeDecodeError) as error:
        raise CaError(f"the CA's answer is no HTTP: {shown(str(error))}") from error


async def _answer(stream: SecureStream, connection: h11.Connection) -> _Answer:
    head, parts, size = None, [], 0
    while True:
        event: Any = connection.next_event()
        if event is h11.NEED_DATA:
            data = await stream.receive_some()
            if not data and head is None:
                raise CaError("the CA closed the connection without an answer")
            connection.receive_data(data)
        elif isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            size += len(event.data)
            if size > wire.MAX_ANSWER_BYTES:
                raise CaError(f"the CA's answer is larger than {wire.MAX_ANSWER_BYTES >> 20} MiB")
            parts.append(event.data)
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            names = {name.decode("ascii"): value.decode("ascii") for name, value in head.headers}
            return _Answer(head.status_code, names, b"".join(map(bytes, parts)))
        elif not isinstance(event, h11.InformationalResponse):
            raise CaError("the CA closed the connection without an answer")


def _json(answer: _Answer) -> Any:
    """What the CA says. Raises :class:`CaDeniedError` where that is no."""
    try:
        said = json.loads(answer.body)
    except (ValueError, RecursionError) as error:
        raise CaError(f"the CA answered something that is no JSON (status {answer.status})") from error
    if answer.status == wire.OK:
        return said
    denial, message = "", ""
    if isinstance(said, dict):
        denial, message = (shown(str(said.get(key, "")), 300)[1:-1] for key in (wire.ERROR, wire.MESSAGE))
    raise CaDeniedError(denial, f"the CA says no ({denial}): {message}", passing=is_passing(answer.status))


def _certificate(said: Any) -> bytes:
    if not isinstance(said, dict) or not isinstance(said.get(wire.CERTIFICATE), str):
        raise CaError("the CA answered something that is no certificate")
    return str(said[wire.CERTIFICATE]).encode()
