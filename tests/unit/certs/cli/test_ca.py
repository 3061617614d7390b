"""``certs`` as people run it: exit codes, where words go, permissions, and never a traceback."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import certs
import sidecar
from certs.authority import authority
from certs.cli.commands import main
from certs.cli.options import now
from certs.protocol import documents
from certs.registrar import bundles
from certs.registrar.rotation import Rotator
from certs.store.store import Store, StoreUnavailableError, audit_entries, file_url, opened
from sidecar.identity.keys import key_digest
from tests.beds.certificates import DAY, HOUR, Authority, pem

ROOT = Path(certs.__file__).parent.parent
MESH = Authority()


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, stdin: bytes = b"") -> Result:
    """In this process: what escapes from the command is a failure of the test, not of the command."""
    result = CliRunner().invoke(main, arguments, input=stdin, prog_name="certs")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def spawn(*arguments: str, stdin: bytes = b"", umask: int = 0) -> subprocess.CompletedProcess[bytes]:
    """In a process of its own, with no umask to help."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-m", "certs", *arguments]
    return subprocess.run(
        command, input=stdin, capture_output=True, env=environment, umask=umask, timeout=60, check=False
    )


def test_three_commands_from_nothing_to_an_honest_certificate() -> None:
    made = spawn("init", "deep/ca", "--trust-domain", "shop.internal")
    assert (made.returncode, made.stderr) == (0, b"")
    assert made.stdout.splitlines()[-1] == (
        b"next: certs serve deep/ca --mesh mesh.yaml, or by hand: certs issue deep/ca web --out web"
    )

    issued = spawn("issue", "deep/ca", "web", "--out", "web")
    assert (issued.returncode, issued.stderr) == (0, b"")
    assert issued.stdout.startswith(b"issued spiffe://shop.internal/web, good until 20")
    assert b"(60 min)" in issued.stdout
    assert issued.stdout.splitlines()[-1].endswith(b"certs inspect web/certificate.pem")

    looked = spawn("inspect", "web/certificate.pem", "web/bundle.pem")
    assert (looked.returncode, looked.stderr) == (0, b"")
    assert looked.stdout.count(b"all kept") == 3
    assert b"SPIFFE ID:         spiffe://shop.internal/web\n" in looked.stdout

    modes = {str(path): stat.S_IMODE(path.stat().st_mode) for path in Path().rglob("*")}
    assert modes == {
        "deep": 0o700, "deep/ca": 0o700, "web": 0o700,
        "deep/ca/root.key": 0o600, "deep/ca/issuing.key": 0o600, "web/key.pem": 0o600,
        "deep/ca/revocation.pem": 0o600, "deep/ca/store.db": 0o600, "deep/ca/bundle.json": 0o644,
        "deep/ca/root.pem": 0o644, "deep/ca/issuing.pem": 0o644, "web/certificate.pem": 0o644, "web/bundle.pem": 0o644,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["issue", "none", "web", "--out", "out"], b"error: none holds no CA"),
        (["issue", "ca", "../web", "--out", "out"], b"error: '../web' cannot be a service's name"),
        (["issue", "ca", "web", "--out", "out", "--ttl", "1"], b"error: --ttl: '1' is not a duration"),
        (
            ["issue", "ca", "web", "--out", "out", "--ttl", "25h"],
            b"error: a certificate is valid for 5 minutes to 24 hours",
        ),
        (["issue", "ca", "web", "--out", "ca/root.pem"], b"error: cannot make the directory"),
        (
            ["init", "ca", "--trust-domain", "shop.internal"],
            b"error: already there: ca/root.key, ca/issuing.key, ca/revocation.pem, ca/root.pem",
        ),
        (["init", "new", "--trust-domain", "Shop"], b"error: 'Shop' is not a trust domain"),
        (["inspect", "ca/root.key"], b"error: ca/root.key: a private key, not a certificate"),
        (["inspect", "none.pem"], b"error: none.pem: cannot be read"),
        (["inspect", "ca"], b"error: ca: cannot be read"),
        (["inspect"], b"Missing argument 'FILE...'"),
        (["init", "new"], b"Missing option '--trust-domain'"),
        (["issue", "ca", "web"], b"Missing option '--out'"),
        (["nonsense"], b"No such command 'nonsense'"),
    ],
)
def test_mistakes_are_told_in_a_sentence_with_exit_code_2(arguments: list[str], words: bytes) -> None:
    assert run("init", "ca", "--trust-domain", "shop.internal").exit_code == 0
    before = sorted(map(str, Path().rglob("*")))
    result = run(*arguments)
    assert result.exit_code == 2
    assert words.decode() in result.stderr
    assert result.stdout == ""
    assert "PRIVATE KEY" not in result.output
    assert sorted(map(str, Path().rglob("*"))) == before


