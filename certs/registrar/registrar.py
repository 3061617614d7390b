"""Who gets a certificate: enrolment, renewal, re-enrolment, each as one operation on the store. Fails closed.

Each function decides, signs and remembers in one transaction (:mod:`certs.store.store`), so what was decided still holds
when it is remembered, and no certificate leaves that is not in the store. They raise
:class:`~certs.protocol.denial.Denied`.

An answer can be lost on its way. So a request that comes again *with the same key* gets the same certificate, for five
minutes: a token that was spent on a certificate that never arrived strands nobody. Otherwise a key is certified once.
"""

from __future__ import annotations

import hmac
from base64 import b64encode
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import sqlalchemy as sa
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from certs.authority.authority import Authority
from certs.authority.pemfiles import pem
from certs.protocol import enrolment, x509_profile
from certs.protocol.csr import check_csr, key_hash, proof_of_possession, read_csr
from certs.protocol.denial import Denial, Denied
from certs.protocol.enrolment import EnrolmentCredential
from certs.store.store import Transaction, followers, issued, revoked_identities, revoked_serials
from certs.store.store import passes as passes_table
from sidecar.identity.keys import key_digest
from sidecar.identity.spiffe import InvalidIdentityError, SpiffeId, is_segment, parse_svid, shown

AGAIN_SECONDS = 300
"""How long the same request gets the same answer."""

TOKEN_LIFETIME = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class IssuingPolicy:
    """By what the CA decides now. ``services``: those of ``mesh.yaml``; nobody else gets a certificate. ``window``: how long
    after its end a certificate still counts for re-enrolment. ``distrusted``: keys of issuers that count no longer.
    ``admit`` is asked last, for an identity, whether it is not too often."""

    authority: Authority
    services: Collection[str]
    ttl: timedelta = x509_profile.DEFAULT_TTL
    window: timedelta = timedelta(hours=24)
    distrusted: frozenset[bytes] = frozenset()
    admit: Callable[[str], bool] = lambda _identity: True

    def identity(self, service: str) -> SpiffeId:
        """A declared service's identity. Raises :class:`Denied`."""
        if not is_segment(service) or service not in self.services:
            raise Denied(Denial.UNKNOWN_SERVICE, f"there is no service {shown(service)} in the CA's mesh.yaml")
        return SpiffeId(self.authority.trust_domain, (service,))

    def renewed(self, identity: SpiffeId) -> SpiffeId:
        """The same, of a certificate that is to be renewed. Raises :class:`Denied`."""
        if identity.trust_domain != self.authority.trust_domain or identity.service is None:
            raise Denied(Denial.NOT_ENTITLED, f"{identity} is no service of this mesh, so it renews nothing here")
        return self.identity(identity.service)


# -- passes ------------------------------------------------------------------------------------------------------------


def add_pass(transaction: Transaction, made: EnrolmentCredential, identity: SpiffeId) -> None:
    """Remembers a new token or secret (its hash)."""
    expires = transaction.now + int(TOKEN_LIFETIME.total_seconds()) if made.kind == "token" else None
    transaction.connection.execute(
        passes_table.insert().values(
            hash=enrolment.stored(made),
            kind=made.kind,
            identity=str(identity),
            made_at=transaction.now,
            expires_at=expires,
        )
    )
    transaction.record(f"{made.kind}_made", str(identity))


def end_passes(transaction: Transaction, identity: SpiffeId, kind: str | None = None) -> int:
    """Ends an identity's secrets and tokens, or those of one kind; returns how many were good till now."""
    good = (passes_table.c.identity == str(identity)) & passes_table.c.ended_at.is_(None)
    if kind is not None:
        good &= passes_table.c.kind == kind
    return transaction.connection.execute(passes_table.update().where(good).values(ended_at=transaction.now)).rowcount


# -- certificates ------------------------------------------------------------------------------------------------------


