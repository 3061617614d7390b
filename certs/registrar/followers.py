"""Which sidecars poll this CA, and which bundle and certificate each has. A root rotation waits for them.

Functions of a connection or a transaction (:mod:`certs.store.store`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa

from certs.store.store import Transaction, followers

MOST_FOLLOWERS = 256
"""The most rows of one identity. A sidecar chooses its own instance number, so without a limit one sidecar could add any
number of rows, and a rotation would wait for each."""


@dataclass(frozen=True, slots=True)
class Follower:
    """What one polling sidecar has. ``bundle``: a version. ``root``: the SHA-256 of its certificate's root, hexadecimal."""

    instance: str
    identity: str
    bundle: int
    root: str
    not_after: datetime
    seen_at: datetime


def save(transaction: Transaction, follower: Follower) -> None:
    """Records what a sidecar has. Keeps the :data:`MOST_FOLLOWERS` of its identity that polled last."""
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


def forget(transaction: Transaction, follower: Follower) -> None:
    """Forgets one sidecar: a rotation waits for it no longer."""
    transaction.connection.execute(followers.delete().where(followers.c.instance == follower.instance))


def forget_all_but(transaction: Transaction, identities: Collection[str]) -> None:
    """Forgets the sidecars of services that are in the mesh no longer: they get no certificate, so a rotation would wait for
    them until theirs end."""
    known = set(transaction.connection.execute(sa.select(followers.c.identity).distinct()).scalars())
    for gone in known.difference(identities):
        transaction.connection.execute(followers.delete().where(followers.c.identity == gone))


def all_followers(connection: sa.Connection, now: datetime) -> list[Follower]:
    """The followers whose certificate has not expired. One whose has cannot connect to a peer, and gets the newest bundle
    when it re-enrols."""
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
