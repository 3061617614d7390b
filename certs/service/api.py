"""The CA's API: what each path answers. JSON over HTTPS (TLS 1.3, identity ``mesh/ca``); a certificate says who asks.

================================= ==================================================================================
``GET /healthz``                  200 while the store can be written, else 503
``GET /metrics``                  for Prometheus
``POST /v1/enrol``                ``{"service", "pass", "csr"}`` → ``{"certificate"}``: a token's or secret's holder
``POST /v1/renew``                ``{"csr"}`` → ``{"certificate"}``: over mutual TLS, with the current certificate
``POST /v1/nonce``                → ``{"nonce"}``, good for a minute
``POST /v1/reenrol``              ``{"certificate", "nonce", "signature", "csr"}`` → ``{"certificate"}``: by the key of a
                                  certificate that ended lately
``GET /v1/bundle?after=N``        ``{"bundles": [...]}``: the trust bundles newer than N, the oldest first
``GET /v1/revocations``           the list; ``If-None-Match`` → 304. ``Mesh-Bundle`` says the newest bundle's version.
                                  A sidecar says what it has by ``Mesh-Instance`` and ``Mesh-Bundle``
================================= ==================================================================================

A certificate is PEM of the leaf, then of the CA that issued it. A no is ``{"error", "message"}``, its words in
:class:`certs.protocol.denial.Denial`. Nothing here opens a connection.
"""

from __future__ import annotations

import hmac
import json
import math
import secrets
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from ipaddress import ip_address
from typing import Any, Protocol

import trio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certs.protocol import wire
from certs.protocol.denial import INTERNAL_ERROR, INTERNAL_ERROR_STATUS, Denial, Denied
from certs.protocol.documents import Bundle
from certs.protocol.enrolment import parse as parse_pass
from certs.registrar import bundles, followers, registrar
from certs.registrar.followers import Follower
from certs.service import metrics
from certs.service.guesses import Guesses
from certs.service.limits import Buckets, Rate
from certs.store.store import Operation, Store, StoreUnavailableError, Transaction
from certs.store.writer import Writer
from sidecar.observe.logs import Log
from sidecar.transport.http1 import Handler, Request, Response, Routes, error

HEALTHY_SECONDS = 1.0
SEEN_SECONDS = 30.0
"""How often it is noted that a sidecar which has nothing new still asks."""

NOTE_SECONDS = 2.0
"""How long an answer waits for that note to be on the disk."""

MOST_SEEN = 10_000

_FOLLOWER_HEADERS = (wire.INSTANCE_HEADER.lower(), wire.BUNDLE_HEADER.lower())  # as h11 names them


