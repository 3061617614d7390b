"""``certs list`` and ``certs audit``: what the CA did, and whether its log is the one that it wrote."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from certs import standing
from certs.cli import main, records
from certs.cli.options import now
from certs.standing import Follower
from certs.store import file_url, opened
from tests.certificates import DAY, HOUR
from tests.mini_ca import API, DOMAIN, NOW, Clock


@pytest.fixture(autouse=True)
def _ca(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CA in ./ca that has done this and that."""
    monkeypatch.chdir(tmp_path)
    for name in ("CERTS_DIR", "CERTS_STORE"):
        monkeypatch.delenv(name, raising=False)
    run("init", "ca", "--trust-domain", DOMAIN)
    run("issue", "ca", "api", "--out", "api")
    run("enrolment", "ca", "web")
    run("revoke", "ca", "db")


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(main, arguments, prog_name="certs")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def alter(statement: str) -> None:
    """What somebody does who can write to the file."""
    with closing(sqlite3.connect("ca/store.db")) as database, database:
        assert database.execute(statement).rowcount > 0


def newest() -> str:
    return run("audit", "ca").stderr.strip().removeprefix("newest: ")


# -- audit -------------------------------------------------------------------------------------------------------------


def test_the_log_is_a_line_an_entry_and_its_end_goes_to_standard_error() -> None:
    result = run("audit", "ca")
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [str(number) for number in range(1, len(lines) + 1)]
    assert [line.split()[2] for line in lines] == ["init", "bundle", "issued", "secret_made", "revoked"]
    number, _, hash_ = result.stderr.strip().removeprefix("newest: ").partition(":")
    assert (number, len(hash_)) == ("5", 64)


def test_for_programs_it_is_a_json_object_a_line() -> None:
    said = [json.loads(line) for line in run("audit", "ca", "--json").stdout.splitlines()]
    assert [one["number"] for one in said] == [1, 2, 3, 4, 5]
    assert said[2]["identity"] == str(API)
    assert said[2]["detail"]["how"] == "command"
    assert run("audit", "ca", "--json").stderr == ""


def test_an_honest_log_is_as_it_was_written() -> None:
    result = run("audit", "ca", "--verify")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"5 entries, as they were written, the newest {newest()}\n"
    assert run("audit", "--verify").stdout == result.stdout, "the directory may be left out"


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("UPDATE audit_log SET identity = 'spiffe://shop.internal/web' WHERE number = 3", "entry 3 (issued"),
        ("UPDATE audit_log SET at = at + 1 WHERE number = 3", "entry 3 (issued"),
        ("UPDATE audit_log SET detail = '{}' WHERE number = 5", "entry 5 (revoked"),
        ("UPDATE audit_log SET event = 'none' WHERE number = 1", "entry 1 (none"),
        ("DELETE FROM audit_log WHERE number = 3", "entry 3 is missing: 4 follows 2"),
        ("DELETE FROM audit_log WHERE number = 1", "entry 1 is missing: 2 follows 0"),
        (
            "UPDATE audit_log SET number = CASE number WHEN 3 THEN 14 ELSE 13 END WHERE number IN (3, 4)",
            "entry 3 is missing",
        ),
    ],
)
def test_whatever_was_done_to_an_entry_is_found(statement: str, told: str) -> None:
    alter(statement)
    result = run("audit", "ca", "--verify")
    assert result.exit_code == 1
    assert result.stdout.startswith(f"TAMPERED: {told}")


def test_two_entries_in_each_other_s_place() -> None:
    alter("UPDATE audit_log SET number = -number WHERE number IN (3, 4)")
    alter("UPDATE audit_log SET number = CASE number WHEN -3 THEN 4 ELSE 3 END WHERE number < 0")
    result = run("audit", "ca", "--verify")
    assert result.exit_code == 1
    assert result.stdout.count("TAMPERED") >= 2


