"""The handlers of the CA's API. JSON over HTTPS (TLS 1.3, identity ``mesh/ca``); a client certificate identifies the caller.

================================= ==================================================================================
``GET /livez``                    200
``GET /healthz``, ``/readyz``     200 while the store can be written, the newest bundle is in force, and certificates and
                                  lists can be signed under it; else 503
``GET /metrics``                  for Prometheus
``POST /v1/enrol``                ``{"service", "pass", "csr"}`` → ``{"certificate"}``: with a token or secret
``POST /v1/renew``                ``{"csr"}`` → ``{"certificate"}``: over mutual TLS, with the current certificate
``POST /v1/nonce``                → ``{"nonce"}``, valid for a minute
``POST /v1/reenrol``              ``{"certificate", "nonce", "signature", "csr"}`` → ``{"certificate"}``: with the key of
                                  a certificate that expired recently
``GET /v1/bundle?after=N``        ``{"bundles": [...]}``: the trust bundles newer than N, oldest first
``GET /v1/revocations``           the revocation list; ``If-None-Match`` → 304. ``Mesh-Bundle`` is the newest bundle's
                                  version, for people; sidecars read it in the signed list. A sidecar reports
                                  what it has by ``Mesh-Instance`` and ``Mesh-Bundle``
``POST /v1/report``               what a sidecar reports (:mod:`certs.protocol.report`) → ``{"live", "now"}``: which
                                  certificates of its identity are in use (:mod:`certs.registrar.twins`), and the time:
                                  over mutual TLS, with ``Mesh-Instance``
================================= ==================================================================================

A certificate is PEM of the leaf, then of the issuing CA. A refusal is ``{"error", "message"}``; ``error`` is a
:class:`certs.protocol.denial.Denial`. Nothing here opens a connection.
"""

from __future__ import annotations

import hmac
import json
import math
import secrets
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import ip_address
from typing import Any, Protocol

import trio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certs.protocol import report, wire, x509_profile
from certs.protocol.denial import INTERNAL_ERROR, INTERNAL_ERROR_STATUS, Denial, Denied
from certs.protocol.documents import Bundle, unique
from certs.protocol.enrolment import parse as parse_credential
from certs.registrar import bundles, followers, registrar, twins
from certs.registrar.followers import Follower
from certs.service import metrics
from certs.service.alarm_desk import AlarmDesk
from certs.service.limits import Buckets, Rate
from certs.service.reports import Kept, Reports
from certs.store.store import Operation, Store, StoreUnavailableError, Transaction
from certs.store.writer import Writer
from sidecar import __version__
from sidecar.identity.judge import Revocations, revoked
from sidecar.identity.spiffe import SpiffeId
from sidecar.observe import exposition
from sidecar.observe.logs import Log
from sidecar.transport.http1 import Handler, Peer, Request, Response, Routes, error

HEALTHY_SECONDS = 1.0
SEEN_SECONDS = 30.0
"""How often a poll without changes is recorded in the store."""

NOTE_SECONDS = 2.0
"""How long an answer waits for that record to be on disk."""

MAX_JSON_PARTS = 64
"""Objects, arrays and commas of a body. The largest that is valid has four; 20,000 fit, and would take milliseconds."""

_DAY = timedelta(days=1)
MOST_SEEN = 10_000
MOST_READERS = 4
"""Threads that read the store for callers, so that they do not use up the threads that follow files."""

_FOLLOWER_HEADERS = (wire.INSTANCE_HEADER.lower(), wire.BUNDLE_HEADER.lower())  # as h11 names them


def daily(ttl: timedelta) -> Rate:
    """How many certificates one identity may have in a day: a quarter more than 256 replicas need, each of which renews at
    half of a life, and enough for restarts. The store takes 3 KB for each, so with lives of one hour one service can make it
    grow by 45 MB a day. Of what has ended, :func:`certs.registrar.registrar.prune` keeps little."""
    most = max(5000, round(1.25 * followers.MOST_FOLLOWERS * 2 * (_DAY / ttl)))
    return Rate(most, most / _DAY.total_seconds())


