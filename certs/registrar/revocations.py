"""Revokes identities and single certificates, and makes the list of both that sidecars get.

Functions of a connection or a transaction (:mod:`certs.store.store`). :mod:`certs.protocol.documents` defines the signed
document.

A list that is larger than its readers read would revoke nothing. So no revocation is stored that the list has no room for
(:data:`ROOM_BYTES`): of an identity a time takes the place of many serial numbers; anything else is refused, with what to
do instead.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from cryptography import x509

from certs.protocol import x509_profile
from certs.protocol.documents import LISTS_A_SECOND, MAX_BYTES, RevocationList, next_version
from certs.registrar.registrar import end_credentials, revoked_until
from certs.store.store import Transaction, followers, issued, meta, revoked_identities, revoked_serials
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import SpiffeId, parse_spiffe_id

_CLOCKS_APART = timedelta(hours=1)
"""How much longer than a certificate its revocation stays on the list: a sidecar's clock may be behind."""

_LONGEST = max(x509_profile.MAX_TTL, timedelta(hours=25)) + _CLOCKS_APART
"""Everything issued before a revocation has expired after this time, so the revocation leaves the list."""

ROOM_BYTES = (MAX_BYTES - (128 << 10)) * 3 // 4
"""For the entries of the list, as JSON. The document is base64 of them, a third more, and at most 128 KiB of all else."""

_IDENTITY_BYTES, _SERIAL_BYTES = 14, 8
"""What an entry has around its texts: quotes, commas, brackets, and the time of an identity."""


def revoke_identity(transaction: Transaction, identity: SpiffeId) -> int:
    """Revokes every certificate issued for an identity until now, and ends its enrolment credentials; returns the number of
    credentials ended. Raises :class:`UsageError`, and revokes nothing, if the list has no room.

    The recorded time is the next whole second, because certificates count in seconds and one issued in this second is
    revoked too. A later certificate is not backdated before it (:func:`certs.registrar.registrar.revoked_until`). The time
    never goes back, even if the clock does.

    A certificate may be dated later than that: the clock that issued it was ahead, or this one is behind. Such ones are
    revoked by their serial numbers. The time is not moved to them, because the service could not come back before then. Only
    if the list has no room for their numbers, the time is.
    """
    until = revoked_until(transaction.connection, identity)
    before = max(transaction.now + 1, 0 if until is None else int(until.timestamp()))
    _set_time(transaction, identity, before)
    later = dated_later(transaction, identity)
    if not _has_room(transaction, later):
        before = max([before, *(int(leaf.not_valid_before_utc.timestamp()) + 1 for leaf in later)])
        _set_time(transaction, identity, before)
        later = []
    if not _has_room(transaction, later):
        raise UsageError(
            "the list of revocations has room for no more services: it would be too large for its readers. "
            "To revoke every certificate: certs renew-issuing --distrust"
        )
    _list_serials(transaction, later)
    ended = end_credentials(transaction, identity)
    # A rotation does not wait for them. One that comes back is recorded when it polls.
    transaction.connection.execute(followers.delete().where(followers.c.identity == str(identity)))
    raise_version(transaction)
    transaction.record("revoked", str(identity), before=before, dated_later=len(later), passes_ended=ended)
    return ended


def revoke_certificate(transaction: Transaction, serial: int) -> str:
    """Revokes one certificate that this CA issued; returns its identity. Raises :class:`UsageError`."""
    row = transaction.connection.execute(sa.select(issued).where(issued.c.serial == f"{serial:x}")).first()
    if row is None:
        raise UsageError(f"this CA issued no certificate with the serial {serial:x}; see: certs list")
    leaf = _leaf(row.certificate)
    if not _is_listed(transaction, leaf):
        if not _has_room(transaction, [leaf]):
            raise UsageError(
                "the list of revocations has room for no more single certificates: it would be too large for its readers. "
                f"To revoke all of this service by one entry: certs revoke {row.identity.split('/', 3)[3]}"
            )
        _list_serials(transaction, [leaf])
        raise_version(transaction)
        transaction.record("revoked", row.identity, serial=row.serial)
    return str(row.identity)


def dated_later(transaction: Transaction, identity: SpiffeId) -> list[x509.Certificate]:
    """The certificates of an identity that are dated later than its revocation, and that some reader may not take for
    expired yet."""
    before = revoked_until(transaction.connection, identity)
    ended = transaction.now - int(_CLOCKS_APART.total_seconds())
    own = sa.select(issued.c.certificate).where((issued.c.identity == str(identity)) & (issued.c.not_after >= ended))
    leaves = (_leaf(chain) for chain in transaction.connection.execute(own).scalars())
    return [leaf for leaf in leaves if before is not None and leaf.not_valid_before_utc >= before]


