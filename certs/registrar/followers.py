"""Which sidecars poll this CA, and what each of them has. A rotation of the root waits for them.

Functions of a connection or a transaction (:mod:`certs.store.store`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa

from certs.store.store import Transaction, followers

MOST_FOLLOWERS = 256
"""Of one identity. A sidecar says itself which replica it is, so it could be ever more of them, each a row, and each to be
waited for by a rotation."""


@dataclass(frozen=True, slots=True)
class Follower:
    """A sidecar that polls: what it has. ``root``: the digest of the root that its certificate is under."""

    instance: str
    identity: str
    bundle: int
    root: str
    not_after: datetime
    seen_at: datetime


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
