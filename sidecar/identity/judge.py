"""The one judgement of a peer's certificate, for both directions. Pure; fails closed.

It runs twice in a handshake: inside the verify callback, so that the peer gets an alert that says why, and after the
handshake, where its answer is the authority. The order of reasons is fixed, so that the same certificate is refused with
the same word everywhere: what was sent at all, then the chain (nothing that a certificate says counts before its
signature does), then the leaf's own rules, trust domain, time, revocation, and last whether it is whom we expected.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache

from cryptography import x509

from sidecar.identity.keys import key_digest
from sidecar.identity.reasons import Reason, Refused
from sidecar.identity.spiffe import DEFAULT_MAX_LEAF_TTL, InvalidIdentityError, SpiffeId, Svid, parse_svid

MAX_CHAIN = 4
"""Certificates that a peer may send: a leaf, up to two intermediates, and the root that some send along."""


@dataclass(frozen=True, slots=True)
class ChainFault:
    """What OpenSSL's verification of the chain found wrong, in our words."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Presented:
    """The evidence of one handshake. ``sent``: DER as the peer sent it, leaf first. ``path``: DER from the leaf to our
    trust anchor, empty unless the chain verified. ``fault``: why it did not."""

    sent: tuple[bytes, ...]
    path: tuple[bytes, ...] = ()
    fault: ChainFault | None = None


@dataclass(frozen=True, slots=True)
class Revocations:
    """What may no longer be trusted: identities by the time before which they were issued, (issuer name, serial), and CAs
    by their key (:func:`sidecar.identity.keys.key_digest`), whoever signed for it.

    ``fresh_until``: when this knowledge is too old to let anybody in; None where nobody keeps such a list."""

    identities: dict[SpiffeId, datetime] = field(default_factory=dict)
    serials: frozenset[tuple[bytes, int]] = frozenset()
    keys: frozenset[bytes] = frozenset()
    fresh_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class VerifyParams:
    """What we accept. ``expected`` pins the peer's identity (outbound); None leaves it to the policy (inbound).
    ``anonymous``: a peer without any certificate gets through the handshake, and is nobody; only the CA has it so."""

    trust_domain: str
    expected: SpiffeId | None = None
    max_leaf_ttl: timedelta = DEFAULT_MAX_LEAF_TTL
    revocations: Revocations = field(default_factory=Revocations)
    anonymous: bool = False


def judge(presented: Presented, params: VerifyParams, now: datetime) -> Svid:
    """Returns the peer's verified SVID, or raises :class:`Refused`. ``now`` is an aware datetime."""
    if not presented.sent:
        raise Refused(Reason.NO_CERTIFICATE, "met a peer without a certificate; every peer needs one")
    if len(presented.sent) > MAX_CHAIN:
        raise Refused(
            Reason.BAD_IDENTITY,
            f"met a chain of {len(presented.sent)} certificates; at most {MAX_CHAIN} are read",
        )
    if presented.fault is not None:
        raise Refused(presented.fault.reason, presented.fault.detail)
    if not presented.path or presented.path[0] != presented.sent[0]:
        raise Refused(Reason.UNKNOWN_CA, "met a certificate without a verified path to our trust bundle")
    try:
        svid = parse_svid(presented.sent[0])
    except InvalidIdentityError as error:
        raise Refused(Reason.BAD_IDENTITY, f"met a certificate that is no X.509-SVID: {error}") from error
    if svid.id.trust_domain != params.trust_domain:
        raise Refused(
            Reason.WRONG_TRUST_DOMAIN, f"met {svid.id}, which is not of our trust domain {params.trust_domain}"
        )
    if now < svid.not_before:
        raise Refused(
            Reason.NOT_YET_VALID, f"met {svid.id} with a certificate that is not valid before {svid.not_before:%FT%TZ}"
        )
    if now > svid.not_after:
        raise Refused(Reason.EXPIRED, f"met {svid.id} with a certificate that expired at {svid.not_after:%FT%TZ}")
    if svid.lifetime > params.max_leaf_ttl:
        raise Refused(
            Reason.BAD_IDENTITY,
            f"met {svid.id} with a certificate valid for {svid.lifetime}, longer than max_leaf_ttl ({params.max_leaf_ttl})",
        )
    if (why := revoked(svid, presented.path, params.revocations)) is not None:
        raise Refused(Reason.REVOKED, f"met {svid.id} with {why}")
    if params.revocations.fresh_until is not None and now > params.revocations.fresh_until:
        raise Refused(
            Reason.REVOCATIONS_STALE,
            f"cannot know whether {svid.id} was revoked: its list of revocations was good until "
            f"{params.revocations.fresh_until:%FT%TZ} and the CA has given no newer one",
        )
    if params.expected is not None and svid.id != params.expected:
        raise Refused(Reason.UNEXPECTED_PEER, f"met {svid.id} (valid, same CA)")
    return svid


def revoked(svid: Svid, path: tuple[bytes, ...], revocations: Revocations) -> str | None:
    """Which part of a verified path (DER, leaf first) is revoked, in words; None if none is. Asked in the handshake, and
    again of live connections whenever the list changes."""
    before = revocations.identities.get(svid.id)
    if before is not None and svid.not_before < before:
        return f"a revoked certificate: all issued before {before:%FT%TZ} are"
    if (svid.issuer, svid.serial) in revocations.serials:
        return f"a revoked certificate (serial {svid.serial:x})"
    if not revocations.serials and not revocations.keys:
        return None
    for der in path[1:]:
        issuer, serial, key = _ca(der)
        if (issuer, serial) in revocations.serials or key in revocations.keys:
            return f"a revoked issuer (serial {serial:x})"
    return None


@lru_cache(maxsize=64)
def _ca(der: bytes) -> tuple[bytes, int, bytes]:
    """Issuer's name, serial and key of a CA's certificate. Cached: a mesh has few, and each handshake asks."""
    certificate = x509.load_der_x509_certificate(der)
    return certificate.issuer.public_bytes(), certificate.serial_number, key_digest(certificate)