def revocations_version(connection: sa.Connection) -> int:
    """The version of the current list."""
    return int(connection.execute(sa.select(meta.c.value).where(meta.c.key == "revocations_version")).scalar() or 1)


def current_list(connection: sa.Connection, trust_domain: str, now: datetime) -> RevocationList:
    """The current list, without the revocations whose certificates have all expired."""
    on_list = _on_list(int(now.timestamp()))
    identities = connection.execute(sa.select(revoked_identities).where(on_list[0]))
    serials = connection.execute(sa.select(revoked_serials).where(on_list[1]))
    return RevocationList(
        trust_domain,
        revocations_version(connection),
        now,
        {parse_spiffe_id(row.identity): datetime.fromtimestamp(row.before, UTC) for row in identities},
        frozenset((b64decode(row.issuer), int(row.serial, 16)) for row in serials),
    )


def _set_time(transaction: Transaction, identity: SpiffeId, before: int) -> None:
    """Revokes the certificates of an identity that are dated before a time. Their serial numbers leave the list."""
    connection, table = transaction.connection, revoked_identities
    where = table.c.identity == str(identity)
    if connection.execute(table.update().where(where).values(before=before)).rowcount == 0:
        connection.execute(table.insert().values(identity=str(identity), before=before))
    of_identity = issued.c.identity == str(identity)
    listed = sa.select(issued.c.certificate).where(
        of_identity & issued.c.serial.in_(sa.select(revoked_serials.c.serial))
    )
    for leaf in map(_leaf, connection.execute(listed).scalars().all()):
        if leaf.not_valid_before_utc.timestamp() < before:
            connection.execute(revoked_serials.delete().where(_entry(leaf)))


def _list_serials(transaction: Transaction, leaves: Iterable[x509.Certificate]) -> None:
    for leaf in leaves:
        if not _is_listed(transaction, leaf):
            not_after = int(leaf.not_valid_after_utc.timestamp())
            values = {"issuer": _issuer(leaf), "serial": f"{leaf.serial_number:x}", "not_after": not_after}
            transaction.connection.execute(revoked_serials.insert().values(**values))


def _is_listed(transaction: Transaction, leaf: x509.Certificate) -> bool:
    return transaction.connection.execute(sa.select(revoked_serials.c.serial).where(_entry(leaf))).first() is not None


def _entry(leaf: x509.Certificate) -> sa.ColumnElement[bool]:
    table = revoked_serials
    return (table.c.issuer == _issuer(leaf)) & (table.c.serial == f"{leaf.serial_number:x}")


def _issuer(leaf: x509.Certificate) -> str:
    return b64encode(leaf.issuer.public_bytes()).decode()


def _leaf(chain: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(chain.encode())


def _on_list(now: int) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    """Which revoked identities and serials are on the list: those that some reader may still meet a certificate of."""
    ended, obsolete = (now - int(span.total_seconds()) for span in (_CLOCKS_APART, _LONGEST))
    return revoked_identities.c.before > obsolete, revoked_serials.c.not_after >= ended


def _has_room(transaction: Transaction, more: Iterable[x509.Certificate] = ()) -> bool:
    """Whether the list, with the serial numbers of ``more``, is small enough for its readers."""
    identities, serials = _on_list(transaction.now)
    one, other = revoked_identities.c, revoked_serials.c
    sizes = (
        sa.select(sa.func.sum(sa.func.length(one.identity) + _IDENTITY_BYTES)).where(identities),
        sa.select(sa.func.sum(sa.func.length(other.issuer) + sa.func.length(other.serial) + _SERIAL_BYTES)).where(
            serials
        ),
    )
    used = sum(int(transaction.connection.execute(size).scalar() or 0) for size in sizes)
    new = sum(len(_issuer(leaf)) + len(f"{leaf.serial_number:x}") + _SERIAL_BYTES for leaf in more)
    return used + new <= ROOM_BYTES


def raise_version(transaction: Transaction) -> None:
    """The list has changed, or must count as newer than one that was signed by a clock that has been set back since."""
    last = int(transaction.get("revocations_version") or 0)
    now = datetime.fromtimestamp(transaction.now, UTC)
    transaction.put("revocations_version", str(next_version(last, now, LISTS_A_SECOND)))
