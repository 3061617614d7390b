"""The store on a SQLite file: nothing half-written, one after the other, its file its owner's alone, its schema known."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from certs.store import audit, store
from certs.store.migrations import MIGRATIONS
from certs.store.store import (
    Store,
    StoreUnavailableError,
    Transaction,
    audit_entries,
    enrolment_credentials,
    file_url,
    issued,
    meta,
    opened,
)
from sidecar.identity.reasons import UsageError
from tests.beds.clock import Clock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def kept(path: Path) -> Iterator[Store]:
    with opened(file_url(path), clock=Clock().seconds) as each:
        yield each


def put(key: str, value: str = "x") -> store.Operation[str]:
    """An operation that writes, and tells the audit log."""

    def operation(transaction: Transaction) -> str:
        transaction.put(key, value)
        transaction.record("put", "", key=key)
        return key

    return operation


def failing(key: str, error: Exception) -> store.Operation[str]:
    """One that writes, tells, and then fails."""

    def operation(transaction: Transaction) -> str:
        put(key)(transaction)
        raise error

    return operation


def keys(kept: Store) -> set[str]:
    """What is in the store, but for what it keeps of itself."""
    own = {"schema_version", "audit_head"}
    return kept.read(lambda connection: set(connection.execute(sa.select(meta.c.key)).scalars())) - own


def told(kept: Store) -> list[str]:
    """The audit log's details; the chain must be whole, and the head be its end."""
    entries = kept.read(lambda connection: list(audit_entries(connection)))
    assert list(audit.faults(entries)) == []
    head = kept.write(lambda transaction: transaction.get("audit_head"))
    end = f"{entries[-1].number} {entries[-1].hash}" if entries else f"0 {audit.START}"
    assert head == end
    return [entry.detail for entry in entries]


# -- writing -----------------------------------------------------------------------------------------------------------


def test_what_was_written_is_there_and_told(kept: Store, path: Path) -> None:
    assert kept.write(put("a")) == "a"
    assert keys(kept) == {"a"}
    assert told(kept) == ['{"key":"a"}']
    with opened(file_url(path), clock=Clock().seconds) as another:
        assert keys(another) == {"a"}, "for everybody"
        another.write(put("b"))
    assert told(kept) == ['{"key":"a"}', '{"key":"b"}'], "one chain, whoever writes"


def test_a_value_is_replaced(kept: Store) -> None:
    kept.write(put("a", "1"))
    kept.write(put("a", "2"))
    assert kept.write(lambda transaction: (transaction.get("a"), transaction.get("none"))) == ("2", None)


def test_an_operation_that_fails_leaves_nothing_and_its_error_is_the_caller_s(kept: Store) -> None:
    kept.write(put("a"))
    with pytest.raises(LookupError, match="my own"):
        kept.write(failing("b", LookupError("my own")))
    assert keys(kept) == {"a"}
    assert told(kept) == ['{"key":"a"}']


def test_of_many_one_that_fails_undoes_itself_alone_and_its_audit_entry(kept: Store) -> None:
    error = ValueError("no")
    outcomes = kept.write_many([put("a"), failing("b", error), put("c"), failing("d", error), put("e")])
    assert outcomes == ["a", error, "c", error, "e"]
    assert keys(kept) == {"a", "c", "e"}
    assert told(kept) == ['{"key":"a"}', '{"key":"c"}', '{"key":"e"}']


def test_a_later_one_sees_what_the_earlier_ones_did(kept: Store) -> None:
    outcomes = kept.write_many([put("a", "1"), lambda transaction: transaction.get("a")])
    assert outcomes == ["a", "1"]


def test_a_broken_rule_of_the_tables_is_the_operation_s_fault_alone(kept: Store) -> None:
    def twice(transaction: Transaction) -> None:
        transaction.connection.execute(meta.insert(), [{"key": "x", "value": "1"}, {"key": "x", "value": "2"}])

    outcomes = kept.write_many([put("a"), twice, put("b")])
    assert isinstance(outcomes[1], sa.exc.IntegrityError)
    assert keys(kept) == {"a", "b"}


