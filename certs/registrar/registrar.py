"""Issuing certificates: enrolment, renewal and re-enrolment, each as one operation on the store. Fails closed.

Each function decides, signs and records in one transaction (:mod:`certs.store.store`). So the decision still holds when it
is recorded, and every certificate that is sent is in the store. They raise :class:`~certs.protocol.denial.Denied`.

An answer can be lost on the network. So a repeated request *with the same key* gets the same certificate for five minutes;
otherwise a lost answer would use up a token for nothing. Beyond that, a key is certified once.
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
from certs.registrar.commands import ANYWHERE, Commands
from certs.store.store import (
    Transaction,
    enrolment_credentials,
    followers,
    issued,
    revoked_identities,
    revoked_serials,
)
from sidecar.identity.keys import key_digest
from sidecar.identity.spiffe import InvalidIdentityError, SpiffeId, is_segment, parse_spiffe_id, parse_svid, shown

AGAIN_SECONDS = 300
"""How long a repeated request gets the same certificate."""

MOST_ENDED = 1000
"""How many certificates of one identity are kept after their end, for people who look at the past."""

TOKEN_LIFETIME = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class IssuingPolicy:
    """What the CA decides by.

    ``services``: those of ``mesh.yaml``; only these get a certificate. ``window``: how long an expired certificate still
    counts for re-enrolment. ``distrusted``: digests of issuer keys that are no longer trusted. ``admit``: whether the rate
    limit allows one more certificate for an identity; called last. ``commands``: what a refusal tells people to do.
    ``unfit``: why no reader of the newest bundle would accept what this CA signs; it then issues nothing. ``coming``: the
    services of the newest ``mesh.yaml``, which may not be in force yet.
    """

    authority: Authority
    services: Collection[str]
    ttl: timedelta = x509_profile.DEFAULT_TTL
    window: timedelta = timedelta(hours=24)
    distrusted: frozenset[bytes] = frozenset()
    admit: Callable[[str], bool] = lambda _identity: True
    commands: Commands = ANYWHERE
    unfit: str = ""
    coming: Callable[[], Collection[str]] = tuple

    def identity(self, service: str) -> SpiffeId:
        """The identity of a service in ``mesh.yaml``. Raises :class:`Denied`."""
        if not is_segment(service) or service not in self.services:
            if service in self.coming():  # its sidecar is to try again, and not to give up
                raise Denied(Denial.UNAVAILABLE, f"service {shown(service)} is new, and not in force yet")
            raise Denied(Denial.UNKNOWN_SERVICE, f"there is no service {shown(service)} in the CA's mesh.yaml")
        return SpiffeId(self.authority.trust_domain, (service,))

    def renewed(self, identity: SpiffeId) -> SpiffeId:
        """The identity for the renewal of a certificate with this one. Raises :class:`Denied`."""
        if identity.trust_domain != self.authority.trust_domain or identity.service is None:
            raise Denied(Denial.NOT_ENTITLED, f"{identity} is not a service of this mesh, so this CA does not renew it")
        return self.identity(identity.service)


# -- enrolment credentials ---------------------------------------------------------------------------------------------


def add_credential(transaction: Transaction, credential: EnrolmentCredential, identity: SpiffeId) -> None:
    """Stores a new token or secret, as its hash."""
    expires = transaction.now + int(TOKEN_LIFETIME.total_seconds()) if credential.kind == "token" else None
    transaction.connection.execute(
        enrolment_credentials.insert().values(
            hash=enrolment.stored(credential),
            kind=credential.kind,
            identity=str(identity),
            made_at=transaction.now,
            expires_at=expires,
        )
    )
    transaction.record(f"{credential.kind}_made", str(identity))


def holds_secret(connection: sa.Connection, identity: SpiffeId) -> bool:
    """Whether an identity has an enrolment secret that is good."""
    table = enrolment_credentials
    good = (table.c.identity == str(identity)) & (table.c.kind == "secret") & table.c.ended_at.is_(None)
    return connection.execute(sa.select(table.c.hash).where(good).limit(1)).first() is not None


def end_credentials(transaction: Transaction, identity: SpiffeId, kind: str | None = None) -> int:
    """Ends an identity's secrets and tokens, or those of one kind; returns how many were not ended before."""
    table = enrolment_credentials
    good = (table.c.identity == str(identity)) & table.c.ended_at.is_(None)
    if kind is not None:
        good &= table.c.kind == kind
    return transaction.connection.execute(table.update().where(good).values(ended_at=transaction.now)).rowcount