@dataclass(frozen=True, slots=True)
class RateLimits:
    """How often. ``guesses``: wrong passes from one address. ``identity``: certificates for one identity. ``everybody``:
    certificates in all."""

    guesses: Rate = field(default=Rate(10, 0.1))
    identity: Rate = field(default=Rate(300, 5))
    everybody: Rate = field(default=Rate(2000, 500))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the CA answers by now; replaced whole. ``revocations``: the signed list, and ``etag`` its name."""

    policy: registrar.IssuingPolicy
    bundle: Bundle
    revocations: bytes
    etag: str


class Desk(Protocol):
    """Where the API finds what is in force."""

    @property
    def in_force(self) -> Snapshot: ...


@dataclass(slots=True)
class CaApi:
    """The handlers, and what they keep between requests. ``clock`` tells the time of day."""

    desk: Desk
    store: Store
    writer: Writer
    log: Log
    clock: Callable[[], datetime]
    limits: RateLimits = field(default_factory=RateLimits)
    metrics: metrics.Metrics = field(default_factory=metrics.Metrics)
    _guesses: Guesses = field(init=False)
    _identities: Buckets = field(init=False)
    _everybody: Buckets = field(init=False)
    _healthy_at: float = -math.inf
    _seen: dict[str, tuple[Follower, float]] = field(default_factory=dict)
    _nonce_key: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    def __post_init__(self) -> None:
        self._guesses = Guesses(self.limits.guesses)
        self._identities = Buckets(self.limits.identity)
        self._everybody = Buckets(self.limits.everybody)

    def routes(self) -> Routes:
        return {
            "/healthz": {"GET": self._safe(self.healthz)},
            "/metrics": {"GET": self._safe(self.tell_metrics)},
            wire.ENROL_PATH: {"POST": self._safe(self.enrol)},
            wire.RENEW_PATH: {"POST": self._safe(self.renew)},
            wire.NONCE_PATH: {"POST": self._safe(self.nonce)},
            wire.REENROL_PATH: {"POST": self._safe(self.reenrol)},
            wire.BUNDLE_PATH: {"GET": self._safe(self.bundle)},
            wire.REVOCATIONS_PATH: {"GET": self._safe(self.revocations)},
        }

    def _safe(self, handler: Handler) -> Handler:
        """The handler, its denials turned into answers; a bug of ours ends one request, and is seen."""

        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except Denied as denied:
                self.metrics.denied(str(denied.denial))
                self.log.warning(
                    "denied",
                    reason=str(denied.denial),
                    message=denied.message,
                    peer_address=request.peer.address,
                    peer_id=None if request.peer.svid is None else str(request.peer.svid.id),
                )
                return error(denied.denial.status, denied.denial, denied.message)
            except StoreUnavailableError as gone:
                self.metrics.denied(str(Denial.UNAVAILABLE))
                self.log.warning("store_unavailable", message=str(gone))
                return error(
                    Denial.UNAVAILABLE.status,
                    Denial.UNAVAILABLE,
                    "the CA's store is not there now; try again",
                    {"Retry-After": "5"},
                )
            except Exception as fault:
                self.log.bug("internal_error", fault)
                return error(INTERNAL_ERROR_STATUS, INTERNAL_ERROR, "a bug in the CA; its log says which")

        return answer

    # -- about itself --------------------------------------------------------------------------------------------------

    async def healthz(self, _request: Request) -> Response:
        # Anybody may ask, and each answer costs a wait for the disk: so one a second.
        now = trio.current_time()
        if now - self._healthy_at >= HEALTHY_SECONDS:
            await self.writer.write(_probe)
            self._healthy_at = now
        return Response.of(wire.OK, {"status": "ok"})

    async def tell_metrics(self, _request: Request) -> Response:
        now = self.desk.in_force
        text = self.metrics.text(
            now.policy.authority.issuer.certificate.not_valid_after_utc, now.bundle.version, len(self._seen)
        )
        return Response(wire.OK, text, "text/plain; version=0.0.4; charset=utf-8")

    # -- certificates --------------------------------------------------------------------------------------------------

    async def enrol(self, request: Request) -> Response:
        said = _fields(request.body, *wire.ENROL_FIELDS)
        async with self._guesses.turn(_source(request.peer.address)):
            policy = self._policy()
            try:
                shown = parse_pass(said[wire.PASS])
            except ValueError as fault:
                raise Denied(Denial.BAD_PASS, f"the pass is {fault}") from fault
            certificate = await self.writer.write(
                lambda transaction: registrar.enrol(transaction, policy, shown, said[wire.SERVICE], said[wire.CSR])
            )
        return self._granted(certificate, shown.kind)

    async def renew(self, request: Request) -> Response:
        said = _fields(request.body, *wire.RENEW_FIELDS)
        path, policy = request.peer.path, self._policy()
        if not path:
            raise Denied(Denial.NO_CERTIFICATE, "a renewal comes over mutual TLS, with the certificate that is renewed")
        certificate = await self.writer.write(
            lambda transaction: registrar.renew(transaction, policy, path, said[wire.CSR])
        )
        return self._granted(certificate, "renewal")

    async def nonce(self, _request: Request) -> Response:
        return Response.of(wire.OK, {wire.NONCE: b64encode(self._make_nonce()).decode()})

    async def reenrol(self, request: Request) -> Response:
        said = _fields(request.body, *wire.REENROL_FIELDS)
        policy = self._policy()
        try:
            nonce, signature = (b64decode(said[name], validate=True) for name in (wire.NONCE, wire.SIGNATURE))
            certificate = x509.load_pem_x509_certificate(said[wire.CERTIFICATE].encode()).public_bytes(Encoding.DER)
        except Exception as fault:  # whatever the parsers raise of a stranger's bytes
            raise Denied(Denial.BAD_REQUEST, "certificate is PEM, nonce and signature are base64") from fault
        self._check_nonce(nonce)
        answer = await self.writer.write(
            lambda transaction: registrar.reenrol(transaction, policy, certificate, nonce, signature, said[wire.CSR])
        )
        return self._granted(answer, "re-enrolment")

    def _policy(self) -> registrar.IssuingPolicy:
        return self.desk.in_force.policy

    def _granted(self, certificate: str, how: str) -> Response:
        self.metrics.issued(how)
        return Response.of(wire.OK, {wire.CERTIFICATE: certificate})

    def admit(self, identity: str) -> bool:
        """Whether one more certificate may be issued for ``identity``.
        (:class:`certs.registrar.registrar.IssuingPolicy` asks, when all else is right, so that nobody uses up the turns of
        another.)"""
        now = self.clock().timestamp()
        return self._identities.take(identity, now) and self._everybody.take("", now)

    def _make_nonce(self) -> bytes:
        """The time, authenticated: nothing is kept of it. Another CA of the same mesh does not know it, and its sidecar asks
        again; it need not be used once, because what it helps to get is a certificate for one given key."""
        body = int(self.clock().timestamp()).to_bytes(8, "big") + secrets.token_bytes(8)
        return body + hmac.digest(self._nonce_key, body, "sha256")

    def _check_nonce(self, nonce: bytes) -> None:
        body, tag = nonce[:16], nonce[16:]
        age = int(self.clock().timestamp()) - int.from_bytes(body[:8], "big")
        if (
            not hmac.compare_digest(tag, hmac.digest(self._nonce_key, body, "sha256"))
            or not 0 <= age <= wire.NONCE_SECONDS
        ):
            raise Denied(Denial.BAD_REQUEST, "the nonce is not of this CA, or older than a minute; ask for another")

    # -- trust ---------------------------------------------------------------------------------------------------------

    async def bundle(self, request: Request) -> Response:
        after = request.query.get(wire.AFTER, "0")
        if set(request.query) - {wire.AFTER} or not wire.VERSION.fullmatch(after):
            raise Denied(
                Denial.BAD_REQUEST, f"ask for {wire.BUNDLE_PATH}?{wire.AFTER}=N, N being the version that you have"
            )
        documents = await trio.to_thread.run_sync(
            self.store.read, lambda connection: bundles.bundles_after(connection, int(after))
        )
        return Response.of(wire.OK, {wire.BUNDLES: [json.loads(document) for document in documents]})

    async def revocations(self, request: Request) -> Response:
        # The list is at hand, and who has none lets nobody in: a store that cannot be written keeps it from nobody.
        with trio.move_on_after(NOTE_SECONDS):
            try:
                await self._note(request)
            except StoreUnavailableError as gone:
                self.log.warning("store_unavailable", message=str(gone))
        now = self.desk.in_force
        headers = {wire.ETAG_HEADER: now.etag, wire.BUNDLE_HEADER: str(now.bundle.version)}
        if request.headers.get(wire.IF_NONE_MATCH_HEADER.lower()) == now.etag:
            return Response(wire.NOT_MODIFIED, headers=headers)
        return Response(wire.OK, now.revocations, headers=headers)

    async def _note(self, request: Request) -> None:
        """Remembers what a sidecar has, if it says so; what it says of itself changes nothing but who is waited for."""
        svid, path = request.peer.svid, request.peer.path
        instance, bundle = (request.headers.get(name, "") for name in _FOLLOWER_HEADERS)
        if svid is None or not wire.INSTANCE.fullmatch(instance) or not wire.VERSION.fullmatch(bundle):
            return
        found = Follower(
            sha256(f"{svid.id} {instance}".encode()).hexdigest()[:32],  # nobody overwrites another's
            str(svid.id),
            int(bundle),
            sha256(path[-1]).hexdigest(),
            svid.not_after,
            self.clock(),
        )
        before, at = self._seen.get(found.instance, (None, 0.0))
        now = trio.current_time()
        if before is not None and _same(before, found) and now - at < SEEN_SECONDS:
            return
        await self.writer.write(lambda transaction: followers.save(transaction, found))
        self._seen[found.instance] = (found, now)
        if len(self._seen) > MOST_SEEN:
            lately = {key: one for key, one in self._seen.items() if now - one[1] < 2 * SEEN_SECONDS}
            # A peer may call itself something else each time. Who is forgotten is noted once more.
            self._seen = lately if len(lately) < MOST_SEEN / 2 else {}

    async def write(self, operation: Operation[Any]) -> Any:
        """For what is no request."""
        return await self.writer.write(operation)


def etag(document: bytes) -> str:
    return f'"{sha256(document).hexdigest()[:32]}"'


def _same(one: Follower, other: Follower) -> bool:
    return (one.bundle, one.root, one.not_after) == (other.bundle, other.root, other.not_after)


def _fields(body: bytes, *names: str) -> dict[str, str]:
    """A JSON object of exactly these texts. Raises :class:`Denied`."""
    try:
        said = json.loads(body, object_pairs_hook=_once)
    except (ValueError, RecursionError) as fault:
        raise Denied(Denial.BAD_REQUEST, "the body is no JSON") from fault
    if not isinstance(said, dict) or set(said) != set(names) or not all(isinstance(it, str) for it in said.values()):
        raise Denied(
            Denial.BAD_REQUEST, f"the body is a JSON object of {', '.join(names)}, each a text, and nothing else"
        )
    return said


def _probe(transaction: Transaction) -> None:
    """Something that is new each time: where nothing changes, SQLite writes nothing, and a full disk is not noticed."""
    transaction.put("probe", secrets.token_hex(8))


def _source(address: str) -> str:
    """Whose guesses count together: an IPv4 address, or the /64 that one host has of IPv6."""
    ip = ip_address(address.rpartition(":")[0].strip("[]"))
    return str(ip) if ip.version == 4 else ip.exploded[:19]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, each of whose names is there once: two readers might take two that are there as different ones."""
    said = dict(pairs)
    if len(said) != len(pairs):
        raise ValueError("a name is there twice")
    return said
