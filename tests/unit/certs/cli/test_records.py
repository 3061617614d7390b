"""``certs list`` and ``certs audit``: what is told of what the CA did, and that nobody changes it unnoticed."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from certs.cli import options
from certs.registrar import followers
from tests.commands import ran, refused, run, spawn

HASH = "0" * 64
WEB, API = "spiffe://shop.internal/web", "spiffe://shop.internal/api"


@pytest.fixture(autouse=True)
def _with_a_ca_that_did_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran("init", "ca", "--trust-domain", "shop.internal")
    ran("issue", "ca", "web", "--out", "web")
    ran("enrolment", "ca", "api", "--out", "api.secret")
    ran("revoke", "ca", "db")


@contextmanager
def tampering() -> Iterator[sqlite3.Connection]:
    """The store's file, in the hands of somebody else."""
    connection = sqlite3.connect("ca/store.db")
    with connection:
        yield connection
    connection.close()


def newest() -> str:
    """What the log's last line says is to be kept elsewhere."""
    line = run("audit", "ca").stderr
    assert line.startswith("newest: ")
    return line.removeprefix("newest: ").strip()


# -- certs list --------------------------------------------------------------------------------------------------------


def test_a_row_that_was_tampered_with_drives_no_terminal_and_forges_no_line() -> None:
    before = ran("list", "ca").count("\n")
    with tampering() as connection:
        connection.execute("UPDATE issued SET identity = ?", ("\x1b[2J\n\u202egood",))
    text = ran("list", "ca")
    assert all(line.isprintable() for line in text.split("\n"))
    assert text.count("\n") == before
    assert r"\x1b[2J\n\u202egood" in text


def listed(*options: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = json.loads(ran("list", "ca", "--json", *options))
    return found


def test_the_list_has_what_was_issued_what_lets_enrol_and_what_is_revoked() -> None:
    found = listed()
    assert list(found) == ["certificates", "enrolment secrets", "revoked", "sidecars that ask"]
    certificate, secret, revoked = (found[key][0] for key in list(found)[:3])
    assert (certificate["identity"], certificate["how"]) == (WEB, "command")
    until = datetime.fromisoformat(certificate["until"])
    assert timedelta(minutes=55) < until - datetime.now(UTC) <= timedelta(hours=1)
    assert certificate["serial"] in ran("inspect", "web/certificate.pem").replace(":", "").lower()
    assert secret["identity"] == API
    assert revoked["identity"] == "spiffe://shop.internal/db"
    assert found["sidecars that ask"] == []
    assert "mesh-secret" not in json.dumps(found)


def test_a_sidecar_that_asks_is_listed_with_what_it_has() -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    alive = followers.Follower("1" * 32, WEB, 7, "ab" * 32, now + timedelta(minutes=9), now)
    over = followers.Follower("2" * 32, WEB, 7, "ab" * 32, now - timedelta(minutes=9), now)
    with options.open_store(Path("ca"), None) as store:
        for follower in (alive, over):
            store.write(lambda transaction, one=follower: followers.save(transaction, one))  # type: ignore[misc]
    assert listed()["sidecars that ask"] == [
        {
            "identity": WEB, "instance": "1" * 12, "bundle": 7, "root": "ab" * 8,
            "certificate until": f"{now + timedelta(minutes=9):%FT%TZ}", "seen": f"{now:%FT%TZ}",
        }
    ]  # fmt: skip


def test_what_has_ended_is_listed_when_all_is_asked_for() -> None:
    with tampering() as store:
        store.execute("UPDATE issued SET not_after = 1700000000")
    assert listed()["certificates"] == []
    (ended,) = listed("--all")["certificates"]
    assert (ended["identity"], ended["until"]) == (WEB, "2023-11-14T22:13:20Z")


def test_a_token_and_an_ended_secret_are_no_enrolment_secrets() -> None:
    run("token", "ca", "web")
    assert [row["identity"] for row in listed()["enrolment secrets"]] == [API]
    run("enrolment", "ca", "api", "--end")
    assert listed()["enrolment secrets"] == []


def test_people_read_a_table() -> None:
    lines = ran("list", "ca").splitlines()
    assert lines[0] == "certificates: 1"
    assert lines[1].split() == ["identity", "until", "how", "serial"]
    assert lines[2].split()[0] == WEB
    assert lines[1].index("until") == lines[2].index("20")
    assert lines[-1] == "sidecars that ask: 0"
    assert all(line == line.rstrip() for line in lines)


# -- certs audit -------------------------------------------------------------------------------------------------------


def test_the_log_has_a_line_for_each_thing_that_was_done() -> None:
    printed = run("audit", "ca")
    words = [line.split(" ", 4) for line in printed.stdout.splitlines()]
    assert [(number, event, identity) for number, _, event, identity, _ in words] == [
        ("1", "init", ""),
        ("2", "bundle", ""),
        ("3", "issued", WEB),
        ("4", "secret_made", API),
        ("5", "revoked", "spiffe://shop.internal/db"),
    ]
    assert printed.stderr.startswith("newest: 5:")


def test_programs_read_a_json_object_a_line() -> None:
    printed = run("audit", "ca", "--json")
    entries = [json.loads(line) for line in printed.stdout.splitlines()]
    assert [entry["number"] for entry in entries] == [1, 2, 3, 4, 5]
    assert set(entries[2]) == {"number", "at", "event", "identity", "detail", "hash"}
    assert entries[2]["detail"]["how"] == "command"
    assert printed.stderr == ""


def test_a_log_as_it_was_written_is_told_so_with_what_to_expect_of_it() -> None:
    kept = newest()
    assert ran("audit", "ca", "--verify") == f"5 entries, as they were written, the newest {kept}\n"
    assert ran("audit", "ca", "--verify", "--expect", kept).startswith("5 entries")
    run("token", "ca", "web")  # what comes after changes nothing of what was
    assert ran("audit", "ca", "--verify", "--expect", kept).startswith("6 entries")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("UPDATE audit_log SET identity = 'spiffe://shop.internal/api' WHERE number = 3", "entry 3 (issued spiffe"),
        ("UPDATE audit_log SET at = at - 60 WHERE number = 3", "entry 3 (issued"),
        ("UPDATE audit_log SET detail = '{}' WHERE number = 3", "entry 3 (issued"),
        ("UPDATE audit_log SET event = 'bundle' WHERE number = 3", "entry 3 (bundle"),
        ("UPDATE audit_log SET hash = '00' WHERE number = 3", "entry 3 (issued"),
        ("DELETE FROM audit_log WHERE number = 3", "entry 3 is missing: 4 follows 2"),
        ("DELETE FROM audit_log WHERE number = 1", "entry 1 is missing: 2 follows 0"),
        ("UPDATE audit_log SET number = 9 WHERE number = 5", "entry 5 is missing: 9 follows 4"),
    ],
)
def test_a_log_that_was_tampered_with_is_told_so_with_exit_code_1(change: str, fault: str) -> None:
    kept = newest()
    with tampering() as store:
        store.execute(change)
    for options_ in ([], ["--expect", kept]):
        told = run("audit", "ca", "--verify", *options_)
        assert told.exit_code == 1
        assert told.stdout.startswith(f"TAMPERED: {fault}")
        assert "as they were written" not in told.stdout


