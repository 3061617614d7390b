"""The CA's records: issued certificates, enrolment credentials, revocations, trust bundles, followers, and an audit log.

How this works. SQLAlchemy Core over SQLite (the default: WAL, synchronous FULL) or PostgreSQL (by URL; several CAs may share
one database). Every change is one function of a :class:`Transaction`.

* Writers are serial, in all processes: each transaction first locks the row of the audit log's head (SQLite: the database).
  So an operation sees everything committed before it. Of two requests with one token, the second finds it used.
* :meth:`Store.write_many` makes that fast: it runs many operations in one transaction, each in its own savepoint, and waits
  for the disk once.
* A result may be sent only after ``write`` has returned it: then it is on disk.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from certs.store import audit
from certs.store.migrations import MIGRATIONS
from sidecar.host.private import is_foreign
from sidecar.identity.reasons import UsageError

_T = TypeVar("_T")

SCHEMA_VERSION = len(MIGRATIONS)
_BUSY_SECONDS = 10
_SECRETS = ("password", "sslpassword")  # PostgreSQL accepts these as URL parameters too

_tables = sa.MetaData()  # for queries only; ``migrations`` makes a store's tables
_Time = sa.BigInteger  # Unix seconds

meta = sa.Table(
    "meta", _tables, sa.Column("key", sa.String(64), primary_key=True), sa.Column("value", sa.Text, nullable=False)
)
issued = sa.Table(
    "issued",
    _tables,
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("key_hash", sa.String(64), nullable=False, unique=True),
    sa.Column("serial", sa.String(40), nullable=False),
    sa.Column("identity", sa.Text, nullable=False, index=True),
    sa.Column("issued_at", _Time, nullable=False),
    sa.Column("not_after", _Time, nullable=False, index=True),
    sa.Column("how", sa.String(16), nullable=False),
    sa.Column("certificate", sa.Text, nullable=False),  # PEM of the chain
    sa.Column("renewed_from", sa.String(64)),  # the sha256 of the certificate that it was renewed from
    sa.Column("seen_at", _Time),  # when it was last used to poll
    sa.Index("ix_issued_identity_not_after", "identity", "not_after"),
)
enrolment_credentials = sa.Table(
    "passes",
    _tables,
    sa.Column("hash", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(8), nullable=False),
    sa.Column("identity", sa.Text, nullable=False, index=True),
    sa.Column("made_at", _Time, nullable=False),
    sa.Column("expires_at", _Time),  # of a token
    sa.Column("used_by", sa.String(64)),  # the hash of the key that a token was used for
    sa.Column("ended_at", _Time),  # when it was revoked
)
revoked_identities = sa.Table(
    "revoked_identities",
    _tables,
    sa.Column("identity", sa.Text, primary_key=True),
    sa.Column("before", _Time, nullable=False),
)
revoked_serials = sa.Table(
    "revoked_serials",
    _tables,
    sa.Column("issuer", sa.Text, primary_key=True),  # base64 of the DER of its name
    sa.Column("serial", sa.String(40), primary_key=True),
    sa.Column("not_after", _Time, nullable=False),
)
followers = sa.Table(
    "followers",
    _tables,
    sa.Column("instance", sa.String(32), primary_key=True),
    sa.Column("identity", sa.Text, nullable=False),
    sa.Column("bundle", sa.BigInteger, nullable=False),
    sa.Column("root", sa.String(64), nullable=False),  # SHA-256 of its certificate's root
    sa.Column("not_after", _Time, nullable=False),
    sa.Column("seen_at", _Time, nullable=False),
)
bundles = sa.Table(
    "bundles",
    _tables,
    sa.Column("version", sa.BigInteger, primary_key=True),
    sa.Column("document", sa.Text, nullable=False),
)
audit_log = sa.Table(
    "audit_log",
    _tables,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("at", _Time, nullable=False),
    sa.Column("event", sa.String(32), nullable=False),
    sa.Column("identity", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)


class StoreUnavailableError(Exception):
    """The store cannot be read or written now: a full disk, an unreachable database. Nothing was changed."""


@dataclass(slots=True)
class Transaction:
    """One transaction. ``connection`` reads and writes; :meth:`record` adds to the audit log. ``now``: Unix seconds."""

    connection: sa.Connection
    now: int
    _number: int
    _hash: str

    def record(self, event: str, identity: str, **detail: Any) -> None:
        """Adds an entry to the audit log. No detail may be secret."""
        entry = audit.chained(self._hash, self._number + 1, self.now, event, identity, detail)
        self.connection.execute(
            audit_log.insert().values(
                number=entry.number,
                at=entry.at,
                event=entry.event,
                identity=entry.identity,
                detail=entry.detail,
                hash=entry.hash,
            )
        )
        self._number, self._hash = entry.number, entry.hash

    def get(self, key: str) -> str | None:
        """A value of ``meta``."""
        return self.connection.execute(sa.select(meta.c.value).where(meta.c.key == key)).scalar_one_or_none()

    def put(self, key: str, value: str) -> None:
        if self.connection.execute(meta.update().where(meta.c.key == key).values(value=value)).rowcount == 0:
            self.connection.execute(meta.insert().values(key=key, value=value))


Operation = Callable[[Transaction], _T]


class Store:
    """An open store with an up-to-date schema. Its methods block: call them in a thread."""

    def __init__(self, url: str, *, clock: Callable[[], int]) -> None:
        """Opens the store, creates it if it is missing, and migrates it. Raises :class:`UsageError`."""
        self._clock = clock
        parsed = _parse(url)
        self._where = _without_secrets(parsed)
        self._engine = _engine(parsed)
        self._closed = False
        try:
            self._migrate()
        except (sa.exc.SQLAlchemyError, OSError) as error:
            self.close()
            raise UsageError(f"cannot open the store {self._where}: {_reason(error)}") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes its connections. One that a thread still uses is closed when the thread gives it back."""
        self._closed = True
        self._engine.pool.dispose()

    def _given_back(self) -> None:
        if self._closed:  # the pool has taken it, and closes by itself only what it held before
            self._engine.pool.dispose()

    def write(self, operation: Operation[_T]) -> _T:
        """Runs one operation in a transaction and returns its result once it is on disk. An exception rolls it back."""
        (outcome,) = self.write_many([operation])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome  # type: ignore[no-any-return]

    def write_many(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        """Runs the operations in order in one transaction. Returns for each its result, or the exception that rolled back
        this one alone. Raises :class:`StoreUnavailableError` if the whole transaction failed."""
        outcomes: list[Any] = []
        fault: Exception | None = None
        try:
            with self._engine.begin() as connection:
                transaction = self._locked(connection)
                for operation in operations:
                    head = transaction._number, transaction._hash
                    try:
                        with connection.begin_nested():
                            try:
                                outcomes.append(operation(transaction))
                            except (sa.exc.OperationalError, sa.exc.InterfaceError) as error:
                                fault = error  # the cause: it may end the savepoint too, whose error would replace it
                                raise
                    except (sa.exc.OperationalError, sa.exc.InterfaceError):
                        raise  # a fault of the store: no operation is certain to be committed
                    except Exception as error:
                        transaction._number, transaction._hash = head
                        outcomes.append(error)
                transaction.put("audit_head", f"{transaction._number} {transaction._hash}")
        except (sa.exc.SQLAlchemyError, OSError) as error:
            why = _reason(fault or error)
            raise StoreUnavailableError(f"the store {self._where} cannot be written: {why}") from error
        finally:
            self._given_back()
        return outcomes

    def read(self, query: Callable[[sa.Connection], _T]) -> _T:
        """Runs a query on what is committed; does not wait for writers. Raises :class:`StoreUnavailableError`."""
        try:
            with self._engine.connect().execution_options(reading=True) as connection:
                return query(connection)
        except (sa.exc.SQLAlchemyError, OSError) as error:
            raise StoreUnavailableError(f"the store {self._where} cannot be read: {_reason(error)}") from error
        finally:
            self._given_back()

    def _locked(self, connection: sa.Connection) -> Transaction:
        head = connection.execute(
            sa.select(meta.c.value).where(meta.c.key == "audit_head").with_for_update()
        ).scalar_one()
        number, _, hash_ = head.partition(" ")
        return Transaction(connection, self._clock(), int(number), hash_)

    def _migrate(self) -> None:
        with self._engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                # Two replicas may start at once.
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(7305432109)"))
            found = 0
            if sa.inspect(connection).has_table("meta"):
                found = int(
                    connection.execute(sa.select(meta.c.value).where(meta.c.key == "schema_version")).scalar() or 0
                )
            if found > SCHEMA_VERSION:
                raise UsageError(
                    f"the store {self._where} was made by a newer version (schema {found}; this one supports up to "
                    f"{SCHEMA_VERSION}): update this program, or restore the copy from before the update"
                )
            if found == SCHEMA_VERSION:
                return
            for migration in MIGRATIONS[found:]:
                migration(connection)
            if found == 0:
                connection.execute(
                    meta.insert(),
                    [{"key": "schema_version", "value": "0"}, {"key": "audit_head", "value": f"0 {audit.START}"}],
                )
            connection.execute(meta.update().where(meta.c.key == "schema_version").values(value=str(SCHEMA_VERSION)))


def file_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return sa.URL.create("sqlite", database=str(path)).render_as_string()


def audit_entries(connection: sa.Connection) -> Iterator[audit.Entry]:
    """The whole audit log, in order."""
    for row in connection.execute(sa.select(audit_log).order_by(audit_log.c.number)):
        yield audit.Entry(row.number, row.at, row.event, row.identity, row.detail, row.hash)


def audit_head(connection: sa.Connection) -> str:
    """``number hash`` of the newest entry, as the last transaction stored it outside the log."""
    return str(connection.execute(sa.select(meta.c.value).where(meta.c.key == "audit_head")).scalar_one())


def holds_password(url: str) -> bool:
    """Whether a store's URL contains a password, in any place. Raises :class:`UsageError` if it is not a URL."""
    parsed = _parse(url)
    return bool(parsed.password) or any(name in parsed.query for name in _SECRETS)


def _parse(url: str) -> sa.URL:
    try:
        return sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError) as error:
        raise UsageError("the store's URL cannot be read: write it as postgresql://user@host/database") from error


