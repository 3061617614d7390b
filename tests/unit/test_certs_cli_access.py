"""``certs token``, ``enrolment``, ``revoke`` as people run them: what they print, and what that opens."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from certs import authority, passes, registrar, standing
from certs.cli import main
from certs.cli.options import now
from certs.issuance import Denial, Denied
from certs.store import Store, StoreUnavailableError, file_url, opened
from sidecar.identity import parse_svid
from tests.mini_ca import API, DOMAIN, Clock, csr, ders


@pytest.fixture(autouse=True)
def _ca(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CA in ./ca, where it is found without being named."""
    monkeypatch.chdir(tmp_path)
    for name in ("CERTS_DIR", "CERTS_STORE"):
        monkeypatch.delenv(name, raising=False)
    assert run("init", "ca", "--trust-domain", DOMAIN).exit_code == 0


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(main, arguments, prog_name="certs")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@contextmanager
def the_store() -> Iterator[tuple[Store, registrar.Terms]]:
    clock = Clock(now())
    own = authority.load(Path("ca"), clock.now)
    with opened(file_url(Path("ca/store.db")), clock=clock) as store:
        yield store, registrar.Terms(own, {"api", "web"})


def enrol(text: str, service: str = "api") -> list[bytes]:
    """Enrols with what a command printed."""
    shown = passes.parse(text.strip())
    with the_store() as (store, terms):
        request = csr(uris=[f"spiffe://{DOMAIN}/{service}"])
        return ders(store.write(lambda transaction: registrar.enrol(transaction, terms, shown, service, request)))


def denial(text: str) -> Denial:
    with pytest.raises(Denied) as denied:
        enrol(text)
    return denied.value.denial


def events() -> list[str]:
    return [line.split()[2] for line in run("audit", "ca").stdout.splitlines()]


# -- tokens and secrets ------------------------------------------------------------------------------------------------


def test_a_token_opens_once() -> None:
    result = run("token", "api")
    assert (result.exit_code, result.stderr) == (0, "a token for api: used once, within 5 minutes\n")
    assert passes.parse(result.stdout.strip()).root == authority.load(Path("ca"), now()).root_digest
    assert parse_svid(enrol(result.stdout)[0]).id == API
    assert denial(result.stdout) is Denial.PASS_USED


def test_an_enrolment_secret_opens_as_often_as_it_must() -> None:
    result = run("enrolment", "ca", "api")
    assert result.stderr == "an enrolment secret of api: whoever has it can be api\n"
    assert enrol(result.stdout) != enrol(result.stdout)


def test_the_secret_goes_to_standard_output_alone_so_that_it_can_be_piped() -> None:
    for command in ("token", "enrolment"):
        result = run(command, "api")
        secret = passes.parse(result.stdout.strip()).secret
        assert secret not in result.stderr
        assert secret not in run("audit", "ca").output + run("list", "ca").output


@pytest.mark.parametrize("command", ["token", "enrolment"])
def test_it_can_go_to_a_file_for_its_owner_alone(command: str) -> None:
    result = run(command, "api", "--out", "api.enrol")
    assert (result.exit_code, result.stdout) == (0, "")
    assert stat.S_IMODE(Path("api.enrol").stat().st_mode) == 0o600
    assert enrol(Path("api.enrol").read_text())


def test_a_file_that_is_there_is_replaced_only_by_force() -> None:
    Path("api.enrol").write_text("precious")
    before = events()
    result = run("token", "api", "--out", "api.enrol")
    assert result.exit_code == 2
    assert "already there: api.enrol; nothing was written (--force overwrites)" in result.stderr
    assert Path("api.enrol").read_text() == "precious"
    assert events() == before, "and no token is remembered that nobody has"
    assert run("token", "api", "--out", "api.enrol", "--force").exit_code == 0
    assert enrol(Path("api.enrol").read_text())


def test_a_symlink_is_not_followed() -> None:
    Path("api.enrol").symlink_to("ca/root.pem")
    assert run("token", "api", "--out", "api.enrol", "--force").exit_code == 2
    assert b"CERTIFICATE" in Path("ca/root.pem").read_bytes()


