"""The client of the CA's API: HTTP/1.1 by h11, over TLS. The CA must prove its identity ``mesh/ca`` before any request.

:class:`CaClient` is given the roots to trust and, after enrolment, the certificate to present. Why not an HTTP library:
those verify host names with the interpreter's TLS. Here the peer is a SPIFFE identity, verified like any other peer of a
sidecar (:mod:`sidecar.identity.judge`).

A CA under a root that the sidecar does not have yet cannot be verified. Only the trust bundle may be requested from it,
since a root's signature on the bundle proves it: :meth:`CaClient.bundles` with ``unverified``. Anybody may answer there, so
every size is bounded, by kind of request (:mod:`certs.protocol.wire`).

The CA's name may have several addresses, of several CAs or of several networks (:mod:`certs.protocol.addresses`). All are
tried, staggered (:mod:`sidecar.transport.staggered`), and an attempt ends with the handshake: an address that is dead, or
where something else answers, delays the others by a quarter of a second at most.
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
from certs.protocol.addresses import CaAddresses, Place
from certs.protocol.csr import proof_of_possession
from certs.protocol.denial import is_passing
from sidecar.documents.address import Address
from sidecar.identity.judge import Revocations, VerifyParams, revoked
from sidecar.identity.reasons import Reason, Refused
from sidecar.identity.spiffe import SpiffeId, shown
from sidecar.relay.strand import run
from sidecar.transport import sockets
from sidecar.transport.handshake import shake_hands
from sidecar.transport.http1 import MAX_HEAD_BYTES, Incoming
from sidecar.transport.staggered import AllFailedError, first
from sidecar.transport.stream import BrokenStreamError, SecureStream
from sidecar.transport.tls import Context, KeyPair, Roots, TlsChannel

SECONDS = 10.0
"""The deadline for look-up, connecting and handshake at all addresses together, and for each request."""

MAX_JSON_PARTS = 8192
"""Objects, arrays and commas of an answer other than the revocation list; 64 bundles have 3,000. Its size alone would allow
80,000 objects: 13 ms in which nothing else runs, since the parser holds the interpreter."""

MAX_INTERIM_ANSWERS = 8
"""1xx answers (RFC 9110 15.2) before the one that counts. Ours sends none."""


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
    """An answer to :meth:`CaClient.revocations`. ``document``: None if it has not changed since ``etag``."""

    document: bytes | None
    etag: str


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(slots=True)
class _Connection:
    """A connection to one of the CA's places, after the handshake."""

    place: Place
    channel: TlsChannel
    stream: SecureStream
    incoming: Incoming


def _ignore(_refused: CaUnverifiedError) -> None:
    """Reports nothing."""