def test_an_end_that_was_cut_off_is_found_by_who_kept_the_newest() -> None:
    kept = newest()
    assert run("audit", "ca", "--verify", "--expect", kept).exit_code == 0
    alter("DELETE FROM audit_log WHERE number = 5")
    assert run("audit", "ca", "--verify").exit_code == 0, "the chain alone cannot tell"
    result = run("audit", "ca", "--verify", "--expect", kept)
    assert (result.exit_code, result.stdout) == (1, "TAMPERED: entry 5 is not there: the log's end was cut off\n")


def test_a_log_that_was_written_anew_is_found_by_who_kept_the_newest() -> None:
    kept = newest()
    run("revoke", "ca", "api")
    assert run("audit", "ca", "--verify", "--expect", kept).exit_code == 0, "a log that has grown is the same log"
    other = f"5:{'0' * 64}"
    result = run("audit", "ca", "--verify", "--expect", other)
    assert (result.exit_code, result.stdout) == (
        1, "TAMPERED: entry 5 has another hash: the log is not the one that was expected\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    "text", ["", "5", "5:", "5:abc", ":" + "0" * 64, "x:" + "0" * 64, "-1:" + "0" * 64, "²:" + "0" * 64]
)
def test_what_nobody_can_expect(text: str) -> None:
    result = run("audit", "ca", "--verify", "--expect", text)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--expect: write it as the audit log's last line has it, number:hash" in result.stderr


def test_expecting_without_verifying() -> None:
    result = run("audit", "ca", "--expect", newest())
    assert (result.exit_code, result.stderr) == (2, "error: --expect goes with --verify\n")


def test_a_directory_without_a_ca_has_no_log_that_could_be_whole() -> None:
    Path("empty").mkdir()
    for words in (["audit", "empty", "--verify"], ["audit", "none"], ["list", "empty"]):
        result = run(*words)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "holds no CA" in result.stderr
    assert list(Path("empty").iterdir()) == []


# -- list --------------------------------------------------------------------------------------------------------------


def listed(*options: str) -> dict[str, list[dict[str, str]]]:
    said = json.loads(run("list", "ca", "--json", *options).stdout)
    assert isinstance(said, dict)
    return said


def test_everything_is_listed_for_programs() -> None:
    said = listed()
    assert [one["identity"] for one in said["certificates"]] == [str(API)]
    assert said["certificates"][0]["how"] == "command"
    assert [one["identity"] for one in said["enrolment secrets"]] == [f"spiffe://{DOMAIN}/web"]
    assert [one["identity"] for one in said["revoked"]] == [f"spiffe://{DOMAIN}/db"]
    assert said["sidecars that ask"] == []


def test_and_for_people_in_columns() -> None:
    lines = run("list", "ca").stdout.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        "certificates: 1", "enrolment secrets: 1", "revoked: 1", "sidecars that ask: 0",
    ]  # fmt: skip
    heading, row = lines[1], lines[2]
    until = re.search(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T", row)
    assert until is not None
    assert heading.index("until") == until.start()
    assert all(line == line.rstrip() for line in lines)


def test_the_sidecars_that_ask() -> None:
    with opened(file_url(Path("ca/store.db")), clock=Clock()) as store:
        one = Follower("ab" * 16, str(API), 7, "cd" * 32, NOW + DAY, NOW)
        store.write(lambda transaction: standing.seen(transaction, one))
    (told,) = listed()["sidecars that ask"]
    assert told == {
        "identity": str(API),
        "instance": "ab" * 6,
        "bundle": 7,
        "root": "cd" * 8,
        "certificate until": f"{NOW + DAY:%FT%TZ}",
        "seen": f"{NOW:%FT%TZ}",
    }


def test_what_has_ended_only_if_all_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "now", lambda: now() + 2 * HOUR)
    assert listed()["certificates"] == []
    assert len(listed("--all")["certificates"]) == 1


def test_a_secret_that_was_ended_is_listed_no_more() -> None:
    run("enrolment", "ca", "web", "--end")
    assert listed("--all")["enrolment secrets"] == []