def end_every_secret(transaction: Transaction) -> list[SpiffeId]:
    """Ends the tokens and secrets of every identity; returns the identities that had a secret."""
    table = enrolment_credentials
    good = sa.select(table.c.identity).distinct().where((table.c.kind == "secret") & table.c.ended_at.is_(None))
    identities = [parse_spiffe_id(text) for text in sorted(transaction.connection.execute(good).scalars())]
    for identity in identities:
        transaction.record("secrets_ended", str(identity), number=end_credentials(transaction, identity, "secret"))
    transaction.connection.execute(table.update().where(table.c.ended_at.is_(None)).values(ended_at=transaction.now))
    return identities


# -- certificates ------------------------------------------------------------------------------------------------------


def find_credential(
    connection: sa.Connection, policy: IssuingPolicy, credential: EnrolmentCredential, service: str
) -> sa.Row[tuple[object, ...]]:
    """The row of a service's credential. Raises :class:`Denied` if the store has none.

    The refusal tells neither an unknown credential from another service's, nor a service of the mesh from any other name,
    and costs the same for each, since strangers see it. So this is the first check of :func:`enrol`.
    """
    wanted = enrolment.stored(credential)
    table = enrolment_credentials
    row = connection.execute(sa.select(table).where(table.c.hash == wanted)).one_or_none()
    # The index compares hashes of at least 128 random bits, none of which an attacker chooses. This compares again in
    # constant time.
    identity = f"spiffe://{policy.authority.trust_domain}/{service}"
    if row is None or not hmac.compare_digest(row.hash, wanted) or row.identity != identity:
        raise Denied(
            Denial.BAD_PASS,
            f"this CA has no such token or enrolment secret of {shown(service)[1:-1]}, or no such service",
        )
    return row


def enrol(
    transaction: Transaction, policy: IssuingPolicy, credential: EnrolmentCredential, service: str, csr: str
) -> str:
    """Issues a service's first certificate to a caller with an enrolment credential of it; returns the chain in PEM."""
    row = find_credential(transaction.connection, policy, credential, service)
    identity = policy.identity(service)
    request, key = read_csr(csr)
    check_csr(request, identity)
    again = policy.commands.token(service) if row.kind == "token" else policy.commands.enrolment(service)
    if row.ended_at is not None:
        raise Denied(Denial.PASS_EXPIRED, f"this {row.kind} was revoked; for a new one: {again}")
    if row.kind == "token":
        if row.used_by not in (None, key_hash(key)):
            raise Denied(
                Denial.PASS_USED,
                "this token was used already. If that was not you, it was stolen: "
                f"{policy.commands.revoke(service)}; for a new one: {again}",
            )
        if row.used_by is None and transaction.now >= row.expires_at:
            raise Denied(Denial.PASS_EXPIRED, f"this token was good for 5 minutes; for a new one: {again}")
        transaction.connection.execute(
            enrolment_credentials.update().where(enrolment_credentials.c.hash == row.hash).values(used_by=key_hash(key))
        )
    return _certify(transaction, policy, identity, key, row.kind)