class CaClient:
    """One CA, at ``address``. Its connection is kept and reused; :meth:`use` closes it.

    ``suspect``: called when something that is not the CA answered at one address, and the CA at another. No request fails
    then, and it must be known all the same.
    """

    def __init__(
        self,
        address: Address,
        trust_domain: str,
        clock: Callable[[], datetime],
        suspect: Callable[[CaUnverifiedError], object] = _ignore,
    ) -> None:
        self._address = address
        self._addresses = CaAddresses(address)
        self._suspect = suspect
        self._ca = SpiffeId(trust_domain, wire.CA_SEGMENTS)
        self._clock = clock
        self._keys: KeyPair | Roots = ()
        self._revocations = Revocations()
        self._open: _Connection | None = None
        self._lock = trio.Lock()

    async def use(self, keys: KeyPair | Roots, revocations: Revocations) -> None:
        """Sets the certificate to present, the roots to trust, and the revocations, for all later connections."""
        self._keys, self._revocations = keys, revocations
        await self.close()

    async def judge_by(self, revocations: Revocations) -> None:
        """Sets the revocations. The connection to a CA whose certificate is revoked by now is closed."""
        self._revocations = revocations
        channel = None if self._open is None else self._open.channel
        if channel is not None and (
            channel.svid is None or revoked(channel.svid, channel.path, revocations) is not None
        ):
            await self.close()

    async def close(self) -> None:
        if self._open is not None:
            connection, self._open = self._open, None
            await connection.stream.close()

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
            answer = await self._post(wire.NONCE_PATH, {}, wire.MAX_NONCE_BYTES)
            nonce = b64decode(answer[wire.NONCE], validate=True)
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
            connection = await self._connect(context)
            try:
                answer = await _exchange(connection, "GET", target, {}, b"", wire.MAX_UNVERIFIED_BUNDLES_BYTES)
            finally:
                # Nothing says whether this was the CA. So that an impostor at one address does not keep it away for ever:
                self._addresses.put_behind(connection.place)
                await connection.stream.close()
        else:
            answer = await self._request("GET", target, {}, b"", wire.MAX_BUNDLES_BYTES)
        content = _json(answer)
        documents = content.get(wire.BUNDLES) if isinstance(content, dict) else None
        if not isinstance(documents, list):
            raise CaError("the CA's answer is not a list of bundles")
        if len(documents) > wire.MAX_BUNDLES:
            raise CaError(f"the CA's answer has {len(documents)} bundles; at most {wire.MAX_BUNDLES} are read")
        return [json.dumps(document).encode() for document in documents]

    async def revocations(self, etag: str, instance: str, bundle: int) -> Polled:
        """The revocation list, if it has changed since ``etag``. Reports the version of this sidecar's bundle to the CA."""
        headers = {wire.IF_NONE_MATCH_HEADER: etag} if etag else {}
        headers |= {wire.INSTANCE_HEADER: instance, wire.BUNDLE_HEADER: str(bundle)}
        answer = await self._request("GET", wire.REVOCATIONS_PATH, headers, b"", wire.MAX_REVOCATIONS_BYTES)
        if answer.status not in (wire.OK, wire.NOT_MODIFIED):
            _json(answer)
            raise CaError(f"the CA answered with status {answer.status}")
        document = answer.body if answer.status == wire.OK else None
        return Polled(document, answer.headers.get(wire.ETAG_HEADER.lower(), ""))

    async def report(self, instance: str, document: bytes) -> dict[str, Any]:
        """Sends this sidecar's report (:func:`certs.protocol.report.encode`); returns what the CA answers."""
        headers = {wire.CONTENT_TYPE_HEADER: wire.JSON, wire.INSTANCE_HEADER: instance}
        answer = await self._request("POST", wire.REPORT_PATH, headers, document, wire.MAX_REPORT_ANSWER_BYTES)
        content = _json(answer)
        if not isinstance(content, dict):
            raise CaError("the CA's answer to a report is not an object")
        return content

    # -- connections ---------------------------------------------------------------------------------------------------

    async def _post(self, target: str, fields: Mapping[str, str], limit: int = wire.MAX_CERTIFICATE_BYTES) -> Any:
        body = json.dumps(fields).encode()
        return _json(await self._request("POST", target, {wire.CONTENT_TYPE_HEADER: wire.JSON}, body, limit))

    async def _request(self, method: str, target: str, headers: Mapping[str, str], body: bytes, limit: int) -> _Answer:
        async with self._lock:
            if self._open is not None:
                # The CA may have closed this connection meanwhile, or restarted, or its host may be down: try once more on a
                # new one, at another address if there is one.
                try:
                    return await self._over(self._open, method, target, headers, body, limit)
                except CaError:
                    await self.close()
            self._open = await self._connect(Context(self._keys, self._params()))
            return await self._over(self._open, method, target, headers, body, limit)

    async def _over(
        self,
        connection: _Connection,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes,
        limit: int,
    ) -> _Answer:
        try:
            answer = await _exchange(connection, method, target, headers, body, limit)
        except BaseException as error:
            if isinstance(error, CaError):
                self._addresses.put_behind(connection.place)
            self._open = None
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await connection.stream.close()
            raise
        http = connection.incoming.connection
        if answer.status >= 500:  # this CA has a fault; there may be another that has none
            self._addresses.put_behind(connection.place)
            await self.close()
        elif http.our_state is h11.DONE and http.their_state is h11.DONE:
            http.start_next_cycle()
        else:
            await self.close()
        return answer

    def _params(self) -> VerifyParams:
        return VerifyParams(self._ca.trust_domain, revocations=self._revocations)

    async def _connect(self, context: Context) -> _Connection:
        """A connection after the handshake, at the first address where it succeeds. The CA's identity is verified, unless
        the context is unverified."""
        faults: dict[Place, OSError | Refused] = {}
        tried: list[Place] = []

        async def attempt(place: Place) -> _Connection:
            tried.append(place)
            try:
                return await self._attempt(place, context)
            except (OSError, Refused) as fault:
                faults[place] = fault
                raise

        try:
            with trio.fail_after(SECONDS):
                places = await self._addresses.places()
                made = await first(places, attempt, _abandon, faults=(OSError, Refused))
        except OSError as error:  # of the look-up
            raise CaError(f"the CA at {self._address} cannot be reached: {error.strerror or error}") from error
        except (trio.TooSlowError, AllFailedError) as error:
            for place in tried:
                self._addresses.put_behind(place)
            if not tried:
                why = f"its host name was not resolved within {SECONDS:g} s"
                raise CaError(f"the CA at {self._address} cannot be reached: {why}") from error
            raise self._failure(faults, is_late=isinstance(error, trio.TooSlowError)) from error
        for place in tried:
            if place != made.place:
                self._addresses.put_behind(place)
        self._addresses.works(made.place)
        if (suspect := self._unverified(faults)) is not None:
            self._suspect(suspect)
        return made

    async def _attempt(self, place: Place, context: Context) -> _Connection:
        """Connects to one place. Raises OSError and :class:`Refused`."""
        return await self._secure(await sockets.connect(place.family, place.address), place, context)

    async def _secure(self, sock: socket.socket, place: Place, context: Context) -> _Connection:
        """The handshake, over a socket that it owns."""
        channel = context.client((wire.ALPN,), self._ca, self._clock)
        try:
            await run(shake_hands(sock, channel))
        except BaseException as error:
            channel.free()
            if isinstance(error, Refused):
                await sockets.linger(sock)
            sockets.hard_close(sock)
            raise
        stream = SecureStream(sock, channel)
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        return _Connection(place, channel, stream, Incoming(stream, connection))

    def _failure(self, faults: Mapping[Place, OSError | Refused], *, is_late: bool) -> CaError:
        """Why no address worked. A peer that is not the CA counts more than an address that is dead."""
        if (unverified := self._unverified(faults)) is not None:
            return unverified
        said = {place: _words(fault) for place, fault in faults.items()}
        several = [f"at {place}: {text}" for place, text in said.items()] if len(said) > 1 else list(said.values())
        if is_late:
            late = f"the CA at {self._address} did not answer within {SECONDS:g} s"
            return CaError("; ".join([late, *several]))
        if all(isinstance(fault, Refused) for fault in faults.values()):
            return CaError(f"expected {self._ca} at {self._address} but {'; '.join(several)}")
        return CaError(f"the CA at {self._address} cannot be reached: {'; '.join(several)}")

    def _unverified(self, faults: Mapping[Place, OSError | Refused]) -> CaUnverifiedError | None:
        """The first of the peers that did not prove that they are the CA."""
        for place, fault in faults.items():
            if isinstance(fault, Refused) and fault.reason not in (Reason.HANDSHAKE_FAILED, Reason.PEER_REFUSED):
                where = str(self._address) if self._address.ip is not None else f"{self._address} ({place})"
                return CaUnverifiedError(f"expected {self._ca} at {where} but {fault.detail}", fault)
        return None