def test_an_end_that_was_cut_off_is_told_by_what_was_kept_elsewhere() -> None:
    kept = newest()
    with tampering() as store:
        store.execute("DELETE FROM audit_log WHERE number = 5")
    told = run("audit", "ca", "--verify", "--expect", kept)
    assert told.exit_code == 1
    assert told.stdout.splitlines()[-1] == "TAMPERED: entry 5 is not there: the log's end was cut off"


def test_an_end_that_was_cut_off_clumsily_is_told_by_the_store_itself() -> None:
    """Whoever can write to the store can write there too: what was kept elsewhere is the proof, this is only attentive."""
    with tampering() as store:
        store.execute("DELETE FROM audit_log WHERE number = 5")
    told = run("audit", "ca", "--verify")
    assert told.exit_code == 1
    assert told.stdout == "TAMPERED: the log does not end at the entry that the store names as the newest: 5\n"


@pytest.mark.parametrize("value", ["yesterday", 1e300, -(2**63), b"\0\xff"])
@pytest.mark.parametrize("column", ["at", "identity", "detail", "hash"])
def test_a_value_that_is_none_is_shown_as_it_is(column: str, value: object) -> None:
    """SQLite keeps anything in any column."""
    with tampering() as store:
        store.execute(f"UPDATE audit_log SET {column} = ? WHERE number = 3", (value,))  # noqa: S608  # a test's
    for options_ in ([], ["--json"]):
        printed = run("audit", "ca", *options_)
        assert (printed.exit_code, len(printed.stdout.splitlines())) == (0, 5)
    assert "entry 3 (issued" in run("audit", "ca", "--verify").stdout


def test_a_log_that_was_written_anew_is_told_by_what_was_kept_elsewhere() -> None:
    kept = newest()
    ran("init", "ca", "--trust-domain", "shop.internal", "--force")
    for service in ("x", "y", "z"):
        run("token", "ca", service)
    assert run("audit", "ca", "--verify").exit_code == 0
    told = run("audit", "ca", "--verify", "--expect", kept)
    assert told.exit_code == 1
    assert "entry 5 has another hash: the log is not the one that was expected" in told.stdout


def test_a_tampered_log_writes_nothing_of_its_own_to_the_terminal() -> None:
    with tampering() as store:
        store.execute(
            "UPDATE audit_log SET identity = ?, detail = ? WHERE number = 3", ("\x1b[2Jall good", "no JSON\x9b")
        )
    for options_ in ([], ["--json"], ["--verify"]):
        printed = spawn("audit", "ca", *options_)
        assert printed.returncode == (1 if options_ == ["--verify"] else 0), printed.stderr
        assert b"all good" in printed.stdout
        assert b"\x1b" not in printed.stdout
        assert printed.stdout.isascii()


@pytest.mark.parametrize(
    "expected",
    [
        "", "5", "5:", f":{HASH}", f"5:{HASH[1:]}", f"5:{HASH}0", f"5:g{HASH[1:]}", f"-5:{HASH}", f"²:{HASH}",
        f"{'9' * 5000}:{HASH}",
    ],
)  # fmt: skip
def test_an_expectation_that_cannot_be_read_is_a_mistake_and_not_an_answer(expected: str) -> None:
    assert "--expect: write it as number:hash" in refused("audit", "ca", "--verify", "--expect", expected)


def test_an_expectation_without_the_question_is_a_mistake() -> None:
    assert "--expect goes with --verify" in refused("audit", "ca", "--expect", newest())


def test_in_a_process_of_its_own() -> None:
    kept = newest()
    assert spawn("audit", "ca", "--verify", "--expect", kept).returncode == 0
    with tampering() as store:
        store.execute("UPDATE audit_log SET identity = '' WHERE number = 5")
    told = spawn("audit", "ca", "--verify", "--expect", kept)
    assert (told.returncode, told.stderr) == (1, b"")
    assert told.stdout.startswith(b"TAMPERED: entry 5 (revoked )")
