"""``certs`` as people run it: exit codes, where words go, permissions, and never a traceback."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

import sidecar
from tests.certificates import DAY, HOUR, Authority, pem
from tests.commands import run, spawn

MESH = Authority()


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