def test_a_mistake_in_a_process_of_its_own() -> None:
    refused = spawn("issue", "none", "web", "--out", "out")
    assert refused.returncode == 2
    assert refused.stderr.startswith(b"error: none holds no CA")
    assert b"Traceback" not in refused.stderr


def test_force_replaces_the_whole_ca_and_certificate() -> None:
    run("init", "ca", "--trust-domain", "shop.internal")
    run("issue", "ca", "web", "--out", "web")
    old_root, old_leaf = Path("ca/root.pem").read_bytes(), Path("web/certificate.pem").read_bytes()
    assert run("issue", "ca", "web", "--out", "web").exit_code == 2
    assert Path("web/certificate.pem").read_bytes() == old_leaf
    assert run("init", "ca", "--trust-domain", "other.internal", "--force").exit_code == 0
    assert run("issue", "ca", "web", "--out", "web", "--force", "--ttl", "90m").exit_code == 0
    assert Path("ca/root.pem").read_bytes() != old_root
    looked = run("inspect", "web/certificate.pem")
    assert looked.exit_code == 0
    assert "spiffe://other.internal/web" in looked.stdout


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (MESH.leaf().chain_pem, 0, "all kept"),
        (MESH.leaf().der, 0, "all kept"),
        (MESH.bundle_pem, 0, "all kept"),
        (MESH.leaf(eku=None).chain_pem, 1, "BROKEN RULE:       it has no ExtendedKeyUsage"),
        (MESH.leaf(not_after=MESH.now - HOUR).chain_pem, 1, "BROKEN RULE:       it has expired"),
        (Authority(age=91 * DAY).leaf().chain_pem, 1, "BROKEN RULE:       it has expired"),
        (MESH.leaf(lifetime=2 * DAY).chain_pem, 1, "max_leaf_ttl"),
    ],
)
def test_inspecting_standard_input(data: bytes, code: int, words: str) -> None:
    result = run("inspect", "-", stdin=data)
    assert result.exit_code == code
    assert words in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", MESH.leaf().key_pem, MESH.leaf().chain_pem[:-40], b"0" * (2 << 20)])
def test_inspecting_what_is_no_certificate(data: bytes) -> None:
    result = run("inspect", "-", stdin=data)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: -: ")
    assert result.stderr.count("\n") == 1


def test_one_unusable_file_does_not_hide_the_others() -> None:
    Path("good.pem").write_bytes(MESH.leaf().chain_pem)
    Path("bad.pem").write_bytes(b"junk")
    Path("broken.pem").write_bytes(pem(MESH.leaf(eku=None).certificate))
    result = run("inspect", "bad.pem", "good.pem", "broken.pem")
    assert result.exit_code == 2
    assert "error: bad.pem: neither PEM nor DER" in result.stderr
    assert "good.pem: certificate 1 of 2 (leaf)" in result.stdout
    assert "BROKEN RULE" in result.stdout
    assert run("inspect", "broken.pem", "good.pem").exit_code == 1


