"""``certs token``, ``enrolment``, ``revoke``: what they make, what they end, and what they leave when they cannot."""

from __future__ import annotations

import json
import sqlite3
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509 import load_pem_x509_certificate

from certs.cli import access, ca, options
from certs.protocol import enrolment
from sidecar.identity.keys import certificate_digest
from tests.commands import everything, ran, refused, run

WEB = "spiffe://shop.internal/web"


@pytest.fixture(autouse=True)
def _with_a_ca(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran("init", "ca", "--trust-domain", "shop.internal")


def kept(columns: str) -> list[tuple[Any, ...]]:
    """What the store keeps of enrolment credentials."""
    with sqlite3.connect("ca/store.db") as connection:
        rows = connection.execute(f"SELECT {columns} FROM passes ORDER BY kind, made_at").fetchall()  # noqa: S608
    connection.close()
    return rows


def audited() -> list[tuple[str, str, dict[str, Any]]]:
    """What the audit log has since ``init``."""
    entries = [json.loads(line) for line in ran("audit", "ca", "--json").splitlines()]
    return [(entry["event"], entry["identity"], entry["detail"]) for entry in entries[2:]]


def break_store() -> None:
    """A store that opens, and in which no pass can be remembered."""
    with sqlite3.connect("ca/store.db") as connection:
        connection.execute("DROP TABLE passes")
    connection.close()


# -- tokens and secrets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("command", "kind"), [("token", "token"), ("enrolment", "secret")])
def test_a_pass_is_printed_alone_for_this_root_and_kept_as_a_hash(command: str, kind: str) -> None:
    made = run(command, "ca", "web")
    assert made.exit_code == 0
    (text,) = made.stdout.splitlines()
    shown = enrolment.parse(text)
    assert shown.kind == kind
    assert shown.root == certificate_digest(load_pem_x509_certificate(Path("ca/root.pem").read_bytes()))
    assert kept("hash, kind, identity, used_by, ended_at") == [(enrolment.stored(shown), kind, WEB, None, None)]
    assert audited() == [(f"{kind}_made", WEB, {})]
    assert shown.secret not in made.stderr
    assert shown.secret.encode() not in b"".join(path.read_bytes() for path in Path("ca").glob("store.db*"))


def test_a_token_is_good_for_five_minutes_and_a_secret_until_it_is_ended() -> None:
    run("token", "ca", "web")
    run("enrolment", "ca", "web")
    (_, secret_expires), (made, token_expires) = kept("made_at, expires_at")
    assert secret_expires is None
    assert token_expires - made == 300


@pytest.mark.parametrize("command", ["token", "enrolment"])
def test_a_pass_in_a_file_is_its_owner_s_alone_and_printed_nowhere(command: str) -> None:
    made = run(command, "ca", "web", "--out", "pass")
    assert made.exit_code == 0
    assert made.stdout == ""
    assert stat.S_IMODE(Path("pass").stat().st_mode) == 0o600
    shown = enrolment.parse(Path("pass").read_text().rstrip("\n"))
    assert shown.secret not in made.output
    assert kept("hash") == [(enrolment.stored(shown),)]


@pytest.mark.parametrize("command", ["token", "enrolment"])
def test_a_file_that_is_there_is_replaced_by_force_alone(command: str) -> None:
    Path("pass").write_text("precious")
    assert "already there: pass; nothing was written" in refused(command, "ca", "web", "--out", "pass")
    assert Path("pass").read_text() == "precious"
    assert kept("hash") == []

    assert run(command, "ca", "web", "--out", "pass", "--force").exit_code == 0
    assert enrolment.parse(Path("pass").read_text().strip())
    assert len(kept("hash")) == 1


def test_a_symlink_is_not_followed_even_by_force() -> None:
    Path("precious").write_text("precious")
    Path("pass").symlink_to("precious")
    assert "is not overwritten" in refused("token", "ca", "web", "--out", "pass", "--force")
    assert Path("precious").read_text() == "precious"
    assert kept("hash") == []


def test_a_directory_that_anybody_may_write_to_gets_no_secret() -> None:
    Path("public").mkdir()
    Path("public").chmod(0o777)
    assert "every user may write" in refused("token", "ca", "web", "--out", "public/pass")
    Path("public").chmod(0o755)
    assert run("token", "ca", "web", "--out", "public/pass").exit_code == 0


def test_a_store_that_cannot_remember_leaves_no_file_of_a_pass_that_opens_nothing() -> None:
    break_store()
    assert "cannot be written" in refused("token", "ca", "web", "--out", "pass")
    assert "cannot be written" in refused("token", "ca", "web")
    assert not Path("pass").exists()


def test_a_store_that_cannot_be_opened_leaves_the_old_file_even_by_force() -> None:
    Path("pass").write_text("precious")
    gone = "postgresql://ca@127.0.0.1:1/mesh"
    assert "cannot open the store" in refused("token", "ca", "web", "--out", "pass", "--force", "--store", gone)
    assert Path("pass").read_text() == "precious"


@pytest.mark.parametrize(
    ("service", "why"),
    [
        ("mesh/ca", "spiffe://shop.internal/mesh/ca is not the identity of a service, and only services enrol"),
        ("batch/nightly", "is not the identity of a service"),
        ("../web", "'../web' cannot be a service's name"),
        ("", "'' cannot be a service's name"),
        ("we\x1bb", r"'we\x1bb' cannot be a service's name"),
    ],
)
@pytest.mark.parametrize("command", ["token", "enrolment"])
def test_what_is_no_service_gets_no_pass(command: str, service: str, why: str) -> None:
    assert why in refused(command, "ca", service, "--out", "pass")
    assert not Path("pass").exists()
    assert kept("hash") == []


def test_secrets_of_several_in_a_directory() -> None:
    Path("secrets").mkdir(mode=0o700)
    made = run("enrolment", "ca", "web", "api", "--out-dir", "secrets")
    assert (made.exit_code, made.stdout) == (0, "")
    files = {service: Path("secrets", service, "secret") for service in ("web", "api")}
    for file in files.values():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    hashes = {enrolment.stored(enrolment.parse(file.read_text().strip())): name for name, file in files.items()}
    assert {(hashes[kept_hash], identity) for kept_hash, identity in kept("hash, identity")} == {
        ("web", WEB),
        ("api", "spiffe://shop.internal/api"),
    }


def test_one_wrong_name_among_several_and_nothing_is_made() -> None:
    Path("secrets").mkdir(mode=0o700)
    assert "cannot be a service's name" in refused("enrolment", "ca", "web", "../api", "--out-dir", "secrets")
    assert list(Path("secrets").iterdir()) == []
    assert kept("hash") == []


@pytest.mark.parametrize(
    "words", [("web",), ("ca", "web", "--end"), ("ca", "web", "--out", "x"), ()], ids=["no CA", "end", "out", "nobody"]
)
def test_how_several_are_asked_for(words: tuple[str, ...]) -> None:
    made = run("enrolment", *words, "--out-dir", ".")
    assert made.exit_code == 2
    assert kept("hash") == []


# -- ending secrets ----------------------------------------------------------------------------------------------------


def test_ending_secrets_ends_this_service_s_secrets_and_nothing_else() -> None:
    for command in ("enrolment", "enrolment", "token"):
        run(command, "ca", "web")
    run("enrolment", "ca", "api")
    assert ran("enrolment", "ca", "web", "--end") == "ended 2 of web\n"
    good = kept("kind, identity, ended_at IS NULL")
    assert sorted(good) == [
        ("secret", "spiffe://shop.internal/api", 1),
        ("secret", WEB, 0),
        ("secret", WEB, 0),
        ("token", WEB, 1),
    ]
    assert audited()[-1] == ("secrets_ended", WEB, {"number": 2})


def test_ending_what_is_not_there_says_so_and_is_no_event() -> None:
    assert ran("enrolment", "ca", "web", "--end") == "web has no enrolment secret\n"
    assert audited() == []


# -- revoking ----------------------------------------------------------------------------------------------------------


def test_a_service_is_revoked_with_all_that_it_could_come_back_by() -> None:
    ran("issue", "ca", "web", "--out", "web")
    for command in ("enrolment", "token"):
        run(command, "ca", "web")
        run(command, "ca", "api")
    said = ran("revoke", "ca", "web")
    assert said == f"revoked all certificates of {WEB} issued until now, and 2 tokens and secrets\n"
    assert sorted(kept("identity, ended_at IS NULL")) == [
        ("spiffe://shop.internal/api", 1),
        ("spiffe://shop.internal/api", 1),
        (WEB, 0),
        (WEB, 0),
    ]
    event, identity, detail = audited()[-1]
    assert (event, identity, detail["passes_ended"]) == ("revoked", WEB, 2)
    assert [row["identity"] for row in json.loads(ran("list", "ca", "--json"))["revoked"]] == [WEB]


def test_what_is_no_service_but_has_certificates_can_be_revoked_too() -> None:
    ran("issue", "ca", "batch/nightly", "--out", "nightly")
    assert "spiffe://shop.internal/batch/nightly" in ran("revoke", "ca", "batch/nightly")


def test_a_name_that_nothing_was_issued_for_is_revoked_with_a_word_of_doubt() -> None:
    """It may be a typing error, and then the service that was meant goes on to be trusted."""
    doubted = run("revoke", "ca", "wbe")
    assert doubted.exit_code == 0
    assert (
        "this CA has no record of anything issued for spiffe://shop.internal/wbe: is the name right?" in doubted.stderr
    )
    ran("issue", "ca", "web", "--out", "web")
    assert run("revoke", "ca", "web").stderr == ""
    run("token", "ca", "api")
    assert run("revoke", "ca", "api").stderr == ""


def shift_clock(monkeypatch: pytest.MonkeyPatch, **span: int) -> None:
    """Another machine's clock, for the commands that follow."""
    then = datetime.now(UTC).replace(microsecond=0) + timedelta(**span)
    for module in (ca, access, options):
        monkeypatch.setattr(module, "now", lambda: then)


def test_certificates_of_a_clock_that_is_ahead_are_revoked_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    shift_clock(monkeypatch, hours=2)
    ran("issue", "ca", "web", "--out", "web")
    shift_clock(monkeypatch)
    revoked = run("revoke", "ca", "web")
    assert revoked.exit_code == 0
    assert "1 of them are dated later than now, by a clock that is ahead" in revoked.stderr
    assert audited()[-1][2]["dated_later"] == 1
    shift_clock(monkeypatch, hours=3)
    run("revoke", "ca", "web")
    shift_clock(monkeypatch)
    assert f"{WEB} gets no certificate that is valid before" in run("revoke", "ca", "web").stderr


def serial_of(service: str) -> str:
    rows = json.loads(ran("list", "ca", "--json"))["certificates"]
    (serial,) = [row["serial"] for row in rows if row["identity"].endswith(f"/{service}")]
    assert isinstance(serial, str)
    return serial


@pytest.mark.parametrize(
    "write", [str, str.upper, lambda text: ":".join((text[:1], text[1:])), lambda text: f"00{text}"]
)
def test_one_certificate_is_revoked_by_its_serial_however_it_is_written(write: Any) -> None:
    for service in ("web", "api"):
        ran("issue", "ca", service, "--out", service)
    run("token", "ca", "web")
    serial = serial_of("web")
    assert ran("revoke", "ca", "--serial", write(serial)) == f"revoked the certificate {serial} of {WEB}\n"
    assert audited()[-1] == ("revoked", WEB, {"serial": serial})
    assert kept("ended_at") == [(None,)]
    # Once more is no second event.
    ran("revoke", "ca", "--serial", serial)
    assert [event for event, _, _ in audited()].count("revoked") == 1


@pytest.mark.parametrize(
    ("serial", "why"),
    [
        ("1", "this CA issued no certificate with the serial 1; see: certs list"),
        ("web", "--serial: 'web' is not a hexadecimal number"),
        ("", "--serial: '' is not a hexadecimal number"),
        ("-1", "--serial: '-1' is not a hexadecimal number"),
        ("\x1b[2J", r"--serial: '\x1b[2J' is not a hexadecimal number"),
        ("f" * 1000, "is not a hexadecimal number"),
    ],
)
def test_a_serial_that_is_none_of_ours_revokes_nothing(serial: str, why: str) -> None:
    assert why in refused("revoke", "ca", "--serial", serial)
    assert audited() == []


def test_a_serial_and_a_service_at_once_are_answered_with_the_usage() -> None:
    ran("issue", "ca", "web", "--out", "web")
    assert "usage: certs revoke [DIRECTORY] SERVICE, or" in refused("revoke", "ca", "web", "--serial", serial_of("web"))
    assert "usage: certs revoke [DIRECTORY] SERVICE, or" in refused("revoke")


def test_none_of_them_touches_the_ca_s_files() -> None:
    before = everything(Path("ca"))
    run("token", "ca", "web")
    run("enrolment", "ca", "web")
    run("enrolment", "ca", "web", "--end")
    run("revoke", "ca", "web")
    assert everything(Path("ca")) == before
