"""Revokes identities and single certificates, and makes the list of both that sidecars get.

Functions of a connection or a transaction (:mod:`certs.store.store`). :mod:`certs.protocol.documents` defines the signed
document.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from cryptography import x509

from certs.protocol import x509_profile
from certs.protocol.documents import RevocationList, next_version
from certs.registrar.registrar import end_credentials
from certs.store.store import Transaction, followers, issued, meta, revoked_identities, revoked_serials
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import SpiffeId, parse_spiffe_id

_LONGEST = max(x509_profile.MAX_TTL, timedelta(hours=25)) + timedelta(hours=1)
"""Everything issued before a revocation has expired after this time, so the revocation leaves the list."""


def revoke_identity(transaction: Transaction, identity: SpiffeId) -> int:
    """Revokes every certificate issued for an identity until now, and ends its enrolment credentials; returns the number of
    credentials ended.

    The recorded time is the next whole second, because certificates count in seconds and one issued in this second is
    revoked too. A later certificate is not backdated before it (:func:`certs.registrar.registrar.revoked_until`). The time
    never goes back, even if the clock does.
    """
    where = revoked_identities.c.identity == str(identity)
    until = transaction.connection.execute(sa.select(revoked_identities.c.before).where(where)).scalar()
    before = max(transaction.now + 1, until or 0)
    if until is None:
        transaction.connection.execute(revoked_identities.insert().values(identity=str(identity), before=before))
    else:
        transaction.connection.execute(revoked_identities.update().where(where).values(before=before))
    ended = end_credentials(transaction, identity)
    # A rotation does not wait for them. One that comes back is recorded when it polls.
    transaction.connection.execute(followers.delete().where(followers.c.identity == str(identity)))
    _raise_version(transaction)
    transaction.record("revoked", str(identity), before=before, passes_ended=ended)
    return ended


def revoke_certificate(transaction: Transaction, serial: int) -> str:
    """Revokes one certificate that this CA issued; returns its identity. Raises :class:`UsageError`."""
    row = transaction.connection.execute(sa.select(issued).where(issued.c.serial == f"{serial:x}")).first()
    if row is None:
        raise UsageError(f"this CA issued no certificate with the serial {serial:x}; see: certs list")
    leaf = x509.load_pem_x509_certificates(row.certificate.encode())[0]
    issuer = b64encode(leaf.issuer.public_bytes()).decode()
    known = (revoked_serials.c.issuer == issuer) & (revoked_serials.c.serial == row.serial)
    if transaction.connection.execute(sa.select(revoked_serials.c.serial).where(known)).first() is None:
        values = {"issuer": issuer, "serial": row.serial, "not_after": row.not_after}
        transaction.connection.execute(revoked_serials.insert().values(**values))
        _raise_version(transaction)
        transaction.record("revoked", row.identity, serial=row.serial)
    return str(row.identity)


def revocations_version(connection: sa.Connection) -> int:
    """The version of the current list."""
    return int(connection.execute(sa.select(meta.c.value).where(meta.c.key == "revocations_version")).scalar() or 1)


def current_list(connection: sa.Connection, trust_domain: str, now: datetime) -> RevocationList:
    """The current list, without the revocations whose certificates have all expired."""
    obsolete = int((now - _LONGEST).timestamp())
    identities = connection.execute(sa.select(revoked_identities).where(revoked_identities.c.before > obsolete))
    serials = connection.execute(sa.select(revoked_serials).where(revoked_serials.c.not_after >= int(now.timestamp())))
    return RevocationList(
        trust_domain,
        revocations_version(connection),
        now,
        {parse_spiffe_id(row.identity): datetime.fromtimestamp(row.before, UTC) for row in identities},
        frozenset((b64decode(row.issuer), int(row.serial, 16)) for row in serials),
    )


def _raise_version(transaction: Transaction) -> None:
    last = int(transaction.get("revocations_version") or 0)
    transaction.put("revocations_version", str(next_version(last, datetime.fromtimestamp(transaction.now, UTC))))
