"""A store's schema as a database reports it, to be compared; and a child process that opens a store as a later program."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa

LATER = """
import sys
import sqlalchemy as sa
from certs.store import store

def second(connection):
    connection.exec_driver_sql("ALTER TABLE passes ADD COLUMN note VARCHAR(32) NOT NULL DEFAULT 'none'")
    connection.exec_driver_sql("CREATE INDEX ix_passes_note ON passes (note)")

note = sa.Column("note", sa.String(32), nullable=False, server_default="none", index=True)
store.enrolment_credentials.append_column(note)
store.MIGRATIONS = (*store.MIGRATIONS, second)
store.SCHEMA_VERSION = len(store.MIGRATIONS)
with store.opened(sys.argv[1], clock=lambda: 0) as found:
    print(found.write(lambda transaction: transaction.get("schema_version")))
if len(sys.argv) > 2:
    engine = store._engine(store._parse(sys.argv[2]))
    with engine.begin() as connection:
        store._tables.create_all(connection)
    engine.dispose()
"""
"""The program after its first change of the schema: a column and its index, in the tables and as a migration. The second
argument, if there is one, is an empty database that gets the tables alone."""


def open_as_later(*urls: str) -> str:
    """Opens a store with the later program, and returns what it said: its version, or the end of its traceback."""
    command = [sys.executable, "-c", LATER, *urls]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def schema_of(connection: sa.Connection) -> Mapping[str, Any]:
    """Every table with its columns in their order (type, nullability, default), its keys, indexes and constraints."""
    inspector = sa.inspect(connection)
    return {
        table: {
            "columns": [
                {**column, "type": column["type"].compile(connection.dialect)}
                for column in inspector.get_columns(table)
            ],
            "primary key": inspector.get_pk_constraint(table),
            "indexes": sorted(inspector.get_indexes(table), key=lambda it: str(it["name"])),
            "unique": sorted(inspector.get_unique_constraints(table), key=lambda it: it["column_names"]),
            "foreign keys": inspector.get_foreign_keys(table),
            "checks": inspector.get_check_constraints(table),
        }
        for table in sorted(inspector.get_table_names())
    }