def test_if_the_store_fails_in_one_none_of_them_counts(kept: Store) -> None:
    def gone(transaction: Transaction) -> None:
        raise sa.exc.OperationalError("COMMIT", {}, Exception("disk I/O error"))

    with pytest.raises(StoreUnavailableError, match="disk I/O error"):
        kept.write_many([put("a"), gone, put("b")])
    assert keys(kept) == set()
    assert told(kept) == []
    kept.write(put("a"))
    assert keys(kept) == {"a"}


def test_nothing_to_do_is_done(kept: Store) -> None:
    assert kept.write_many([]) == []


def test_what_ends_the_process_is_not_taken_for_an_outcome(kept: Store) -> None:
    class Killed(BaseException):
        pass

    def die(transaction: Transaction) -> None:
        put("b")(transaction)
        raise Killed

    with pytest.raises(Killed):
        kept.write_many([put("a"), die])
    assert keys(kept) == set()
    kept.write(put("a"))
    assert told(kept) == ['{"key":"a"}']


def test_time_is_the_clock_s(path: Path) -> None:
    clock = Clock()
    with opened(file_url(path), clock=clock.seconds) as kept:
        first = kept.write(lambda transaction: transaction.now)
        clock.pass_by(hours=2)
        assert kept.write(lambda transaction: transaction.now) - first == 7200
        kept.write(put("a"))
        assert kept.read(lambda connection: [entry.at for entry in audit_entries(connection)]) == [first + 7200]


