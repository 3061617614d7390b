"""The schema of the CA's store, from one version to the next. Migrations are only ever added.

Version 1 is the DDL that shipped, not "the current tables". A new store runs every migration, as an old one did, so a later
``ADD COLUMN`` never finds its column there already. A change of ``store``'s tables needs a new migration; the tests compare
the two, column by column, on SQLite and on PostgreSQL.

Why frozen DDL and not Alembic: the store migrates itself when it is opened, in the transaction that holds its lock. A tuple
of functions is enough for that; Alembic would add files, a command and a version table of its own.
"""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

Migration = Callable[[sa.Connection], None]
"""Migrates the schema from the version that is its index in :data:`MIGRATIONS` to the next."""

_BUNDLES = "CREATE TABLE bundles (version {} NOT NULL, document TEXT NOT NULL, PRIMARY KEY (version))"
_VERSION_1 = (
    """CREATE TABLE meta ("key" VARCHAR(64) NOT NULL, value TEXT NOT NULL, PRIMARY KEY ("key"))""",
    """CREATE TABLE issued (
        sha256 VARCHAR(64) NOT NULL,
        key_hash VARCHAR(64) NOT NULL,
        serial VARCHAR(40) NOT NULL,
        identity TEXT NOT NULL,
        issued_at BIGINT NOT NULL,
        not_after BIGINT NOT NULL,
        how VARCHAR(16) NOT NULL,
        certificate TEXT NOT NULL,
        PRIMARY KEY (sha256),
        UNIQUE (key_hash)
    )""",
    "CREATE INDEX ix_issued_identity ON issued (identity)",
    "CREATE INDEX ix_issued_not_after ON issued (not_after)",
    """CREATE TABLE passes (
        hash VARCHAR(64) NOT NULL,
        kind VARCHAR(8) NOT NULL,
        identity TEXT NOT NULL,
        made_at BIGINT NOT NULL,
        expires_at BIGINT,
        used_by VARCHAR(64),
        ended_at BIGINT,
        PRIMARY KEY (hash)
    )""",
    "CREATE INDEX ix_passes_identity ON passes (identity)",
    """CREATE TABLE revoked_identities (identity TEXT NOT NULL, "before" BIGINT NOT NULL, PRIMARY KEY (identity))""",
    """CREATE TABLE revoked_serials (
        issuer TEXT NOT NULL,
        serial VARCHAR(40) NOT NULL,
        not_after BIGINT NOT NULL,
        PRIMARY KEY (issuer, serial)
    )""",
    """CREATE TABLE followers (
        instance VARCHAR(32) NOT NULL,
        identity TEXT NOT NULL,
        bundle BIGINT NOT NULL,
        root VARCHAR(64) NOT NULL,
        not_after BIGINT NOT NULL,
        seen_at BIGINT NOT NULL,
        PRIMARY KEY (instance)
    )""",
    """CREATE TABLE audit_log (
        number BIGINT NOT NULL,
        at BIGINT NOT NULL,
        event VARCHAR(32) NOT NULL,
        identity TEXT NOT NULL,
        detail TEXT NOT NULL,
        hash VARCHAR(64) NOT NULL,
        PRIMARY KEY (number)
    )""",
)
VERSION_1 = {
    "sqlite": (*_VERSION_1, _BUNDLES.format("BIGINT")),
    "postgresql": (*_VERSION_1, _BUNDLES.format("BIGSERIAL")),
}
"""By dialect. Frozen: stores of this version exist, and a change here would not reach them."""


def _version_1(connection: sa.Connection) -> None:
    for statement in VERSION_1[connection.dialect.name]:
        connection.exec_driver_sql(statement)


VERSION_2 = (
    "ALTER TABLE issued ADD COLUMN renewed_from VARCHAR(64)",
    "ALTER TABLE issued ADD COLUMN seen_at BIGINT",
    "CREATE INDEX ix_issued_identity_not_after ON issued (identity, not_after)",
    "UPDATE issued SET seen_at = 0",
)
"""From which certificate one was renewed, and when it was last used to poll: to tell twins of an identity. Of those that
were issued before, nobody knows from which; ``seen_at`` 0 marks them until they are used."""


def _version_2(connection: sa.Connection) -> None:
    for statement in VERSION_2:
        connection.exec_driver_sql(statement)


MIGRATIONS: tuple[Migration, ...] = (_version_1, _version_2)