def enrol(
    transaction: Transaction, policy: IssuingPolicy, shown_pass: EnrolmentCredential, service: str, csr: str
) -> str:
    """The first certificate of a service, for whoever shows a pass of it: the chain in PEM."""
    identity = policy.identity(service)
    request, key = read_csr(csr)
    check_csr(request, identity)
    row = _find(transaction, shown_pass, identity)
    if row.ended_at is not None:
        raise Denied(Denial.PASS_EXPIRED, f"this {row.kind} was revoked; ask for a new one: certs {_command(row.kind)}")
    if row.kind == "token":
        if row.used_by not in (None, key_hash(key)):
            raise Denied(
                Denial.PASS_USED,
                "this token was used already. If that was not you, somebody has stolen it: "
                f"certs revoke {service}; for a new one: certs token {service}",
            )
        if row.used_by is None and transaction.now >= row.expires_at:
            raise Denied(
                Denial.PASS_EXPIRED, f"this token was good for 5 minutes; for a new one: certs token {service}"
            )
        transaction.connection.execute(
            passes_table.update().where(passes_table.c.hash == row.hash).values(used_by=key_hash(key))
        )
    return _certify(transaction, policy, identity, key, row.kind)


def renew(transaction: Transaction, policy: IssuingPolicy, path: Sequence[bytes], csr: str) -> str:
    """The next certificate for whoever showed its current one in the handshake; ``path``: DER, verified, leaf first."""
    svid = parse_svid(path[0])
    identity = policy.renewed(svid.id)
    request, key = read_csr(csr)
    check_csr(request, identity)
    if _when(transaction.now) > svid.not_after:  # it was good in the handshake, and a connection may be kept for long
        raise Denied(Denial.EXPIRED, f"the certificate of this connection ended at {svid.not_after:%FT%TZ}")
    _refuse_revoked(transaction, path[0])
    if _row(transaction, path[0]) is None and any(_key(der) in policy.distrusted for der in path[1:]):
        raise Denied(Denial.REVOKED, "this certificate's issuer is distrusted, and this CA did not issue it")
    return _certify(transaction, policy, identity, key, "renewal")


def reenrol(
    transaction: Transaction, policy: IssuingPolicy, certificate: bytes, nonce: bytes, signature: bytes, csr: str
) -> str:
    """The next certificate for whoever has the key of one (DER) that this CA issued and that ended less than the window ago,
    or that is under a root which is not trusted any more. It need not verify: it is looked up."""
    request, key = read_csr(csr)
    row = _row(transaction, certificate)
    if row is None:
        raise Denied(Denial.NOT_ENTITLED, "this CA did not issue this certificate")
    try:
        svid = parse_svid(certificate)
        old_key = x509.load_der_x509_certificate(certificate).public_key()
        if not isinstance(old_key, ec.EllipticCurvePublicKey):
            raise Denied(Denial.NOT_ENTITLED, "the certificate's key is none of ours")
        old_key.verify(signature, proof_of_possession(nonce, key), ec.ECDSA(hashes.SHA256()))
    except (InvalidIdentityError, InvalidSignature) as error:
        raise Denied(Denial.NOT_ENTITLED, "the request is not signed with the key of the certificate in it") from error
    identity = policy.renewed(svid.id)
    check_csr(request, identity)
    _refuse_revoked(transaction, certificate)
    end = svid.not_after + policy.window
    if _when(transaction.now) > end:
        raise Denied(
            Denial.EXPIRED,
            f"the certificate ended at {svid.not_after:%FT%TZ}, and could be renewed until {end:%FT%TZ} (reenrol_window); "
            f"enrol anew: certs token {svid.id.service}",
        )
    return _certify(transaction, policy, identity, key, "re-enrolment")


def remember(transaction: Transaction, chain: Sequence[x509.Certificate], how: str) -> None:
    """Enters a certificate that was issued, and tells the audit log."""
    leaf = chain[0]
    svid = parse_svid(leaf.public_bytes(Encoding.DER))
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TypeError("a leaf of ours has an elliptic-curve key")
    transaction.connection.execute(
        issued.insert().values(
            sha256=svid.sha256,
            key_hash=key_hash(key),
            serial=f"{svid.serial:x}",
            identity=str(svid.id),
            issued_at=transaction.now,
            not_after=int(svid.not_after.timestamp()),
            how=how,
            certificate=pem(*chain).decode(),
        )
    )
    transaction.record("issued", str(svid.id), how=how, serial=f"{svid.serial:x}", not_after=f"{svid.not_after:%FT%TZ}")