@dataclass(frozen=True, slots=True)
class RateLimits:
    """The rate limits. ``guesses``: wrong enrolment credentials from one address; a correct one is never refused.
    ``identity``: certificates for one identity at once, ``day``: in a day, since each is recorded (:func:`daily`).
    ``everybody``: certificates in total. ``reports``: of one identity, which has as many replicas as followers."""

    guesses: Rate = field(default=Rate(10, 0.1))
    identity: Rate = field(default=Rate(300, 5))
    day: Rate = field(default_factory=lambda: daily(x509_profile.DEFAULT_TTL))
    everybody: Rate = field(default=Rate(2000, 500))
    reports: Rate = field(default=Rate(300, 60))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state that answers requests; replaced as a whole. ``revocations``: the signed list. ``etag``: its HTTP ETag.
    ``revoked``: what is revoked or distrusted, to judge callers by. ``listed``: the list's version and date.
    ``mesh_version``: of the mesh file."""

    policy: registrar.IssuingPolicy
    bundle: Bundle
    revocations: bytes
    etag: str
    revoked: Revocations
    listed: tuple[int, datetime] = (0, datetime.fromtimestamp(0, UTC))
    mesh_version: str = ""


class SnapshotSource(Protocol):
    """Gives the API the current snapshot."""

    @property
    def in_force(self) -> Snapshot: ...


@dataclass(slots=True)
class CaApi:
    """The handlers, and the state that they keep between requests. ``clock``: the time of day. ``fold``: given the reason of
    a denial and the address of a caller without a certificate, whether the line is counted for a summary instead.
    ``ailment``: why this CA does not do its work, apart from its store, in words for strangers; None if it does."""

    source: SnapshotSource
    store: Store
    writer: Writer
    log: Log
    clock: Callable[[], datetime]
    limits: RateLimits = field(default_factory=RateLimits)
    metrics: metrics.Metrics = field(default_factory=metrics.Metrics)
    fold: Callable[[str, str], bool] = lambda _reason, _address: False
    ailment: Callable[[], str | None] = lambda: None
    reports: Reports = field(default_factory=Reports)
    post: Callable[[str, Mapping[str, Any]], object] = lambda _key, _alarm: None
    desk: AlarmDesk = field(init=False)
    _guesses: Buckets = field(init=False)
    _identities: Buckets = field(init=False)
    _days: Buckets = field(init=False)
    _everybody: Buckets = field(init=False)
    _reporting: Buckets = field(init=False)
    _readers: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(MOST_READERS))
    _healthy_at: float = -math.inf
    _seen: dict[str, tuple[Follower, float]] = field(default_factory=dict)
    _nonce_key: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    def __post_init__(self) -> None:
        self.desk = AlarmDesk(self.log, self.clock, lambda key, alarm: self.post(key, alarm))
        self._guesses = Buckets(self.limits.guesses)
        self._identities = Buckets(self.limits.identity)
        self._days = Buckets(self.limits.day)
        self._everybody = Buckets(self.limits.everybody)
        self._reporting = Buckets(self.limits.reports)

    def routes(self) -> Routes:
        return {
            "/livez": {"GET": self._safe(self.livez)},
            "/healthz": {"GET": self._safe(self.healthz)},
            "/readyz": {"GET": self._safe(self.healthz)},
            "/metrics": {"GET": self._safe(self.prometheus)},
            wire.ENROL_PATH: {"POST": self._safe(self.enrol)},
            wire.RENEW_PATH: {"POST": self._safe(self.renew)},
            wire.NONCE_PATH: {"POST": self._safe(self.nonce)},
            wire.REENROL_PATH: {"POST": self._safe(self.reenrol)},
            wire.BUNDLE_PATH: {"GET": self._safe(self.bundle)},
            wire.REVOCATIONS_PATH: {"GET": self._safe(self.revocations)},
            wire.REPORT_PATH: {"POST": self._safe(self.report)},
        }

    def _safe(self, handler: Handler) -> Handler:
        """Wraps a handler: it sees no identity of a peer that is revoked; a denial becomes an answer; a bug ends one request
        and is logged."""

        async def answer(request: Request) -> Response:
            peer = self.in_good_standing(request.peer)
            try:
                return await handler(replace(request, peer=peer))
            except Denied as denied:
                self.metrics.denied(str(denied.denial))
                self._log_denial(denied, peer)
                return error(denied.denial.status, denied.denial, denied.message)
            except StoreUnavailableError as fault:
                self.metrics.denied(str(Denial.UNAVAILABLE))
                self.log.warning("store_unavailable", message=str(fault))
                return error(
                    Denial.UNAVAILABLE.status,
                    Denial.UNAVAILABLE,
                    "the CA's store is not available now; try again",
                    {"Retry-After": "5"},
                )
            except Exception as fault:
                self.log.bug("internal_error", fault)
                return error(INTERNAL_ERROR_STATUS, INTERNAL_ERROR, "a bug in the CA; see its log")

        return answer

    def _log_denial(self, denied: Denied, peer: Peer) -> None:
        """Writes the line of a denial, unless a summary counts it: anybody can send requests."""
        reason = str(denied.denial)
        if peer.svid is None and not peer.revoked and self.fold(reason, peer.address):
            return
        self.log.warning(
            "denied",
            reason=reason,
            message=denied.message,
            peer_address=peer.address,
            peer_id=(peer.revoked_id or None) if peer.svid is None else str(peer.svid.id),
        )

    def in_good_standing(self, peer: Peer) -> Peer:
        """The peer, but anonymous if its certificate is revoked now, or its issuer revoked or distrusted."""
        if peer.svid is None:
            return peer
        why = revoked(peer.svid, peer.path, self.source.in_force.revoked)
        return peer if why is None else Peer(peer.address, None, (), why, str(peer.svid.id))

    # -- health and metrics --------------------------------------------------------------------------------------------

    async def livez(self, _request: Request) -> Response:
        """For supervisors that restart what does not answer: a new process does not mend a store."""
        return Response.of(wire.OK, {"status": "ok"})

    async def healthz(self, _request: Request) -> Response:
        # Any caller may request this, and each check waits for the disk: so at most one check a second.
        now = trio.current_time()
        if now - self._healthy_at >= HEALTHY_SECONDS:
            await self.writer.write(_probe)
            self._healthy_at = now
        if ailment := self.ailment():
            return error(Denial.UNAVAILABLE.status, Denial.UNAVAILABLE, ailment)
        return Response.of(wire.OK, {"status": "ok"})

    async def prometheus(self, _request: Request) -> Response:
        current = self.source.in_force
        own, (version, listed_at) = current.policy.authority, current.listed
        now = metrics.Numbers(
            issuing_end=own.issuer.certificate.not_valid_after_utc.timestamp(),
            root_end=own.root.not_valid_after_utc.timestamp(),
            bundle=current.bundle.version,
            list_version=version,
            listed_at=listed_at.timestamp(),
            followers=len(self._seen),
            reports=self.reports.fresh(self.clock()),
            alarms=self.desk.log.counts,
            healthy=not self.ailment(),
            release=__version__,
            policy=current.mesh_version,
        )
        return Response(wire.OK, self.metrics.text(now), exposition.CONTENT_TYPE)

    # -- certificates --------------------------------------------------------------------------------------------------

    async def enrol(self, request: Request) -> Response:
        fields = _fields(request.body, *wire.ENROL_FIELDS)
        service, csr = fields[wire.SERVICE], fields[wire.CSR]
        policy = self._policy()
        try:
            credential = parse_credential(fields[wire.PASS])
            await trio.to_thread.run_sync(
                self.store.read,
                lambda connection: registrar.find_credential(connection, policy, credential, service),
                limiter=self._readers,
            )
        except ValueError as fault:
            self._count_guess(request.peer)
            raise Denied(Denial.BAD_PASS, f"the enrolment credential is {fault}") from fault
        except Denied:
            self._count_guess(request.peer)
            raise
        try:
            certificate = await self.writer.write(
                lambda transaction: registrar.enrol(transaction, policy, credential, service, csr)
            )
        except Denied as denied:
            if denied.denial is Denial.PASS_USED:
                await self._token_used(policy.identity(service), request.peer)
            raise
        return self._granted(certificate, credential.kind)

    async def _token_used(self, identity: SpiffeId, peer: Peer) -> None:
        """Somebody knows a token that another has used. If the identity's holder lives, one of the two has stolen it; else
        it may be a person who tries it twice."""
        found = await self._holders(identity)
        lives = any(found["now"] - one.get("seen_at", 0) < 2 * SEEN_SECONDS for one in found.get("live", ()))
        self.desk.token_used_twice(identity, peer.address, lives=lives)

    def _count_guess(self, peer: Peer) -> None:
        """Counts a wrong credential. Raises :class:`Denied` if its address has sent too many.

        It was compared first, so that the guesses of others behind one address (NAT) never refuse a correct credential. That
        costs one read of the store, and helps nobody to guess one of 2^128.
        """
        if not self._guesses.take(_guess_source(peer.address), trio.current_time()):
            raise Denied(
                Denial.RATE_LIMITED, "too many wrong tokens or secrets came from this address; try again later"
            )

    async def renew(self, request: Request) -> Response:
        fields = _fields(request.body, *wire.RENEW_FIELDS)
        path, policy = request.peer.path, self._policy()
        if request.peer.revoked:
            raise Denied(Denial.REVOKED, f"this connection is of {request.peer.revoked_id} with {request.peer.revoked}")
        if not path:
            raise Denied(
                Denial.NO_CERTIFICATE, "a renewal needs mutual TLS, with the certificate that is to be renewed"
            )
        certificate = await self.writer.write(
            lambda transaction: registrar.renew(transaction, policy, path, fields[wire.CSR])
        )
        return self._granted(certificate, "renewal")

    async def nonce(self, _request: Request) -> Response:
        return Response.of(wire.OK, {wire.NONCE: b64encode(self._make_nonce()).decode()})

    async def reenrol(self, request: Request) -> Response:
        fields = _fields(request.body, *wire.REENROL_FIELDS)
        policy = self._policy()
        try:
            nonce, signature = (b64decode(fields[name], validate=True) for name in (wire.NONCE, wire.SIGNATURE))
            certificate = x509.load_pem_x509_certificate(fields[wire.CERTIFICATE].encode()).public_bytes(Encoding.DER)
        except Exception as fault:  # the parsers of untrusted bytes raise many classes
            raise Denied(Denial.BAD_REQUEST, "certificate must be PEM, nonce and signature base64") from fault
        self._check_nonce(nonce)
        answer = await self.writer.write(
            lambda transaction: registrar.reenrol(transaction, policy, certificate, nonce, signature, fields[wire.CSR])
        )
        return self._granted(answer, "re-enrolment")

    def _policy(self) -> registrar.IssuingPolicy:
        return self.source.in_force.policy

    def _granted(self, certificate: str, how: str) -> Response:
        self.metrics.issued(how)
        return Response.of(wire.OK, {wire.CERTIFICATE: certificate})

    def admit(self, identity: str) -> bool:
        """Whether the rate limits allow one more certificate for ``identity``. The ``admit`` of
        :class:`certs.registrar.registrar.IssuingPolicy`: called after every other check, so that a caller without a
        credential of an identity cannot use up its rate."""
        now = self.clock().timestamp()
        return self._identities.take(identity, now) and self._days.take(identity, now) and self._everybody.take("", now)

    def _make_nonce(self) -> bytes:
        """The time with a MAC, so that no nonce is stored. Another CA of the same mesh refuses it, and the sidecar retries.
        It may be used more than once: the signed request certifies only the one new key in it."""
        body = int(self.clock().timestamp()).to_bytes(8, "big") + secrets.token_bytes(8)
        return body + hmac.digest(self._nonce_key, body, "sha256")

    def _check_nonce(self, nonce: bytes) -> None:
        body, tag = nonce[:16], nonce[16:]
        age = int(self.clock().timestamp()) - int.from_bytes(body[:8], "big")
        if (
            not hmac.compare_digest(tag, hmac.digest(self._nonce_key, body, "sha256"))
            or not 0 <= age <= wire.NONCE_SECONDS
        ):
            raise Denied(Denial.BAD_REQUEST, "the nonce is not of this CA, or older than a minute; request another")

    # -- trust ---------------------------------------------------------------------------------------------------------

    async def bundle(self, request: Request) -> Response:
        after = request.query.get(wire.AFTER, "0")
        if set(request.query) - {wire.AFTER} or not wire.VERSION.fullmatch(after):
            raise Denied(
                Denial.BAD_REQUEST, f"request {wire.BUNDLE_PATH}?{wire.AFTER}=N, where N is the version that you have"
            )
        documents = await trio.to_thread.run_sync(
            self.store.read, lambda connection: bundles.bundles_after(connection, int(after)), limiter=self._readers
        )
        # The documents are JSON of our own making; to parse them again would be work for anybody who asks.
        body = f'{{"{wire.BUNDLES}": [{", ".join(documents)}]}}\n'.encode()
        return Response(wire.OK, body)

    async def revocations(self, request: Request) -> Response:
        # The list is sent even if the store cannot be written: it is in memory, and a sidecar without a fresh list refuses
        # every peer.
        with trio.move_on_after(NOTE_SECONDS):
            try:
                await self._record_follower(request)
            except StoreUnavailableError as fault:
                self.log.warning("store_unavailable", message=str(fault))
        current = self.source.in_force
        headers = {wire.ETAG_HEADER: current.etag, wire.BUNDLE_HEADER: str(current.bundle.version)}
        if request.headers.get(wire.IF_NONE_MATCH_HEADER.lower()) == current.etag:
            return Response(wire.NOT_MODIFIED, headers=headers)
        return Response(wire.OK, current.revocations, headers=headers)

    async def _record_follower(self, request: Request) -> None:
        """Records what a sidecar has, if it reports that. A false report changes only what a rotation waits for."""
        svid, path = request.peer.svid, request.peer.path
        instance, bundle = (request.headers.get(name, "") for name in _FOLLOWER_HEADERS)
        if svid is None or not wire.INSTANCE.fullmatch(instance) or not wire.VERSION.fullmatch(bundle):
            return
        found = Follower(
            sha256(f"{svid.id} {instance}".encode()).hexdigest()[:32],  # no identity can overwrite another's row
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
        leaf, known = path[0], svid.id.service in self.source.in_force.policy.services

        def note(transaction: Transaction) -> None:
            """Whoever is removed or revoked gets no certificate of a new root, and no rotation waits for it."""
            if known and not registrar.is_revoked(transaction.connection, leaf):
                followers.save(transaction, found)
                twins.saw(transaction, sha256(leaf).hexdigest(), found.seen_at)
            else:
                followers.forget(transaction, found)

        await self.writer.write(note)
        self._seen[found.instance] = (found, now)
        if len(self._seen) > MOST_SEEN:
            lately = {key: one for key, one in self._seen.items() if now - one[1] < 2 * SEEN_SECONDS}
            # A peer may use a new instance number each time. A follower that is dropped here is recorded once more.
            self._seen = lately if len(lately) < MOST_SEEN / 2 else {}

    async def report(self, request: Request) -> Response:
        """Keeps what a sidecar reports about itself. Nothing is decided by it."""
        svid, instance = request.peer.svid, request.headers.get(wire.INSTANCE_HEADER.lower(), "")
        if svid is None or svid.id.service is None:  # a person's pass has no sidecar to report
            raise Denied(Denial.NO_CERTIFICATE, "a report needs mutual TLS with a service's certificate, not revoked")
        if not wire.INSTANCE.fullmatch(instance):
            raise Denied(Denial.BAD_REQUEST, f"a report has {wire.INSTANCE_HEADER}: 32 hexadecimal digits")
        if not self._reporting.take(str(svid.id), trio.current_time()):
            raise Denied(Denial.RATE_LIMITED, f"too many reports came from {svid.id}; try again later")
        try:
            found = report.parse(request.body)
        except ValueError as fault:
            raise Denied(Denial.BAD_REQUEST, str(fault)) from fault
        kept = report.encode(found)
        self.reports.take(Kept(str(svid.id), instance, request.peer.address, f"{svid.serial:x}", self.clock(), kept))
        self.desk.take(str(svid.id), str(svid.id.service), instance, found.get("alarms", ()))
        return Response.of(wire.OK, await self._holders(svid.id))

    async def _holders(self, identity: SpiffeId) -> dict[str, Any]:
        """Which certificates of an identity are in use, for its sidecars; nothing if the store cannot be read."""
        now = int(self.clock().timestamp())
        try:
            live = await trio.to_thread.run_sync(
                self.store.read,
                lambda connection: twins.live_serials(connection, identity, now),
                limiter=self._readers,
            )
        except StoreUnavailableError:
            return {}
        return {"live": live, "now": now}

    async def write(self, operation: Operation[Any]) -> Any:
        """Runs an operation that is not part of a request."""
        return await self.writer.write(operation)


def etag(document: bytes) -> str:
    return f'"{sha256(document).hexdigest()[:32]}"'


def _same(one: Follower, other: Follower) -> bool:
    return (one.bundle, one.root, one.not_after) == (other.bundle, other.root, other.not_after)


def _fields(body: bytes, *names: str) -> dict[str, str]:
    """Parses a JSON object with exactly these names, each value a string. Raises :class:`Denied`."""
    if sum(map(body.count, (b"[", b"{", b","))) > MAX_JSON_PARTS:
        raise Denied(Denial.BAD_REQUEST, "the body has too many parts")
    try:
        fields = json.loads(body, object_pairs_hook=unique)
    except (ValueError, RecursionError) as fault:
        raise Denied(Denial.BAD_REQUEST, "the body is not JSON") from fault
    if (
        not isinstance(fields, dict)
        or set(fields) != set(names)
        or not all(isinstance(value, str) for value in fields.values())
    ):
        raise Denied(
            Denial.BAD_REQUEST, f"the body must be a JSON object of {', '.join(names)}, each a string, and nothing else"
        )
    return fields


def _probe(transaction: Transaction) -> None:
    """Writes a new value each time: if nothing changed, SQLite would write nothing, and a full disk would go unnoticed."""
    transaction.put("probe", secrets.token_hex(8))


def _guess_source(address: str) -> str:
    """The source that guesses are counted by: an IPv4 address, or an IPv6 /64, which one host may have whole."""
    ip = ip_address(address.rpartition(":")[0].strip("[]"))
    return str(ip) if ip.version == 4 else ip.exploded[:19]