def test_inspecting_for_programs() -> None:
    result = run("inspect", "--json", "-", stdin=MESH.leaf(eku=None).chain_pem)
    (document,) = json.loads(result.stdout)
    assert result.exit_code == 1
    assert document["certificates"][0]["faults"] == ["it has no ExtendedKeyUsage"]


def test_a_file_name_with_a_nul_is_a_mistake_too() -> None:
    assert run("inspect", "a\0b").exit_code == 2


def test_version_and_help() -> None:
    assert run("--version").stdout == f"certs, version {sidecar.__version__}\n"
    for command in ([], ["init"], ["issue"], ["inspect"]):
        assert run(*command, "--help").exit_code == 0


def test_a_name_with_a_space_is_quoted_in_the_next_step() -> None:
    assert run("init", "my ca", "--trust-domain", "shop.internal").stdout.endswith(
        "certs issue 'my ca' web --out web\n"
    )


# -- a root key elsewhere, and a new issuing CA ------------------------------------------------------------------------

SECRET = "correct horse battery"


def newest() -> documents.Bundle:
    """The trust bundle in the store of ``ca``; the directory has the same."""
    with opened(file_url(Path("ca/store.db")), clock=lambda: 0) as store:
        document = store.read(bundles.newest_bundle)
    assert document is not None
    assert authority.bundle_document(Path("ca")).decode() == document
    return documents.read_kept_bundle(document.encode(), "shop.internal", now())


def delegate_key() -> bytes:
    """The digest of the delegate's."""
    delegate = authority.load(Path("ca"), now()).delegate
    assert delegate is not None
    return key_digest(delegate.certificate)


def issuing_key() -> bytes:
    return key_digest(authority.issuing_certificate(Path("ca")))


def test_a_new_ca_has_a_store_with_its_first_bundle() -> None:
    result = run("init", "ca", "--trust-domain", "shop.internal")
    assert f"root_sha256: {newest().active.hex()}\n" in result.stdout
    assert "certs serve ca --mesh mesh.yaml" in result.stdout
    with opened(file_url(Path("ca/store.db")), clock=lambda: 0) as store:
        events = store.read(lambda connection: [one.event for one in audit_entries(connection)])
    assert events == ["init", "bundle"]


def test_the_store_of_a_ca_that_was_here_is_kept_beside_the_new_one() -> None:
    run("init", "ca", "--trust-domain", "shop.internal")
    old = newest()
    run("init", "ca", "--trust-domain", "shop.internal", "--force")
    assert newest().active != old.active
    assert [path.name for path in Path("ca").glob("store.db.before-*")]


def test_a_root_key_elsewhere_and_encrypted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CERTS_NEW_PASSPHRASE", SECRET)
    result = run("init", "ca", "--trust-domain", "shop.internal", "--root-key-out", "safe", "--encrypt")
    assert "secret, in safe; issuing does not need it" in result.stdout
    assert SECRET not in result.output
    assert not Path("ca/root.key").exists()
    assert b"ENCRYPTED" in Path("safe/root.key").read_bytes()
    assert run("issue", "ca", "web", "--out", "web").exit_code == 0


def test_a_short_passphrase_is_refused_and_nothing_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CERTS_NEW_PASSPHRASE", "1234567")
    result = run("init", "ca", "--trust-domain", "shop.internal", "--encrypt")
    assert (result.exit_code, result.stderr) == (2, "error: a passphrase has at least 8 characters\n")
    assert not Path("ca").exists()


def test_a_passphrase_is_asked_for_twice_and_is_not_echoed() -> None:
    result = run("init", "ca", "--trust-domain", "shop.internal", "--encrypt", stdin=f"{SECRET}\n{SECRET}\n".encode())
    assert result.exit_code == 0
    assert SECRET not in result.output
    assert authority.is_encrypted(Path("ca/root.key"))