def _without_secrets(url: sa.URL) -> str:
    return url.difference_update_query(_SECRETS).render_as_string(hide_password=True)


def _engine(parsed: sa.URL) -> sa.Engine:
    if parsed.get_backend_name() == "sqlite":
        _make_private(Path(parsed.database or ""))
        engine = sa.create_engine(parsed, connect_args={"timeout": _BUSY_SECONDS, "check_same_thread": False})
        sa.event.listen(engine, "connect", _set_up_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    if parsed.get_backend_name() == "postgresql":
        try:
            return sa.create_engine(
                parsed.set(drivername="postgresql+psycopg"),
                pool_pre_ping=True,  # no request fails for a database that restarted meanwhile
                connect_args={
                    "connect_timeout": _BUSY_SECONDS,
                    "options": "-c lock_timeout=10s -c statement_timeout=30s",
                },
            )
        except ImportError as error:
            raise UsageError(
                "a PostgreSQL store needs the package psycopg: pip install 'mtls-sidecar[postgresql]'"
            ) from error
    raise UsageError(f"a store is a SQLite file or a postgresql:// URL; {parsed.get_backend_name()} is not supported")


def _make_private(path: Path) -> None:
    """Creates the file with mode 0600 if it is missing; SQLite gives its other files the same mode.

    An existing file must be of this process's user or root, and no other may write to it: revocations are in it.

    It is not opened here. Closing it would release the locks that this process's other connections hold on it
    (fcntl(2)), and another process could then remove the write-ahead log that they use.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        if path.is_symlink() or not path.is_file():
            raise UsageError(
                f"cannot open the store {path}: it is not a regular file, and a symlink is not followed"
            ) from None
        status = path.stat()
        if is_foreign(status) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise UsageError(
                f"cannot open the store {path}: others may write to it: chmod 600 {path}; if it is another user's, run "
                "this as that user"
            ) from None
    except OSError as error:
        raise UsageError(f"cannot open the store {path}: {error.strerror}") from error


def _set_up_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # the driver's implicit BEGIN comes too late for the lock, and breaks savepoints
    _use_write_ahead_log(connection)
    connection.execute("PRAGMA synchronous=FULL")  # durable before an answer is sent
    connection.execute("PRAGMA foreign_keys=ON")


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Several that open a new file at once each want to be alone on it, and SQLite tells all but one of them so without the
    wait that ``timeout`` gives every other statement (it would be a deadlock)."""
    for _ in range(_BUSY_SECONDS * 50):
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
        time.sleep(0.02)  # noqa: TID251 - the store is used in threads, and here nothing tells of the end
    connection.execute("PRAGMA journal_mode=WAL")


def _begin_sqlite(connection: sa.Connection) -> None:
    # A write transaction takes the lock at once; one marked ``reading`` takes none.
    reading = connection.get_execution_options().get("reading", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


@contextmanager
def opened(url: str, clock: Callable[[], int]) -> Iterator[Store]:
    """Opens a store for the block."""
    store = Store(url, clock=clock)
    try:
        yield store
    finally:
        store.close()


def _reason(error: Exception) -> str:
    original = getattr(error, "orig", None) or error
    return " ".join(str(original).split())[:300]
