"""What a sidecar accepts of what its CA answers. Fails closed: what was not asked for exactly so is not taken.

An answer came from a CA that proved who it is, and is checked all the same: a CA that is taken over, or wrong, must not be
able to make this sidecar somebody else, or let it trust somebody new, or show a certificate that every peer would refuse.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from certs.protocol.documents import Bundle, RevocationList, UntrustedError, read_bundle, read_revocations
from certs.protocol.x509_profile import BACKDATED
from sidecar.agent.credentials import Credentials, judge_own
from sidecar.identity.judge import Revocations, VerifyParams, revoked
from sidecar.identity.keys import certificate_digest, key_digest
from sidecar.identity.reasons import Reason, Refused
from sidecar.identity.spiffe import SpiffeId, parse_svid, shown
from sidecar.transport.tls import KeyPair, PrivateKey

MIN_LIFE = timedelta(minutes=1)
"""A certificate that ends sooner than that is none to go on with."""

MAX_CHAIN = 3
"""Leaf, issuing CA, and one that a future CA may put between."""


class AnswerRefusedError(Exception):
    """What the CA answered is not taken; the message says why, for people."""


@dataclass(frozen=True, slots=True)
class Learnt:
    """The newest bundle that counts, as it is and as it came; ``faults``: why newer ones, if there were any, do not."""

    bundle: Bundle | None
    document: bytes
    faults: tuple[str, ...]


def csr_for(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A CSR that gives the key, and asks for nothing: the CA knows whom it answers."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def learn(documents: Iterable[bytes], have: Bundle | None, pin: bytes, trust_domain: str, now: datetime) -> Learnt:
    """Goes from what is trusted to the newest bundle that it vouches for, one signature after the other: those of the roots
    that are trusted; at first, of the pinned root (``pin``: its digest). Never to an older one."""
    bundle, newest, faults = have, b"", []
    for document in documents:
        anchors = frozenset({pin}) if bundle is None else bundle.anchors
        try:
            found = read_bundle(document, trust_domain, anchors, now)
        except UntrustedError as error:
            faults.append(str(error))
            continue
        if bundle is not None and found.version <= bundle.version:
            faults.append(f"version {found.version} is no newer than {bundle.version}, which is in force")
            continue
        bundle, newest, faults = found, document, []
    return Learnt(bundle if newest else None, newest, tuple(faults))


def take_revocations(document: bytes, have: RevocationList | None, bundle: Bundle, now: datetime) -> RevocationList:
    """The list, if it counts and is newer than the one that is in force. Raises :class:`AnswerRefusedError`."""
    try:
        found = read_revocations(document, bundle, now)
    except UntrustedError as error:
        raise AnswerRefusedError(f"the CA's list of revocations is not taken: {error}") from error
    if have is not None and (found.version, found.issued_at) < (have.version, have.issued_at):
        raise AnswerRefusedError(
            f"the CA's list of revocations is not taken: it is older (version {found.version} of "
            f"{found.issued_at:%FT%TZ}) than the one in force ({have.version} of {have.issued_at:%FT%TZ})"
        )
    return found


def revocations(bundle: Bundle, listed: RevocationList | None, staleness: timedelta) -> Revocations:
    """What peers are judged by. Without any list nobody is let in."""
    if listed is None:
        return Revocations(keys=bundle.distrusted, fresh_until=_NEVER)
    return Revocations(dict(listed.identities), listed.serials, bundle.distrusted, listed.issued_at + staleness)


def take_certificate(
    chain_pem: bytes, key: PrivateKey, own: SpiffeId, bundle: Bundle, max_leaf_ttl: timedelta, now: datetime
) -> Credentials:
    """The certificate, if it is exactly ours: our identity, our key, a chain to a root that we trust, good now, and for no
    longer than leaves may be. Raises :class:`AnswerRefusedError`."""
    try:
        chain = tuple(x509.load_pem_x509_certificates(chain_pem))
    except Exception as error:  # whatever the parser raises
        raise AnswerRefusedError("the CA's certificate is not taken: it is no PEM of certificates") from error
    if not 2 <= len(chain) <= MAX_CHAIN:
        raise AnswerRefusedError(
            f"the CA's certificate is not taken: {len(chain)} in its chain, not a leaf and its issuer"
        )
    try:
        is_ours = chain[0].public_key() == key.public_key()
    except Exception:  # a key that cannot be read is not ours
        is_ours = False
    if not is_ours:
        raise AnswerRefusedError("the CA's certificate is not taken: it is for another key than the one that was sent")
    end = chain[0].not_valid_after_utc
    if end < now + MIN_LIFE:
        raise AnswerRefusedError(
            f"the CA's certificate is not taken: it is good until {end:%FT%TZ} only, and by our clock it is {now:%FT%TZ}; "
            "are both clocks right?"
        )
    keys = KeyPair(chain, key, bundle.roots)
    params = VerifyParams(own.trust_domain, own, max_leaf_ttl, Revocations(keys=bundle.distrusted))
    try:
        svid = judge_own(keys, params, now)
    except Refused as refusal:
        hint = ""
        if refusal.reason is Reason.NOT_YET_VALID:
            hint = f"; certificates are dated back {BACKDATED.seconds} s: are both clocks right?"
        raise AnswerRefusedError(
            f"the CA's certificate is not taken: every peer would refuse it, saying that it {refusal.detail}{hint}"
        ) from refusal
    return Credentials(keys, svid)


def must_renew(credentials: Credentials, bundle: Bundle, listed: RevocationList | None) -> bool:
    """Whether a certificate has to be replaced whatever its age: it is not under the active root, its issuer counts no
    longer, or it was revoked itself (and whoever did that may have made a new secret since)."""
    if listed is not None and revoked(credentials.svid, (), revocations(bundle, listed, timedelta())) is not None:
        return True
    root = next((root for root in bundle.roots if certificate_digest(root) == bundle.active), None)
    chain = credentials.keys.chain
    under_active = root is not None and chain[-1].issuer == root.subject
    return not under_active or any(key_digest(issuer) in bundle.distrusted for issuer in chain[1:])


def with_roots(credentials: Credentials, bundle: Bundle) -> Credentials:
    """The same certificate, trusting what the bundle says."""
    keys = credentials.keys
    return Credentials(KeyPair(keys.chain, keys.key, bundle.roots), credentials.svid)


def kept_certificate(pem: bytes, own: SpiffeId, bundle: Bundle) -> Credentials:
    """What :func:`identity_pem` made, if it is whole and ours; it may have ended, and be under a root that is gone: then it
    is good for re-enrolment still. Raises :class:`AnswerRefusedError`."""
    key = read_key(pem)
    try:
        chain = tuple(x509.load_pem_x509_certificates(pem))
        svid = parse_svid(chain[0].public_bytes(serialization.Encoding.DER))
    except Exception as error:  # whatever the parsers raise
        raise AnswerRefusedError("it has no certificate that is an SVID") from error
    if svid.id != own or chain[0].public_key() != key.public_key() or len(chain) < 2:
        raise AnswerRefusedError(f"its certificate is not one of {own} with its key and its issuer")
    return Credentials(KeyPair(chain, key, bundle.roots), svid)


def identity_pem(credentials: Credentials) -> bytes:
    """Key and chain, as they are kept."""
    chain = b"".join(one.public_bytes(serialization.Encoding.PEM) for one in credentials.keys.chain)
    return key_pem(credentials.keys.key) + chain


def key_pem(key: PrivateKey) -> bytes:
    """A key alone, as it is kept."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def read_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Raises :class:`AnswerRefusedError`, without a word of what is in it."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except Exception as error:  # whatever the parser raises
        raise AnswerRefusedError("it has no private key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise AnswerRefusedError("its key is none of ours")
    return key


def describe(error: Exception) -> str:
    return shown(str(error), 500)[1:-1]


_NEVER = datetime(1970, 1, 1, tzinfo=UTC)
