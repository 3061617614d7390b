"""The verification of a peer's certificate, the same for both directions. Pure; fails closed.

How this works. :func:`judge` runs twice in a handshake: inside OpenSSL's verify callback, so that the peer receives an alert
that fits the reason, and after the handshake, where its result is final. The order of the checks is fixed, so that the same
certificate is refused with the same reason everywhere: whether a certificate was sent; the chain (nothing in a certificate
counts before its signature is verified); the rules for a leaf; trust domain; validity period; revocation; and last the
expected identity.
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
    """Why OpenSSL's verification of the chain failed, as one of our reasons."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Presented:
    """The certificates of one handshake. ``sent``: DER as the peer sent it, leaf first. ``path``: DER from the leaf to our
    trust anchor, empty unless the chain was verified. ``fault``: why it was not."""

    sent: tuple[bytes, ...]
    path: tuple[bytes, ...] = ()
    fault: ChainFault | None = None


@dataclass(frozen=True, slots=True)
class Revocations:
    """What is revoked. ``identities``: all certificates of an identity that were issued before a time. ``serials``: (issuer
    name, serial). ``keys``: CAs by their key (:func:`sidecar.identity.keys.key_digest`), in any certificate.

    ``fresh_until``: after this time the list is too old, and no peer is accepted; None where no list is kept."""

    identities: dict[SpiffeId, datetime] = field(default_factory=dict)
    serials: frozenset[tuple[bytes, int]] = frozenset()
    keys: frozenset[bytes] = frozenset()
    fresh_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class VerifyParams:
    """What is accepted. ``expected`` pins the peer's identity (outbound); None leaves it to the policy (inbound).
    ``anonymous``: a peer without a certificate passes the handshake and has no identity; only the CA allows this."""

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
            f"cannot check whether {svid.id} is revoked: the list of revocations was good until "
            f"{params.revocations.fresh_until:%FT%TZ} and the CA has sent no newer one",
        )
    if params.expected is not None and svid.id != params.expected:
        raise Refused(Reason.UNEXPECTED_PEER, f"met {svid.id} (valid, same CA)")
    return svid


def revoked(svid: Svid, path: tuple[bytes, ...], revocations: Revocations) -> str | None:
    """Which certificate of a verified path (DER, leaf first) is revoked, as part of a message; None if none is. Called in
    the handshake, and again for live connections when the list changes."""
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
    """Issuer's name, serial and key digest of a CA's certificate. Cached: a mesh has few CAs, and each handshake needs
    them."""
    certificate = x509.load_der_x509_certificate(der)
    return certificate.issuer.public_bytes(), certificate.serial_number, key_digest(certificate)
