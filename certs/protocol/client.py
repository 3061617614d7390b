"""The client of the CA's API: HTTP/1.1 by h11, over TLS. The CA must prove its identity ``mesh/ca`` before any request.

:class:`CaClient` is given the roots to trust and, after enrolment, the certificate to present. Why not an HTTP library:
those verify host names with the interpreter's TLS. Here the peer is a SPIFFE identity, verified like any other peer of a
sidecar (:mod:`sidecar.identity.judge`).

A CA under a root that the sidecar does not have yet cannot be verified. Only the trust bundle may be requested from it,
since a root's signature on the bundle proves it: :meth:`CaClient.bundles` with ``unverified``.
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
"""The deadline for connecting and the handshake together, and for each request."""


class CaError(Exception):
    """The CA could not be reached, or its answer is invalid. The caller may retry."""


class CaUnverifiedError(CaError):
    """The peer did not prove that it is the CA. ``refusal``: the verification's result."""

    def __init__(self, message: str, refusal: Refused) -> None:
        super().__init__(message)
        self.refusal = refusal


class CaDeniedError(CaError):
    """The CA refused the request. ``denial``: a word of :class:`certs.protocol.denial.Denial`. ``passing``: whether the same
    request may succeed later."""

    def __init__(self, denial: str, message: str, *, passing: bool) -> None:
        super().__init__(message)
        self.denial = denial
        self.passing = passing


@dataclass(frozen=True, slots=True)
class Polled:
    """An answer to :meth:`CaClient.revocations`. ``document``: None if it has not changed since ``etag``. ``bundle``: the
    version of the newest bundle."""

    document: bytes | None
    etag: str
    bundle: int


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


class CaClient:
    """One CA, at ``address``. Its connection is kept and reused; :meth:`use` closes it."""

    def __init__(self, address: Address, trust_domain: str, clock: Callable[[], datetime]) -> None:
        self._address = address
        self._ca = SpiffeId(trust_domain, wire.CA_SEGMENTS)
        self._clock = clock
        self._keys: KeyPair | Roots = ()
        self._revocations = Revocations()
        self._open: tuple[SecureStream, h11.Connection] | None = None
        self._lock = trio.Lock()

    async def use(self, keys: KeyPair | Roots, revocations: Revocations) -> None:
        """Sets the certificate to present, the roots to trust, and the revocations, for all later connections."""
        self._keys, self._revocations = keys, revocations
        await self.close()

    async def close(self) -> None:
        if self._open is not None:
            stream, self._open = self._open[0], None
            await stream.close()

    # -- requests ------------------------------------------------------------------------------------------------------

    async def enrol(self, service: str, text: str, csr: bytes) -> bytes:
        """Enrols with a token or secret (``text``); returns the first certificate chain in PEM."""
        answer = await self._post(wire.ENROL_PATH, {wire.SERVICE: service, wire.PASS: text, wire.CSR: csr.decode()})
        return _certificate(answer)

    async def renew(self, csr: bytes) -> bytes:
        """Renews the certificate that this client presents; returns the chain in PEM."""
        return _certificate(await self._post(wire.RENEW_PATH, {wire.CSR: csr.decode()}))

    async def reenrol(
        self,
        certificate: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
        csr: bytes,
        new_key: ec.EllipticCurvePublicKey,
    ) -> bytes:
        """Re-enrols with the key of a certificate that has expired or whose root is retired; returns the chain in PEM."""
        try:
            nonce = b64decode((await self._post(wire.NONCE_PATH, {}))[wire.NONCE], validate=True)
        except (KeyError, TypeError, ValueError) as error:
            raise CaError("the CA's answer is not a nonce") from error
        signature = key.sign(proof_of_possession(nonce, new_key), ec.ECDSA(hashes.SHA256()))
        fields = {
            wire.CERTIFICATE: certificate.public_bytes(Encoding.PEM).decode(),
            wire.NONCE: b64encode(nonce).decode(),
            wire.SIGNATURE: b64encode(signature).decode(),
            wire.CSR: csr.decode(),
        }
        return _certificate(await self._post(wire.REENROL_PATH, fields))

    async def bundles(self, after: int, *, unverified: bool = False) -> list[bytes]:
        """The trust bundles newer than version ``after``, oldest first. They are not verified here."""
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
        content = _json(answer)
        if not isinstance(content, dict) or not isinstance(content.get(wire.BUNDLES), list):
            raise CaError("the CA's answer is not a list of bundles")
        return [json.dumps(bundle).encode() for bundle in content[wire.BUNDLES]]

    async def revocations(self, etag: str, instance: str, bundle: int) -> Polled:
        """The revocation list, if it has changed since ``etag``. Reports the version of this sidecar's bundle to the CA."""
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

    # -- connections ---------------------------------------------------------------------------------------------------

    async def _post(self, target: str, fields: Mapping[str, str]) -> Any:
        body = json.dumps(fields).encode()
        return _json(await self._request("POST", target, {wire.CONTENT_TYPE_HEADER: wire.JSON}, body))

    async def _request(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> _Answer:
        async with self._lock:
            if self._open is not None:
                # The CA may have closed this connection meanwhile, or restarted: try once more on a new one.
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
        """A connection after the handshake. The CA's identity is verified, unless the context is unverified."""
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
                    raise failed or OSError("its host name has no address")
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
        raise CaError(f"the CA's answer is not valid HTTP: {shown(str(error))}") from error


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
    """The answer's JSON. Raises :class:`CaDeniedError` if the answer is a refusal."""
    try:
        content = json.loads(answer.body)
    except (ValueError, RecursionError) as error:
        raise CaError(f"the CA's answer is not JSON (status {answer.status})") from error
    if answer.status == wire.OK:
        return content
    denial, message = "", ""
    if isinstance(content, dict):
        denial, message = (shown(str(content.get(key, "")), 300)[1:-1] for key in (wire.ERROR, wire.MESSAGE))
    raise CaDeniedError(denial, f"the CA refused ({denial}): {message}", passing=is_passing(answer.status))


def _certificate(content: Any) -> bytes:
    if not isinstance(content, dict) or not isinstance(content.get(wire.CERTIFICATE), str):
        raise CaError("the CA's answer is not a certificate")
    return str(content[wire.CERTIFICATE]).encode()
