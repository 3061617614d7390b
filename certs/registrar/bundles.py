"""What the CA tells everybody: the trust bundle and the list of revocations, as they are in the store; and who has heard.

Functions of a connection or a transaction (:mod:`certs.store.store`). The documents themselves are :mod:`certs.protocol.documents`'s.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from cryptography import x509

from certs.authority.authority import Authority
from certs.protocol import x509_profile
from certs.protocol.documents import Bundle, RevocationList, next_version, read_bundle, sign_bundle
from certs.protocol.x509_profile import Issuer
from certs.registrar.registrar import end_passes
from certs.store.store import Transaction, bundles, followers, issued, meta, passes, revoked_identities, revoked_serials
from sidecar.identity.keys import certificate_digest
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import SpiffeId, parse_spiffe_id

MOST_FOLLOWERS = 256
"""Of one identity. A sidecar says itself which replica it is, so it could be ever more of them, each a row, and each to be
waited for by a rotation."""

MOST_BUNDLES = 64
"""How many bundles one answer holds, the newest ones: a rotation makes three."""

_LONGEST = max(x509_profile.MAX_TTL, timedelta(hours=25)) + timedelta(hours=1)
"""After that much time nothing is good any more that was issued before a revocation, so it leaves the list."""


@dataclass(frozen=True, slots=True)
class Follower:
    """A sidecar that polls: what it has. ``root``: the digest of the root that its certificate is under."""

    instance: str
    identity: str
    bundle: int
    root: str
    not_after: datetime
    seen_at: datetime


# -- bundles -----------------------------------------------------------------------------------------------------------


def newest_bundle(connection: sa.Connection) -> str | None:
    """The newest document; None in a store that has none yet."""
    return connection.execute(sa.select(bundles.c.document).order_by(bundles.c.version.desc()).limit(1)).scalar()


def bundles_after(connection: sa.Connection, version: int) -> list[str]:
    """The documents newer than ``version``, the oldest first, at most :data:`MOST_BUNDLES`: each may be signed by a root
    that only the one before it introduces."""
    newer = sa.select(bundles.c.document).where(bundles.c.version > version).order_by(bundles.c.version.desc())
    return list(connection.execute(newer.limit(MOST_BUNDLES)).scalars())[::-1]


def publish(transaction: Transaction, bundle: Bundle, document: bytes) -> None:
    """Adds a bundle, which must be newer than all."""
    last = transaction.connection.execute(sa.select(sa.func.max(bundles.c.version))).scalar()
    if last is not None and bundle.version <= last:
        raise UsageError(f"a bundle of version {bundle.version} is no news after {last}")
    transaction.connection.execute(bundles.insert().values(version=bundle.version, document=document.decode()))
    roots = sorted(anchor.hex()[:16] for anchor in bundle.anchors)
    transaction.record("bundle", "", version=bundle.version, roots=roots, active=bundle.active.hex()[:16])


def distrust(transaction: Transaction, key: bytes, own: Authority, root: Issuer, now: datetime) -> int:
    """Publishes that a CA's key counts no longer, whoever signed for it; returns the bundle's version."""
    document = newest_bundle(transaction.connection)
    if document is None:
        raise UsageError("the store has no trust bundle yet: start certs serve once")
    before = own_bundle(document, own.trust_domain, own.roots, now)
    bundle = replace(before, version=next_version(before.version, now), distrusted=before.distrusted | {key})
    publish(transaction, bundle, sign_bundle(bundle, [root]))
    transaction.record("distrusted", "", key=key.hex())
    return bundle.version


def own_bundle(document: str, trust_domain: str, roots: Iterable[x509.Certificate], now: datetime) -> Bundle:
    """A bundle from our own store, if it is of this CA: signed by one of these roots. Raises :class:`UntrustedError`."""
    return read_bundle(document.encode(), trust_domain, frozenset(map(certificate_digest, roots)), now)


# -- revocations -------------------------------------------------------------------------------------------------------


def revoke_identity(transaction: Transaction, identity: SpiffeId) -> int:
    """Revokes all that was issued for an identity until now, and ends its passes. Returns how many passes that were.

    The time is the next whole second, as certificates count, so that nothing issued in this one is left out; what is issued
    later is not dated back before it (:func:`certs.registrar.registrar.revoked_until`). It only rises, whatever the clock says."""
    where = revoked_identities.c.identity == str(identity)
    until = transaction.connection.execute(sa.select(revoked_identities.c.before).where(where)).scalar()
    before = max(transaction.now + 1, until or 0)
    if until is None:
        transaction.connection.execute(revoked_identities.insert().values(identity=str(identity), before=before))
    else:
        transaction.connection.execute(revoked_identities.update().where(where).values(before=before))
    ended = end_passes(transaction, identity)
    _changed(transaction)
    transaction.record("revoked", str(identity), before=before, passes_ended=ended)
    return ended


def revoke_certificate(transaction: Transaction, serial: int) -> str:
    """Revokes one certificate that this CA issued; returns whose it was. Raises :class:`UsageError`."""
    row = transaction.connection.execute(sa.select(issued).where(issued.c.serial == f"{serial:x}")).first()
    if row is None:
        raise UsageError(f"this CA issued no certificate with the serial {serial:x}; see: certs list")
    leaf = x509.load_pem_x509_certificates(row.certificate.encode())[0]
    issuer = b64encode(leaf.issuer.public_bytes()).decode()
    known = (revoked_serials.c.issuer == issuer) & (revoked_serials.c.serial == row.serial)
    if transaction.connection.execute(sa.select(revoked_serials.c.serial).where(known)).first() is None:
        values = {"issuer": issuer, "serial": row.serial, "not_after": row.not_after}
        transaction.connection.execute(revoked_serials.insert().values(**values))
        _changed(transaction)
        transaction.record("revoked", row.identity, serial=row.serial)
    return str(row.identity)


def revocations_version(connection: sa.Connection) -> int:
    """Of the list as it stands."""
    return int(connection.execute(sa.select(meta.c.value).where(meta.c.key == "revocations_version")).scalar() or 1)


def revocations(connection: sa.Connection, trust_domain: str, now: datetime) -> RevocationList:
    """The list as it stands. What cannot matter any more, because all of it has expired, is not in it."""
    gone = int((now - _LONGEST).timestamp())
    identities = connection.execute(sa.select(revoked_identities).where(revoked_identities.c.before > gone))
    serials = connection.execute(sa.select(revoked_serials).where(revoked_serials.c.not_after >= int(now.timestamp())))
    return RevocationList(
        trust_domain,
        revocations_version(connection),
        now,
        {parse_spiffe_id(row.identity): datetime.fromtimestamp(row.before, UTC) for row in identities},
        frozenset((b64decode(row.issuer), int(row.serial, 16)) for row in serials),
    )


def _changed(transaction: Transaction) -> None:
    last = int(transaction.get("revocations_version") or 0)
    transaction.put("revocations_version", str(next_version(last, datetime.fromtimestamp(transaction.now, UTC))))


# -- who follows -------------------------------------------------------------------------------------------------------


def seen(transaction: Transaction, follower: Follower) -> None:
    """Notes what a sidecar has. Of one identity those that were seen last stay, at most :data:`MOST_FOLLOWERS`."""
    values = {
        "identity": follower.identity,
        "bundle": follower.bundle,
        "root": follower.root,
        "not_after": int(follower.not_after.timestamp()),
        "seen_at": int(follower.seen_at.timestamp()),
    }
    where = followers.c.instance == follower.instance
    if transaction.connection.execute(followers.update().where(where).values(**values)).rowcount == 0:
        transaction.connection.execute(followers.insert().values(instance=follower.instance, **values))
        own = followers.c.identity == follower.identity
        newest = sa.select(followers.c.instance).where(own).order_by(followers.c.seen_at.desc(), followers.c.instance)
        kept = newest.limit(MOST_FOLLOWERS).subquery()
        gone = followers.delete().where(own & followers.c.instance.not_in(sa.select(kept.c.instance)))
        transaction.connection.execute(gone)


def all_followers(connection: sa.Connection, now: datetime) -> list[Follower]:
    """Those whose certificate has not ended; whoever's has can talk to nobody, and learns all when it comes back."""
    alive = sa.select(followers).where(followers.c.not_after >= int(now.timestamp()))
    return [
        Follower(
            row.instance,
            row.identity,
            row.bundle,
            row.root,
            datetime.fromtimestamp(row.not_after, UTC),
            datetime.fromtimestamp(row.seen_at, UTC),
        )
        for row in connection.execute(alive.order_by(followers.c.identity, followers.c.instance))
    ]


def prune(transaction: Transaction, keep: timedelta = timedelta(days=30)) -> None:
    """Forgets certificates, followers and passes that ended long ago. The audit log forgets nothing."""
    then = transaction.now - int(keep.total_seconds())
    for table in (issued, followers, revoked_serials):
        transaction.connection.execute(table.delete().where(table.c.not_after < then))
    over = (passes.c.expires_at < then) | (passes.c.ended_at < then)
    transaction.connection.execute(passes.delete().where(over))