def renew(transaction: Transaction, policy: IssuingPolicy, path: Sequence[bytes], csr: str) -> str:
    """Issues the next certificate to a caller that proved its current one in the handshake; returns the chain in PEM.
    ``path``: the caller's certificates in DER, verified, leaf first."""
    svid = parse_svid(path[0])
    identity = policy.renewed(svid.id)
    request, key = read_csr(csr)
    check_csr(request, identity)
    if _to_datetime(transaction.now) > svid.not_after:  # valid in the handshake, but the connection may be old
        raise Denied(Denial.EXPIRED, f"the certificate of this connection ended at {svid.not_after:%FT%TZ}")
    _refuse_revoked(transaction, policy, path[0])
    if _find_issued(transaction, path[0]) is None and any(_key_digest(der) in policy.distrusted for der in path[1:]):
        raise Denied(Denial.REVOKED, "this certificate's issuer is distrusted, and this CA did not issue it")
    return _certify(transaction, policy, identity, key, "renewal", sha256(path[0]).hexdigest())


def reenrol(
    transaction: Transaction, policy: IssuingPolicy, certificate: bytes, nonce: bytes, signature: bytes, csr: str
) -> str:
    """Issues the next certificate to a caller that has the key of an earlier one, ``certificate`` (DER). Returns the chain
    in PEM.

    The earlier one ended less than ``policy.window`` ago, or its root is no longer trusted. So it is not verified; it must
    be in the store instead.
    """
    request, key = read_csr(csr)
    row = _find_issued(transaction, certificate)
    if row is None:
        raise Denied(Denial.NOT_ENTITLED, "this CA did not issue this certificate")
    try:
        svid = parse_svid(certificate)
        old_key = x509.load_der_x509_certificate(certificate).public_key()
        if not isinstance(old_key, ec.EllipticCurvePublicKey):
            raise Denied(Denial.NOT_ENTITLED, "the certificate's key is not an elliptic-curve key")
        old_key.verify(signature, proof_of_possession(nonce, key), ec.ECDSA(hashes.SHA256()))
    except (InvalidIdentityError, InvalidSignature) as error:
        raise Denied(Denial.NOT_ENTITLED, "the request is not signed with the key of the certificate in it") from error
    identity = policy.renewed(svid.id)
    check_csr(request, identity)
    _refuse_revoked(transaction, policy, certificate)
    end = svid.not_after + policy.window
    if _to_datetime(transaction.now) > end:
        raise Denied(
            Denial.EXPIRED,
            f"the certificate ended at {svid.not_after:%FT%TZ}, and could be renewed until {end:%FT%TZ} (reenrol_window); "
            f"enrol anew: {policy.commands.token(str(svid.id.service))}",
        )
    return _certify(transaction, policy, identity, key, "re-enrolment", sha256(certificate).hexdigest())


def remember(
    transaction: Transaction, chain: Sequence[x509.Certificate], how: str, renewed_from: str | None = None
) -> None:
    """Records an issued certificate in the store and in the audit log. ``renewed_from``: the SHA-256 of the one before."""
    leaf = chain[0]
    svid = parse_svid(leaf.public_bytes(Encoding.DER))
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TypeError("the leaf's key is not an elliptic-curve key")
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
            renewed_from=renewed_from,
        )
    )
    transaction.record("issued", str(svid.id), how=how, serial=f"{svid.serial:x}", not_after=f"{svid.not_after:%FT%TZ}")


def is_known(connection: sa.Connection, identity: SpiffeId) -> bool:
    """Whether the store has a certificate, a token or a secret of an identity."""
    tables = (issued, enrolment_credentials)
    queries = (sa.select(table.c.identity).where(table.c.identity == str(identity)) for table in tables)
    return any(connection.execute(query.limit(1)).first() is not None for query in queries)


def revoked_until(connection: sa.Connection, identity: SpiffeId) -> datetime | None:
    """The time before which an identity's certificates are revoked; a new one must not begin earlier. None: not revoked."""
    before = connection.execute(
        sa.select(revoked_identities.c.before).where(revoked_identities.c.identity == str(identity))
    ).scalar_one_or_none()
    return None if before is None else _to_datetime(before)