def is_known(connection: sa.Connection, identity: SpiffeId) -> bool:
    """Whether the store has a certificate, a token or a secret of an identity."""
    found = (sa.select(table.c.identity).where(table.c.identity == str(identity)) for table in (issued, passes_table))
    return any(connection.execute(one.limit(1)).first() is not None for one in found)


def revoked_until(connection: sa.Connection, identity: SpiffeId) -> datetime | None:
    """What a new certificate's not-before must not lie before: the time up to which the identity is revoked."""
    before = connection.execute(
        sa.select(revoked_identities.c.before).where(revoked_identities.c.identity == str(identity))
    ).scalar_one_or_none()
    return None if before is None else _when(before)


def prune(transaction: Transaction, keep: timedelta = timedelta(days=30)) -> None:
    """Forgets certificates, followers and passes that ended long ago. The audit log forgets nothing."""
    then = transaction.now - int(keep.total_seconds())
    for table in (issued, followers, revoked_serials):
        transaction.connection.execute(table.delete().where(table.c.not_after < then))
    over = (passes_table.c.expires_at < then) | (passes_table.c.ended_at < then)
    transaction.connection.execute(passes_table.delete().where(over))


def _certify(
    transaction: Transaction, policy: IssuingPolicy, identity: SpiffeId, key: ec.EllipticCurvePublicKey, how: str
) -> str:
    known = transaction.connection.execute(sa.select(issued).where(issued.c.key_hash == key_hash(key))).one_or_none()
    if known is not None:
        if known.identity == str(identity) and transaction.now - known.issued_at <= AGAIN_SECONDS:
            return str(known.certificate)
        raise Denied(Denial.KEY_REUSED, "the key in the CSR was certified before; make a fresh one")
    if not policy.admit(str(identity)):
        raise Denied(Denial.RATE_LIMITED, f"too many certificates for {identity}, or in all; try again later")
    issuer = policy.authority.issuer
    try:
        leaf = x509_profile.leaf(
            identity,
            key,
            issuer,
            _when(transaction.now),
            policy.ttl,
            not_before=revoked_until(transaction.connection, identity),
        )
    except x509_profile.ProfileError as error:
        raise Denied(Denial.UNAVAILABLE, f"this CA cannot issue now: {error}") from error
    chain = (leaf, issuer.certificate)
    remember(transaction, chain, how)
    return pem(*chain).decode()


def _find(transaction: Transaction, shown_pass: EnrolmentCredential, identity: SpiffeId) -> sa.Row[tuple[object, ...]]:
    """The pass that was shown, if it is one of this identity's."""
    wanted = enrolment.stored(shown_pass)
    row = transaction.connection.execute(sa.select(passes_table).where(passes_table.c.hash == wanted)).one_or_none()
    # The index compares hashes of 128 random bits and more, of which a guesser chooses none; this compares once more, in
    # constant time. Whose it is, is told to nobody.
    if row is None or not hmac.compare_digest(row.hash, wanted) or row.identity != str(identity):
        raise Denied(Denial.BAD_PASS, f"no token and no enrolment secret of {identity.service} that this CA knows")
    return row


def _row(transaction: Transaction, certificate: bytes) -> sa.Row[tuple[object, ...]] | None:
    return transaction.connection.execute(
        sa.select(issued).where(issued.c.sha256 == sha256(certificate).hexdigest())
    ).one_or_none()


def _refuse_revoked(transaction: Transaction, certificate: bytes) -> None:
    svid = parse_svid(certificate)
    before = revoked_until(transaction.connection, svid.id)
    by_serial = transaction.connection.execute(
        sa.select(revoked_serials.c.serial).where(
            (revoked_serials.c.issuer == b64encode(svid.issuer).decode())
            & (revoked_serials.c.serial == f"{svid.serial:x}")
        )
    ).one_or_none()
    if by_serial is not None or (before is not None and svid.not_before < before):
        raise Denied(
            Denial.REVOKED,
            f"this certificate of {svid.id} was revoked; if its service may come back: certs enrolment {svid.id.service}",
        )


def _key(certificate: bytes) -> bytes:
    return key_digest(x509.load_der_x509_certificate(certificate))


def _when(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _command(kind: str) -> str:
    return "token" if kind == "token" else "enrolment"
