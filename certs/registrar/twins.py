"""Which certificates of one identity are in use, for its sidecars: each knows its own, and so another's.

How this works. Somebody who stole a secret, a token or a state directory gets certificates of the same identity from this
CA. They look like those of a replica. So the CA tells the sidecars of an identity which ones there are: those that were not
renewed yet (*tips*), since each holder has one of them. When a certificate was last used to poll shows whether its holder
lives. :mod:`sidecar.agent.twins` says what follows.

Functions of a connection or a transaction (:mod:`certs.store.store`).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certs.registrar.registrar import is_revoked
from certs.store.store import Transaction, issued
from sidecar.identity.spiffe import SpiffeId

MOST_TIPS = 64
"""In one answer; the newest."""

BY_HAND = "command"
"""How a certificate is obtained by `certs issue`: whoever runs it has the CA's key, and no sidecar polls with it."""


def live_serials(connection: sa.Connection, identity: SpiffeId, now: int) -> list[dict[str, Any]]:
    """The unexpired certificates of an identity that this CA has not renewed, oldest first: ``serial``, ``key`` (SHA-256 of
    the public key), ``how``, ``issued_at``, ``not_after``, and ``seen_at`` if it was used to poll. Times are Unix seconds.
    Without those that were revoked, or made by hand."""
    younger = issued.alias()
    alive = (
        (issued.c.identity == str(identity))
        & (issued.c.not_after > now)
        & (issued.c.how != BY_HAND)
        & (
            issued.c.seen_at.is_(None) | (issued.c.seen_at > 0)
        )  # else it may have been renewed before this was recorded
    )
    renewed = sa.exists().where(
        (younger.c.identity == issued.c.identity)
        & (younger.c.not_after > now)
        & (younger.c.renewed_from == issued.c.sha256)
    )
    tips = sa.select(issued).where(alive & ~renewed).order_by(issued.c.issued_at.desc(), issued.c.sha256)
    found = list(connection.execute(tips.limit(MOST_TIPS)))
    return [_as_json(row) for row in reversed(found) if not _revoked(connection, row)]


def saw(transaction: Transaction, sha256: str, at: datetime) -> None:
    """A certificate was used to poll."""
    transaction.connection.execute(issued.update().where(issued.c.sha256 == sha256).values(seen_at=int(at.timestamp())))


def _as_json(row: sa.Row[Any]) -> dict[str, Any]:
    fields = {
        "serial": row.serial,
        "key": row.key_hash,
        "how": row.how,
        "issued_at": row.issued_at,
        "not_after": row.not_after,
        "seen_at": row.seen_at,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _revoked(connection: sa.Connection, row: sa.Row[Any]) -> bool:
    leaf = x509.load_pem_x509_certificate(row.certificate.encode())
    return is_revoked(connection, leaf.public_bytes(Encoding.DER))
