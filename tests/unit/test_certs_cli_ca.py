"""``certs`` as people run it: exit codes, where words go, permissions, and never a traceback."""

from __future__ import annotations

import json
import stat
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

import sidecar
from certs import standing
from certs.cli.options import now, open_store
from sidecar.judge import key_digest
from tests.certificates import DAY, HOUR, Authority, pem
from tests.commands import everything, ran, refused, run, spawn

MESH = Authority()
DOMAIN = ["--trust-domain", "shop.internal"]
PASSPHRASE = "correct horse"


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


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
            b"error: a certificate lives from 5 minutes to 24 hours",
        ),
        (["issue", "ca", "web", "--out", "ca/root.pem"], b"error: cannot make the directory"),
        (
            ["init", "ca", "--trust-domain", "shop.internal"],
            b"error: already there: ca/root.key, ca/issuing.key, ca/revocation.pem, ca/root.pem",
        ),
        (["init", "new", "--trust-domain", "Shop"], b"error: 'Shop' is no trust domain"),
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
    result = spawn("inspect", "-", stdin=data)
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.startswith(b"error: -: ")
    assert result.stderr.count(b"\n") == 1


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


# -- certs init: where the root's key is, and what was there before ----------------------------------------------------


def certificate(path: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(Path(path).read_bytes())


def audited(event: str) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in ran("audit", "ca", "--json").splitlines()]
    return [entry for entry in entries if entry["event"] == event]