def test_writers_come_one_after_the_other_and_each_sees_the_one_before(path: Path) -> None:
    """Two stores on one file, as two processes have; eight threads; none is lost."""
    stores = [Store(file_url(path), clock=Clock().seconds) for _ in range(2)]

    def count(transaction: Transaction) -> None:
        transaction.put("count", str(int(transaction.get("count") or 0) + 1))
        transaction.record("count", "")

    def work(which: Store) -> None:
        for _ in range(25):
            which.write(count)

    threads = [threading.Thread(target=work, args=(stores[number % 2],)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert stores[0].write(lambda transaction: transaction.get("count")) == "200"
    assert len(told(stores[1])) == 200
    for each in stores:
        each.close()


def test_a_reader_waits_for_no_writer_and_sees_nothing_unfinished(kept: Store) -> None:
    kept.write(put("a"))
    seen: list[set[str]] = []

    def write_and_look(transaction: Transaction) -> None:
        put("b")(transaction)
        seen.append(keys(kept))

    kept.write(write_and_look)
    assert seen == [{"a"}]
    assert keys(kept) == {"a", "b"}


def test_it_is_durable_before_a_write_returns(kept: Store) -> None:
    def pragmas(connection: sa.Connection) -> tuple[Any, Any]:
        return tuple(connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous"))  # type: ignore[return-value]

    assert kept.read(pragmas) == ("wal", 2)


# -- a full disk -------------------------------------------------------------------------------------------------------


def fill(kept: Store, limit: int | None) -> None:
    """The file may not grow over what it has and ``limit`` pages more; None: as it likes. For the connections there are."""

    def set_limit(connection: sa.Connection) -> None:
        count = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        most = 1 << 30 if limit is None else count + limit
        connection.exec_driver_sql(f"PRAGMA max_page_count={most}")

    kept.read(set_limit)


def test_a_full_disk_is_said_and_nothing_is_half_written_and_it_works_again_when_there_is_room(kept: Store) -> None:
    kept.write(put("before"))
    fill(kept, 2)
    with pytest.raises(StoreUnavailableError, match="cannot be written: database or disk is full"):
        kept.write_many([put("small"), put("large", "x" * 1_000_000), put("after")])
    assert keys(kept) == {"before"}
    assert told(kept) == ['{"key":"before"}']
    fill(kept, 2)
    with pytest.raises(StoreUnavailableError, match="full"):
        kept.write(put("large", "x" * 1_000_000))
    assert keys(kept) == {"before"}, "it can be read all the while"
    fill(kept, None)
    assert kept.write_many([put("small"), put("large", "x" * 1_000_000)]) == ["small", "large"]
    assert keys(kept) == {"before", "small", "large"}
    assert len(told(kept)) == 3


def test_it_fills_up_by_many_small_writes_and_all_that_were_answered_are_there(kept: Store) -> None:
    fill(kept, 8)
    answered: list[str] = []
    for number in range(10_000):
        try:
            answered.append(kept.write(put(f"key {number}", "x" * 500)))
        except StoreUnavailableError:
            break
    assert 0 < len(answered) < 10_000
    assert keys(kept) == set(answered)
    assert len(told_on_full(kept)) == len(answered)


def told_on_full(kept: Store) -> list[str]:
    entries = kept.read(lambda connection: list(audit_entries(connection)))
    assert list(audit.faults(entries)) == []
    return [entry.detail for entry in entries]


def test_a_writer_that_another_keeps_waiting_gives_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_BUSY_SECONDS", 0)
    with opened(file_url(path), clock=Clock().seconds) as kept:
        hog = sqlite3.connect(path, isolation_level=None)
        hog.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailableError, match="locked"):
            kept.write(put("a"))
        assert keys(kept) == set(), "a reader does not mind"
        hog.execute("ROLLBACK")
        hog.close()
        kept.write(put("a"))
        assert keys(kept) == {"a"}


def test_a_question_that_cannot_be_answered(kept: Store) -> None:
    with pytest.raises(StoreUnavailableError, match="cannot be read: no such table"):
        kept.read(lambda connection: connection.exec_driver_sql("SELECT * FROM none_such"))


@pytest.mark.parametrize("closing", [True, False])
@pytest.mark.parametrize("how", ["write", "read"])
def test_what_is_used_while_the_store_is_closed_is_closed_when_it_is_given_back(
    path: Path, how: str, closing: bool
) -> None:
    """As by a thread that nobody waits for any longer. Python 3.13 and later warn of a connection that nobody closes."""
    kept = Store(file_url(path), clock=Clock().seconds)
    used: list[Any] = []

    def use(connection: sa.Connection) -> None:
        used.append(connection.connection.dbapi_connection)
        if closing:
            kept.close()
        connection.exec_driver_sql("SELECT 1")

    kept.read(use) if how == "read" else kept.write(lambda transaction: use(transaction.connection))
    if closing:
        with pytest.raises(sqlite3.ProgrammingError, match="closed database"):
            used[0].execute("SELECT 1")
    else:
        assert used[0].execute("SELECT 1").fetchone() == (1,), "it is there for the next"
        kept.close()


# -- its file ----------------------------------------------------------------------------------------------------------


def test_its_files_are_their_owner_s_alone(kept: Store, path: Path) -> None:
    kept.write(put("a"))
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    assert modes == {"store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600}


def test_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with opened(file_url(tmp_path / "open.db"), clock=Clock().seconds) as kept:
            kept.write(put("a"))
            assert {stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()} == {0o600}
    finally:
        os.umask(before)


def refusal(url: str) -> str:
    with pytest.raises(UsageError) as refused:
        Store(url, clock=Clock().seconds)
    return str(refused.value)


def test_opened_twice_in_one_process_it_stays_whole_beside_other_processes(kept: Store, path: Path) -> None:
    """To close any descriptor of the file takes away a process's locks on it; another process that ends would then take
    itself for the last one, and remove the log that this one writes to."""
    kept.write(put("before"))
    with opened(file_url(path), clock=Clock().seconds):
        pass
    script = (
        "from certs.store.store import opened\n"
        f"with opened({file_url(path)!r}, lambda: 0) as other: other.write(lambda transaction: transaction.put('k', ''))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[4], timeout=30)
    assert path.with_name("store.db-wal").exists(), "it is this process's still"
    kept.write(put("after"))
    assert keys(kept) == {"before", "k", "after"}
    with opened(file_url(path), clock=Clock().seconds) as other:
        assert keys(other) == {"before", "k", "after"}


def test_a_symlink_in_its_place_is_refused(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    path.symlink_to(target)
    assert refusal(file_url(path)).startswith(f"cannot open the store {path}: ")
    assert not target.exists()
    # Nor to a store that is there, which could be opened: whoever may write the link would choose the store.
    with opened(file_url(target), clock=Clock().seconds):
        pass
    assert "a symlink is not followed" in refusal(file_url(path))


@pytest.mark.parametrize("mode", [0o660, 0o602, 0o666])
def test_one_that_others_may_write_to_is_refused(path: Path, mode: int) -> None:
    with opened(file_url(path), clock=Clock().seconds):
        pass
    path.chmod(mode)
    assert "others may write to it: chmod 600" in refusal(file_url(path))
    path.chmod(0o644)
    with opened(file_url(path), clock=Clock().seconds):
        pass


def test_one_of_another_user_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(file_url(path), clock=Clock().seconds):
        pass
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert "if it is another user's, run this as that user" in refusal(file_url(path))


def test_what_is_no_store(path: Path, tmp_path: Path) -> None:
    path.write_bytes(b"this is no database" * 100)
    assert "file is not a database" in refusal(file_url(path))
    assert "cannot open the store" in refusal(file_url(tmp_path))
    assert "cannot open the store" in refusal(file_url(tmp_path / "none" / "store.db"))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://host:port/database", "the store's URL cannot be read"),
        ("junk", "the store's URL cannot be read: write it as postgresql://"),
        ("sqlite://", "cannot open the store"),
        ("mysql://user@host/database", "mysql is not supported"),
    ],
)
def test_what_is_no_store_s_url(url: str, words: str) -> None:
    assert words in refusal(url)


def test_a_password_in_a_url_is_told_to_nobody() -> None:
    told_ = refusal("postgresql://user:secret@127.0.0.1:1/database?connect_timeout=1")
    assert told_.startswith("cannot open the store postgresql://user:***@127.0.0.1:1/")
    assert "secret" not in told_


# -- its schema --------------------------------------------------------------------------------------------------------


def version(kept: Store) -> str | None:
    return kept.write(lambda transaction: transaction.get("schema_version"))


def test_a_new_store_has_this_program_s_schema(kept: Store) -> None:
    assert version(kept) == str(store.SCHEMA_VERSION) == str(len(MIGRATIONS))


def test_a_newer_program_s_store_is_refused_in_a_sentence_and_left_alone(path: Path) -> None:
    with opened(file_url(path), clock=Clock().seconds) as kept:
        kept.write(put("a"))
        kept.write(lambda transaction: transaction.put("schema_version", "7"))
    said = refusal(file_url(path))
    assert f"was made by a newer version (schema 7; this one supports up to {store.SCHEMA_VERSION})" in said
    assert "update this program" in said
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone() == ("7",)
    database.close()


def next_migration(connection: sa.Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE passes ADD COLUMN note TEXT")


def test_an_older_store_is_brought_up_to_date_with_all_that_is_in_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(file_url(path), clock=Clock().seconds) as kept:
        kept.write(put("a"))
    monkeypatch.setattr(store, "MIGRATIONS", (*MIGRATIONS, next_migration))
    monkeypatch.setattr(store, "SCHEMA_VERSION", len(MIGRATIONS) + 1)
    with opened(file_url(path), clock=Clock().seconds) as kept:
        assert version(kept) == str(len(MIGRATIONS) + 1)
        assert keys(kept) == {"a"}
        kept.write(put("b"))
        assert len(told(kept)) == 2, "the audit log goes on"
        columns = kept.read(lambda connection: sa.inspect(connection).get_columns("passes"))
        assert "note" in {column["name"] for column in columns}
    with opened(file_url(path), clock=Clock().seconds) as kept:
        assert version(kept) == str(len(MIGRATIONS) + 1), "and it is done once"


def test_a_new_store_goes_through_all_of_them(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MIGRATIONS", (*MIGRATIONS, next_migration))
    monkeypatch.setattr(store, "SCHEMA_VERSION", len(MIGRATIONS) + 1)
    with opened(file_url(path), clock=Clock().seconds) as kept:
        assert version(kept) == str(len(MIGRATIONS) + 1)
        assert told(kept) == []


def test_a_migration_that_fails_leaves_the_store_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(connection: sa.Connection) -> None:
        next_migration(connection)
        connection.exec_driver_sql("ALTER TABLE none_such ADD COLUMN note TEXT")

    with opened(file_url(path), clock=Clock().seconds) as kept:
        kept.write(put("a"))
    with monkeypatch.context() as patch:
        patch.setattr(store, "MIGRATIONS", (*MIGRATIONS, broken))
        patch.setattr(store, "SCHEMA_VERSION", len(MIGRATIONS) + 1)
        assert "no such table: none_such" in refusal(file_url(path))
    with opened(file_url(path), clock=Clock().seconds) as kept:
        assert version(kept) == str(len(MIGRATIONS))
        columns = kept.read(lambda connection: sa.inspect(connection).get_columns("passes"))
        assert {column["name"] for column in columns} == set(enrolment_credentials.c.keys())


def test_two_that_open_a_new_store_at_once(path: Path) -> None:
    outcomes: list[object] = []
    barrier = threading.Barrier(4)

    def start() -> None:
        barrier.wait(10)
        try:
            with opened(file_url(path), clock=Clock().seconds) as kept:
                outcomes.append(kept.write(put(threading.current_thread().name)))
        except Exception as error:
            outcomes.append(error)

    threads = [threading.Thread(target=start, name=f"t{number}") for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(map(str, outcomes)) == ["t0", "t1", "t2", "t3"]
    with opened(file_url(path), clock=Clock().seconds) as kept:
        assert len(told(kept)) == 4


class Contended:
    """A connection to a new file on which somebody else is about to write: SQLite says so at once, and waits for nobody."""

    isolation_level: str | None = ""

    def __init__(self, refusals: float, code: int = sqlite3.SQLITE_BUSY) -> None:
        self.refusals = refusals
        self.code = code
        self.said: list[str] = []

    def execute(self, statement: str) -> None:
        self.said.append(statement)
        if "journal_mode" in statement and len(self.said) <= self.refusals:
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = self.code
            raise error


def test_a_new_store_that_another_is_about_to_write_is_waited_for() -> None:
    contended: Any = Contended(2)
    store._set_up_sqlite(contended, None)
    assert contended.said[:3] == ["PRAGMA journal_mode=WAL"] * 3


def test_it_is_waited_for_no_longer_than_for_any_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: waits.append(seconds))
    waits: list[float] = []
    contended: Any = Contended(float("inf"))
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        store._set_up_sqlite(contended, None)
    assert sum(waits) == pytest.approx(10)


def test_another_fault_is_not_waited_for() -> None:
    broken: Any = Contended(float("inf"), sqlite3.SQLITE_IOERR)
    with pytest.raises(sqlite3.OperationalError):
        store._set_up_sqlite(broken, None)
    assert broken.said == ["PRAGMA journal_mode=WAL"]


def test_a_key_is_certified_once_by_the_table_itself(kept: Store) -> None:
    def insert(sha256: str) -> store.Operation[Any]:
        row = dict.fromkeys(("key_hash", "serial", "identity", "how", "certificate"), "x")
        return lambda transaction: transaction.connection.execute(
            issued.insert().values(sha256=sha256, issued_at=0, not_after=0, **row)
        )

    kept.write(insert("one"))
    with pytest.raises(sa.exc.IntegrityError):
        kept.write(insert("two"))


@pytest.mark.parametrize(
    ("url", "holds"),
    [
        ("postgresql://ca:s3cret@host/ca", True),
        ("postgresql://ca@host/ca?password=s3cret", True),
        ("postgresql://ca@host/ca?sslmode=verify-full&sslpassword=s3cret", True),
        ("postgresql://ca@host/ca?sslmode=verify-full", False),
        ("postgresql://ca@host/ca", False),
        ("sqlite:///store.db", False),
    ],
)
def test_a_password_is_found_wherever_a_url_may_have_one(url: str, *, holds: bool) -> None:
    assert store.holds_password(url) is holds