def test_a_new_issuing_ca_under_the_same_root() -> None:
    run("init", "ca", "--trust-domain", "shop.internal")
    run("issue", "ca", "web", "--out", "web")
    root, old, bundle = Path("ca/root.pem").read_bytes(), issuing_key(), newest()
    result = run("renew-issuing", "ca")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("made a new issuing CA, good until 20")
    assert Path("ca/root.pem").read_bytes() == root
    assert issuing_key() != old
    assert newest() == bundle, "what the old one issued is as good as ever"
    run("issue", "ca", "api", "--out", "api")
    assert run("inspect", "api/certificate.pem").exit_code == 0
    assert "renew_issuing" in run("audit", "ca").stdout


def test_the_directory_may_be_left_out() -> None:
    run("init", "ca", "--trust-domain", "shop.internal")
    old = issuing_key()
    assert run("renew-issuing").exit_code == 0
    assert issuing_key() != old


def test_a_stolen_issuing_key_is_distrusted() -> None:
    run("init", "ca", "--trust-domain", "shop.internal")
    stolen, before = {issuing_key(), delegate_key()}, newest()
    result = run("renew-issuing", "ca", "--distrust")
    assert result.exit_code == 0
    bundle = newest()
    assert bundle.distrusted == stolen
    assert bundle.version > before.version
    assert f"what the old one signed is distrusted (trust bundle {bundle.version})" in result.stdout
    second = {issuing_key(), delegate_key()}
    run("renew-issuing", "ca", "--distrust")
    assert newest().distrusted == stolen | second
    assert not newest().distrusted & {issuing_key(), delegate_key()}
    assert issuing_key() not in newest().distrusted


def secrets_of() -> list[str]:
    rows = json.loads(run("list", "ca", "--json").stdout)["enrolment secrets"]
    return [row["identity"].rpartition("/")[2] for row in rows]


def test_with_a_stolen_issuing_key_all_secrets_end_and_the_commands_for_new_ones_are_printed() -> None:
    run("init", "ca", "--trust-domain", "shop.internal")
    run("enrolment", "ca", "db")
    run("enrolment", "ca", "web", "api", "--out-dir", "enrolment")
    run("token", "ca", "job")
    run("renew-issuing", "ca")
    assert secrets_of() == ["api", "db", "web"], "an ordinary renewal ends none"
    result = run("renew-issuing", "ca", "--distrust")
    assert result.exit_code == 0
    assert secrets_of() == []
    with closing(sqlite3.connect("ca/store.db")) as connection:
        assert connection.execute("SELECT kind FROM passes WHERE ended_at IS NULL").fetchall() == [], "the token too"
    assert "the enrolment secrets of api, db, web have ended" in result.stdout
    commands = [line.split() for line in result.stdout.splitlines() if line.startswith("  certs ")]
    assert [words[2:] for words in commands] == [
        ["ca", "api", "web", "--out-dir", "enrolment", "--force"],
        ["ca", "db", "--out", "db.enrol", "--force"],
    ]
    for words in commands:
        assert run(*words[1:]).exit_code == 0
    assert secrets_of() == ["api", "db", "web"], "and they do what they say"


def test_secrets_are_kept_if_that_is_wanted() -> None:
    run("init", "ca", "--trust-domain", "shop.internal")
    run("enrolment", "ca", "web")
    assert run("renew-issuing", "ca", "--keep-secrets").exit_code == 2
    result = run("renew-issuing", "ca", "--distrust", "--keep-secrets")
    assert result.exit_code == 0
    assert secrets_of() == ["web"]
    assert "have ended" not in result.output
    assert len(newest().distrusted) == 2


