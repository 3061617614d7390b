"""A store's schema is the same however it came about: made new, or brought up to date from any version."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from certs.store import store
from certs.store.migrations import MIGRATIONS, VERSION_1
from certs.store.store import file_url, opened
from tests.schema import open_as_later, schema_of


def schema(path: Path) -> Mapping[str, Any]:
    engine = sa.create_engine(file_url(path))
    with engine.connect() as connection:
        found = schema_of(connection)
    engine.dispose()
    return found


def make_tables(path: Path) -> None:
    """What ``store``'s tables say that a store has."""
    engine = sa.create_engine(file_url(path))
    store._tables.create_all(engine)
    engine.dispose()


def test_a_new_store_is_what_the_tables_say(tmp_path: Path) -> None:
    opened_path, made = tmp_path / "opened.db", tmp_path / "made.db"
    with opened(file_url(opened_path), clock=lambda: 0):
        pass
    make_tables(made)
    assert schema(opened_path) == schema(made)
    assert schema(made).keys() == store._tables.tables.keys()


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE passes ADD COLUMN note TEXT",
        "ALTER TABLE passes DROP COLUMN ended_at",
        "DROP INDEX ix_issued_not_after",
        "DROP TABLE followers",
        "CREATE UNIQUE INDEX one_more ON issued (serial)",
        "DROP TABLE meta; CREATE TABLE meta (key VARCHAR(64) NOT NULL PRIMARY KEY, value TEXT)",
        "DROP TABLE meta; CREATE TABLE meta (key VARCHAR(64) NOT NULL PRIMARY KEY, value TEXT NOT NULL DEFAULT '')",
        "DROP TABLE meta; CREATE TABLE meta (key VARCHAR(65) NOT NULL PRIMARY KEY, value TEXT NOT NULL)",
        "DROP TABLE meta; CREATE TABLE meta (key VARCHAR(64) NOT NULL, value TEXT NOT NULL)",
    ],
)
def test_the_comparison_sees_every_difference(tmp_path: Path, change: str) -> None:
    one, other = tmp_path / "one.db", tmp_path / "other.db"
    make_tables(one)
    make_tables(other)
    assert schema(one) == schema(other)
    engine = sa.create_engine(file_url(other))
    with engine.begin() as connection:
        for statement in change.split("; "):
            connection.exec_driver_sql(statement)
    engine.dispose()
    assert schema(one) != schema(other)


def test_the_next_change_of_the_schema_reaches_new_stores_and_old_ones(tmp_path: Path) -> None:
    fresh, old, made = (tmp_path / f"{name}.db" for name in ("fresh", "old", "made"))
    with opened(file_url(old), clock=lambda: 0) as kept:
        kept.write(lambda transaction: transaction.put("kept", "as it was"))
    assert open_as_later(file_url(fresh), file_url(made)) == "3"
    assert open_as_later(file_url(old)) == "3"
    assert schema(fresh) == schema(old) == schema(made)
    assert "note" in {column["name"] for column in schema(fresh)["passes"]["columns"]}
    assert "ix_passes_note" in {index["name"] for index in schema(fresh)["passes"]["indexes"]}
    assert open_as_later(file_url(old)) == "3", "and it is done once"
    engine = sa.create_engine(file_url(old))
    with engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT value FROM meta WHERE key = 'kept'").scalar_one()
    engine.dispose()
    assert found == "as it was"


def test_version_1_is_frozen() -> None:
    """Stores of it exist. What is to be changed is changed by a migration, added after it."""
    assert {dialect: sha256("".join(ddl).encode()).hexdigest()[:16] for dialect, ddl in VERSION_1.items()} == {
        "sqlite": "8b34a569419beef7",
        "postgresql": "8979194e0900a663",
    }
    assert len(MIGRATIONS) == store.SCHEMA_VERSION