def test_a_store_that_fails_leaves_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise StoreUnavailableError("the store cannot be written: database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_many", full)
        result = run("token", "api", "--out", "api.enrol")
    assert (result.exit_code, result.stderr) == (2, "error: the store cannot be written: database or disk is full\n")
    assert not Path("api.enrol").exists()


@pytest.mark.parametrize("command", ["token", "enrolment"])
@pytest.mark.parametrize(
    ("service", "words"),
    [
        ("mesh/ca", "spiffe://shop.internal/mesh/ca is no service's identity, and only services enrol"),
        ("../api", "cannot be a service's name"),
        ("api/", "cannot be a service's name"),
        ("a b", "cannot be a service's name"),
        ("", "cannot be a service's name"),
    ],
)
def test_names_that_nobody_enrols_by(command: str, service: str, words: str) -> None:
    before = events()
    result = run(command, "ca", service)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr
    assert events() == before


def test_a_service_s_secrets_are_ended_and_its_certificates_are_not() -> None:
    first, second, token, web = (
        run(*words).stdout
        for words in (["enrolment", "api"], ["enrolment", "api"], ["token", "api"], ["enrolment", "web"])
    )
    chain = enrol(first)
    assert run("enrolment", "api", "--end").stdout == "ended 2 of api\n"
    assert denial(first) is denial(second) is Denial.PASS_EXPIRED
    assert enrol(token)
    assert enrol(web, "web")
    with the_store() as (store, terms):
        assert store.write(lambda transaction: registrar.renew(transaction, terms, chain, csr()))
    assert run("enrolment", "api", "--end").stdout == "api has no enrolment secret\n"
    assert events().count("secrets_ended") == 1


# -- revocation --------------------------------------------------------------------------------------------------------


def revoked() -> tuple[list[str], int]:
    with the_store() as (store, _):
        found = store.read(lambda connection: standing.revocations(connection, DOMAIN, now()))
    return sorted(map(str, found.identities)), len(found.serials)


def test_a_service_is_revoked_with_its_secrets_and_may_come_back() -> None:
    secret = run("enrolment", "api").stdout
    enrol(secret)
    result = run("revoke", "api")
    assert result.stdout == (
        "revoked all certificates of spiffe://shop.internal/api issued until now, and 1 tokens and secrets\n"
    )
    assert revoked() == ([str(API)], 0)
    assert denial(secret) is Denial.PASS_EXPIRED
    assert enrol(run("enrolment", "api").stdout)


def test_a_longer_name_is_revoked_too() -> None:
    assert run("revoke", "ca", "batch/nightly").exit_code == 0
    assert revoked() == (["spiffe://shop.internal/batch/nightly"], 0)


@pytest.mark.parametrize(
    "write", [lambda text: text, str.upper, lambda text: ":".join(text[i : i + 2] for i in range(0, len(text), 2))]
)
def test_one_certificate_is_revoked_by_its_serial(write: Any) -> None:
    svid = parse_svid(enrol(run("token", "api").stdout)[0])
    text = f"{svid.serial:040x}"
    for words in (["revoke", "--serial", write(text)], ["revoke", "ca", "--serial", write(text)]):
        assert run(*words).stdout == f"revoked the certificate {svid.serial:x} of {API}\n"
    assert revoked() == ([], 1)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--serial", "xyz"], "--serial: 'xyz' is no hexadecimal number; see: certs list"),
        (["--serial", "1f"], "this CA issued no certificate with the serial 1f; see: certs list"),
        (["ca", "api", "--serial", "1f"], "usage: certs revoke [DIRECTORY] SERVICE, or"),
        ([], "usage: certs revoke [DIRECTORY] SERVICE, or"),
        (["ca", "../api"], "cannot be a service's name"),
        (["a", "b", "c"], "usage: certs revoke"),
        (["none", "api"], "none holds no CA"),
    ],
)
def test_what_cannot_be_revoked(words: list[str], told: str) -> None:
    result = run("revoke", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr
    assert revoked() == ([], 0)