@pytest.mark.parametrize("at", range(1, 9))
def test_a_renewal_for_a_stolen_key_that_is_cut_off_and_run_again_still_distrusts_that_key(
    monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    run("init", "ca", "--trust-domain", "shop.internal")
    stolen, steps = issuing_key(), 0

    class Killed(BaseException):
        pass

    def guarded(step: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == at:
                raise Killed
            return step(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", guarded(os.rename))
        patch.setattr(Store, "write_many", guarded(Store.write_many))
        with pytest.raises(Killed):
            CliRunner().invoke(main, ["renew-issuing", "ca", "--distrust"])
    assert run("renew-issuing", "ca", "--distrust").exit_code == 0
    assert stolen in newest().distrusted
    assert issuing_key() not in newest().distrusted
    assert run("issue", "ca", "web", "--out", "web").exit_code == 0


def test_a_store_that_is_full_is_found_before_anything_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    run("init", "ca", "--trust-domain", "shop.internal")
    old = issuing_key()

    def full(*_: Any) -> Any:
        raise StoreUnavailableError("the store cannot be written: database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_many", full)
        result = run("renew-issuing", "ca", "--distrust")
    assert (result.exit_code, result.stderr) == (2, "error: the store cannot be written: database or disk is full\n")
    assert issuing_key() == old


@pytest.mark.parametrize("distrust", [[], ["--distrust"]])
def test_with_the_root_key_from_the_safe(monkeypatch: pytest.MonkeyPatch, distrust: list[str]) -> None:
    monkeypatch.setenv("CERTS_NEW_PASSPHRASE", SECRET)
    run("init", "ca", "--trust-domain", "shop.internal", "--root-key-out", "safe", "--encrypt")
    old, bundle = issuing_key(), newest()
    keys = {old, delegate_key()}

    without = run("renew-issuing", "ca", *distrust)
    assert without.exit_code == 2
    assert "ca/root.key does not exist: this needs the root's key; give its place: --root-key FILE" in without.stderr

    monkeypatch.setenv("CERTS_ROOT_PASSPHRASE", "wrong horse battery")
    wrong = run("renew-issuing", "ca", "--root-key", "safe/root.key", *distrust)
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: safe/root.key cannot be read with this passphrase\n"
    assert (issuing_key(), newest()) == (old, bundle), "and nothing was changed by either"

    monkeypatch.setenv("CERTS_ROOT_PASSPHRASE", SECRET)
    right = run("renew-issuing", "ca", "--root-key", "safe/root.key", *distrust)
    assert right.exit_code == 0
    assert SECRET not in right.output
    assert issuing_key() != old
    assert newest().distrusted == (keys if distrust else frozenset())
    assert not Path("ca/root.key").exists()


def test_its_passphrase_is_asked_for_and_not_echoed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CERTS_NEW_PASSPHRASE", SECRET)
    run("init", "ca", "--trust-domain", "shop.internal", "--encrypt")
    result = run("renew-issuing", "ca", stdin=f"{SECRET}\n".encode())
    assert result.exit_code == 0
    assert "passphrase of ca/root.key:" in result.stderr
    assert SECRET not in result.output


def test_while_a_new_root_takes_over_there_is_no_other_issuing_ca() -> None:
    run("init", "ca", "--trust-domain", "shop.internal")
    with opened(file_url(Path("ca/store.db")), clock=lambda: int(now().timestamp())) as store:
        old = authority.load_root(Path("ca"), None, None)
        rotator = Rotator(Path("ca"), store, old, "shop.internal")
        rotator.prepare(now())
        rotator.distribute(now())
        assert run("renew-issuing", "ca").exit_code == 0, "the old root is in force still"
        rotator.activate(now())
        before = issuing_key()
        result = run("renew-issuing", "ca")
    assert result.exit_code == 2
    assert "a root rotation is in progress (activate)" in result.stderr
    assert "certs rotate-root" in result.stderr
    assert issuing_key() == before
    assert run("rotate-root", "ca", "--force").exit_code == 0
    assert run("renew-issuing", "ca").exit_code == 0
    assert run("issue", "ca", "web", "--out", "web").exit_code == 0


@pytest.mark.parametrize("name", ["root.pem", "issuing.pem"])
def test_there_is_none_to_renew(name: str) -> None:
    run("init", "ca", "--trust-domain", "shop.internal")
    Path("ca", name).unlink()
    result = run("renew-issuing", "ca")
    assert result.exit_code == 2
    assert f"holds no CA: {name} missing" in result.stderr