def listed(what: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(ran("list", "ca", "--json"))[what]
    return found


def test_the_root_s_key_is_kept_elsewhere_and_issuing_does_without_it() -> None:
    said = ran("init", "ca", *DOMAIN, "--root-key-out", "safe")
    assert "secret, in safe; issuing does not need it" in said
    assert not Path("ca/root.key").exists()
    assert stat.S_IMODE(Path("safe/root.key").stat().st_mode) == 0o600
    assert ran("issue", "ca", "web", "--out", "web")
    assert ran("token", "ca", "web")


def test_a_key_that_is_in_either_place_already_stops_it() -> None:
    ran("init", "old", *DOMAIN)
    told = refused("init", "old", *DOMAIN, "--root-key-out", "safe", "--force")
    assert "old/root.key is there, and the new root's key is to be kept elsewhere: remove it" in told
    assert not Path("safe/root.key").exists()

    ran("init", "ca", *DOMAIN, "--root-key-out", "safe")
    key, files = Path("safe/root.key").read_bytes(), everything(Path("ca"))
    assert "already there: safe/root.key" in refused("init", "new", *DOMAIN, "--root-key-out", "safe")
    assert list(Path("new").glob("*")) == []
    assert "already there" in refused("init", "ca", *DOMAIN, "--root-key-out", "elsewhere")
    assert not Path("elsewhere/root.key").exists()
    assert Path("safe/root.key").read_bytes() == key
    assert everything(Path("ca")) == files


def test_the_root_s_key_is_encrypted_if_asked_and_else_not() -> None:
    ran("init", "ca", *DOMAIN, "--encrypt", "--root-key-out", "safe", variables={"CERTS_NEW_PASSPHRASE": PASSPHRASE})
    ran("init", "open", *DOMAIN)
    assert b"ENCRYPTED" in Path("safe/root.key").read_bytes()
    assert b"ENCRYPTED" not in Path("open/root.key").read_bytes()
    assert PASSPHRASE.encode() not in b"".join(everything(Path()).values())


def test_a_ca_that_is_replaced_leaves_its_store_beside_the_new_one() -> None:
    ran("init", "ca", *DOMAIN)
    ran("issue", "ca", "web", "--out", "web")
    for _ in range(2):  # in one second, most likely
        ran("init", "ca", *DOMAIN, "--force")
        assert listed("certificates") == []
    kept = sorted(Path("ca").glob("store.db.before-*[0-9]"))
    assert len(kept) == 2
    issued = [
        ran("list", "ca", "--json", "--store", f"sqlite:///{path}").count("spiffe://shop.internal/web") for path in kept
    ]
    assert sorted(issued) == [0, 1]


# -- certs issue: what the store has of it -----------------------------------------------------------------------------


def test_what_is_issued_by_hand_is_in_the_store_and_in_the_audit_log() -> None:
    ran("init", "ca", *DOMAIN)
    ran("issue", "ca", "web", "--out", "web")
    serial = f"{certificate('web/certificate.pem').serial_number:x}"
    assert [(row["identity"], row["how"], row["serial"]) for row in listed("certificates")] == [
        ("spiffe://shop.internal/web", "command", serial)
    ]
    (entry,) = audited("issued")
    assert entry["detail"]["serial"] == serial


def test_what_could_not_be_written_was_not_issued() -> None:
    ran("init", "ca", *DOMAIN)
    ran("issue", "ca", "web", "--out", "web")
    assert "already there: web/bundle.pem" in refused("issue", "ca", "web", "--out", "web")
    assert len(listed("certificates")) == 1
    ran("issue", "ca", "web", "--out", "web", "--force")
    assert len(listed("certificates")) == 2


def test_what_cannot_be_remembered_is_not_issued() -> None:
    ran("init", "ca", *DOMAIN)
    gone = "postgresql://ca@127.0.0.1:1/mesh"
    assert "cannot open the store" in refused("issue", "ca", "web", "--out", "web", "--store", gone)
    assert not Path("web").exists()


def test_after_a_revocation_a_new_certificate_is_dated_so_that_it_counts() -> None:
    ran("init", "ca", *DOMAIN)
    ran("issue", "ca", "web", "--out", "before")
    ran("revoke", "ca", "web")
    ran("issue", "ca", "web", "--out", "after")
    ran("issue", "ca", "api", "--out", "other")
    revoked = datetime.fromisoformat(listed("revoked")[0]["issued before"])
    assert certificate("before/certificate.pem").not_valid_before_utc < revoked
    assert certificate("after/certificate.pem").not_valid_before_utc >= revoked
    assert certificate("other/certificate.pem").not_valid_before_utc < revoked


# -- certs renew-issuing -----------------------------------------------------------------------------------------------


def distrusted() -> frozenset[bytes]:
    """The keys that the store's newest bundle distrusts."""
    with open_store(Path("ca"), None) as store:
        document = store.read(standing.newest_bundle)
    assert document is not None
    root = certificate("ca/root.pem")
    return standing.own_bundle(document, "shop.internal", [root], now()).distrusted


def test_a_new_issuing_ca_takes_the_old_one_s_place_and_the_old_one_goes_on_to_count() -> None:
    ran("init", "ca", *DOMAIN)
    old = certificate("ca/issuing.pem")
    said = ran("renew-issuing", "ca")
    new = certificate("ca/issuing.pem")
    assert new.public_key() != old.public_key()
    assert f"made a new issuing CA, good until {new.not_valid_after_utc:%FT%TZ}" in said
    assert "counts no longer" not in said
    assert distrusted() == frozenset()
    assert len(audited("renew_issuing")) == 1
    ran("issue", "ca", "web", "--out", "web")
    assert run("inspect", "web/certificate.pem").exit_code == 0
    assert not list(Path("ca").glob("issuing.*.*"))


def test_what_may_be_stolen_is_distrusted_if_asked() -> None:
    ran("init", "ca", *DOMAIN)
    old = key_digest(certificate("ca/issuing.pem"))
    assert "what the old one signed counts no longer" in ran("renew-issuing", "ca", "--distrust")
    assert distrusted() == {old}
    assert key_digest(certificate("ca/issuing.pem")) not in distrusted()
    assert [entry["detail"]["key"] for entry in audited("distrusted")] == [old.hex()]
    # The next renewal does not forget it, nor distrust another.
    ran("renew-issuing", "ca")
    assert distrusted() == {old}
    ran("renew-issuing", "ca", "--distrust")
    assert len(distrusted()) == 2


def test_cut_off_before_the_store_was_told_the_next_run_distrusts_the_stolen_key_and_not_the_new_one() -> None:
    ran("init", "ca", *DOMAIN)
    stolen = key_digest(certificate("ca/issuing.pem"))
    with open_store(Path("ca"), None) as store:
        store.write(lambda transaction: transaction.connection.exec_driver_sql("ALTER TABLE audit_log RENAME TO gone"))
    assert "cannot be written" in refused("renew-issuing", "ca", "--distrust")
    with open_store(Path("ca"), None) as store:
        store.write(lambda transaction: transaction.connection.exec_driver_sql("ALTER TABLE gone RENAME TO audit_log"))
    assert "counts no longer" in ran("renew-issuing", "ca")
    assert distrusted() == {stolen}
    assert "counts no longer" not in ran("renew-issuing", "ca")


@pytest.mark.parametrize("more", [[], ["--distrust"]])
def test_a_store_that_is_not_there_leaves_the_issuing_ca_as_it_is(more: list[str]) -> None:
    ran("init", "ca", *DOMAIN)
    before = everything(Path("ca"))
    gone = "postgresql://ca@127.0.0.1:1/mesh"
    assert "cannot open the store" in refused("renew-issuing", "ca", *more, "--store", gone)
    assert everything(Path("ca")) == before


def test_a_store_without_a_bundle_cannot_distrust_and_leaves_the_issuing_ca_as_it_is() -> None:
    ran("init", "ca", *DOMAIN)
    before = everything(Path("ca"))
    told = refused("renew-issuing", "ca", "--distrust", "--store", "sqlite:///new.db")
    assert "the store has no trust bundle yet" in told
    assert everything(Path("ca")) == before


def test_an_offline_encrypted_root_key_is_named_and_opened_by_its_passphrase_alone() -> None:
    ran("init", "ca", *DOMAIN, "--encrypt", "--root-key-out", "safe", variables={"CERTS_NEW_PASSPHRASE": PASSPHRASE})
    before = everything(Path("ca"))
    offline = ["--root-key", "safe/root.key"]
    for more in ([], ["--distrust"]):
        told = refused("renew-issuing", "ca", *more)
        assert "ca/root.key is not there" in told
        assert "say where it is: --root-key FILE" in told
        wrong = refused("renew-issuing", "ca", *offline, *more, variables={"CERTS_ROOT_PASSPHRASE": "wrong horse"})
        assert "safe/root.key cannot be read with this passphrase" in wrong
        assert "wrong horse" not in wrong
    assert everything(Path("ca")) == before

    ran("renew-issuing", "ca", *offline, "--distrust", variables={"CERTS_ROOT_PASSPHRASE": PASSPHRASE})
    assert certificate("ca/issuing.pem").public_bytes(Encoding.PEM) != before["issuing.pem"]
    assert len(distrusted()) == 1
    assert not Path("ca/root.key").exists()