def _abandon(connection: _Connection) -> None:
    """Closes a connection that is not needed, since another was faster."""
    connection.stream.abandon()


def _words(fault: OSError | Refused) -> str:
    return fault.detail if isinstance(fault, Refused) else fault.strerror or str(fault)


async def _exchange(
    connection: _Connection,
    method: str,
    target: str,
    headers: Mapping[str, str],
    body: bytes,
    limit: int,
) -> _Answer:
    """One request and its answer, of at most ``limit`` bytes."""
    lines = [("Host", "ca"), ("Content-Length", str(len(body))), *headers.items()]
    http = connection.incoming.connection
    try:
        with trio.fail_after(SECONDS):
            data = http.send(h11.Request(method=method, target=target, headers=lines)) or b""
            data += http.send(h11.Data(data=body)) or b""
            data += http.send(h11.EndOfMessage()) or b""
            await connection.stream.send_all(data)
            return await _answer(connection.incoming, limit)
    except trio.TooSlowError as error:
        raise CaError(f"the CA did not answer within {SECONDS:g} s") from error
    except BrokenStreamError as error:
        raise CaError(f"the CA did not answer: {error}") from error
    except (h11.RemoteProtocolError, h11.LocalProtocolError, UnicodeDecodeError) as error:
        raise CaError(f"the CA's answer is not valid HTTP: {shown(str(error))}") from error


async def _answer(incoming: Incoming, limit: int) -> _Answer:
    head, parts, size, interim = None, [], 0, 0
    while True:
        event = await incoming.event()
        if event is h11.NEED_DATA:
            if not await incoming.receive() and head is None:
                raise CaError("the CA closed the connection without an answer")
        elif isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            size += len(event.data)
            if size > limit:
                raise CaError(f"the CA's answer is larger than {limit >> 10} KiB")
            parts.append(event.data)
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            names = {name.decode("ascii"): value.decode("ascii") for name, value in head.headers}
            return _Answer(head.status_code, names, b"".join(map(bytes, parts)))
        elif isinstance(event, h11.InformationalResponse):
            interim += 1
            if interim > MAX_INTERIM_ANSWERS:
                raise CaError(f"the CA sent more than {MAX_INTERIM_ANSWERS} interim answers")
        else:
            raise CaError("the CA closed the connection without an answer")


def _json(answer: _Answer) -> Any:
    """The answer's JSON. Raises :class:`CaDeniedError` if the answer is a refusal."""
    if sum(map(answer.body.count, (b"[", b"{", b","))) > MAX_JSON_PARTS:
        raise CaError(f"the CA's answer is not JSON that is read here: it has more than {MAX_JSON_PARTS} parts")
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