def is_revoked(connection: sa.Connection, certificate: bytes) -> bool:
    """Whether a certificate (DER) was revoked, itself or with all of its identity until then."""
    svid = parse_svid(certificate)
    before = revoked_until(connection, svid.id)
    by_serial = connection.execute(
        sa.select(revoked_serials.c.serial).where(
            (revoked_serials.c.issuer == b64encode(svid.issuer).decode())
            & (revoked_serials.c.serial == f"{svid.serial:x}")
        )
    ).one_or_none()
    return by_serial is not None or (before is not None and svid.not_before < before)


def prune(
    transaction: Transaction, keep: timedelta = timedelta(days=30), window: timedelta = timedelta(hours=24)
) -> None:
    """Deletes certificates, followers, revoked serials and enrolment credentials that ended longer ago than ``keep``; and of
    the certificates of one identity that ended longer ago than ``window`` (re-enrolment), all but the last
    :data:`MOST_ENDED`. The audit log keeps everything."""
    then = transaction.now - int(keep.total_seconds())
    for table in (issued, followers, revoked_serials):
        transaction.connection.execute(table.delete().where(table.c.not_after < then))
    over = (enrolment_credentials.c.expires_at < then) | (enrolment_credentials.c.ended_at < then)
    transaction.connection.execute(enrolment_credentials.delete().where(over))
    ended = issued.c.not_after < transaction.now - int(window.total_seconds())
    many = sa.select(issued.c.identity).where(ended).group_by(issued.c.identity).having(sa.func.count() > MOST_ENDED)
    for identity in transaction.connection.execute(many).scalars().all():
        own = ended & (issued.c.identity == identity)
        newest = sa.select(issued.c.not_after).where(own).order_by(issued.c.not_after.desc())
        last_kept = transaction.connection.execute(newest.offset(MOST_ENDED - 1).limit(1)).scalar_one()
        transaction.connection.execute(issued.delete().where(own & (issued.c.not_after < last_kept)))


def _certify(
    transaction: Transaction,
    policy: IssuingPolicy,
    identity: SpiffeId,
    key: ec.EllipticCurvePublicKey,
    how: str,
    renewed_from: str | None = None,
) -> str:
    earlier = transaction.connection.execute(sa.select(issued).where(issued.c.key_hash == key_hash(key))).one_or_none()
    if earlier is not None:
        if earlier.identity == str(identity) and transaction.now - earlier.issued_at <= AGAIN_SECONDS:
            return str(earlier.certificate)
        raise Denied(Denial.KEY_REUSED, "the key in the CSR was certified before; make a new one")
    if policy.unfit:
        raise Denied(Denial.UNAVAILABLE, f"this CA cannot issue now: {policy.unfit}")
    if not policy.admit(str(identity)):
        raise Denied(Denial.RATE_LIMITED, f"too many certificates for {identity}, or in all; try again later")
    issuer = policy.authority.issuer
    try:
        leaf = x509_profile.leaf(
            identity,
            key,
            issuer,
            _to_datetime(transaction.now),
            policy.ttl,
            not_before=revoked_until(transaction.connection, identity),
        )
    except x509_profile.ProfileError as error:
        raise Denied(Denial.UNAVAILABLE, f"this CA cannot issue now: {error}") from error
    chain = (leaf, issuer.certificate)
    remember(transaction, chain, how, renewed_from)
    return pem(*chain).decode()


def _find_issued(transaction: Transaction, certificate: bytes) -> sa.Row[tuple[object, ...]] | None:
    return transaction.connection.execute(
        sa.select(issued).where(issued.c.sha256 == sha256(certificate).hexdigest())
    ).one_or_none()


def _refuse_revoked(transaction: Transaction, policy: IssuingPolicy, certificate: bytes) -> None:
    if is_revoked(transaction.connection, certificate):
        identity = parse_svid(certificate).id
        raise Denied(
            Denial.REVOKED,
            f"this certificate of {identity} was revoked; if its service may come back: "
            f"{policy.commands.enrolment(str(identity.service))}",
        )


def _key_digest(certificate: bytes) -> bytes:
    return key_digest(x509.load_der_x509_certificate(certificate))


def _to_datetime(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
