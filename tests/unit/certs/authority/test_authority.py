"""The CA on disk: what it makes, and every state of its directory in which it must not issue."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificates

from certs.authority import authority, files
from certs.protocol import documents
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import parse_svid
from tests.beds.certificates import CA_USAGE, DAY, HOUR, Authority, Credential, ec_key, pem, rsa_key, usage

NOW = datetime.now(UTC).replace(microsecond=0)
DOMAIN = "shop.internal"
NAMES = ["bundle.json", "issuing.key", "issuing.pem", "revocation.pem", "root.key", "root.pem"]


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    authority.init(tmp_path / "ca", DOMAIN, NOW)
    return tmp_path / "ca"


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# -- init --------------------------------------------------------------------------------------------------------------


def test_a_new_ca_is_its_files_and_can_issue(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "ca"
    made = authority.init(directory, DOMAIN, NOW)
    assert sorted(content(directory)) == NAMES
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    secret = ("root.key", "issuing.key", "revocation.pem")
    assert {name for name in modes if modes[name] & 0o077 == 0} == set(secret)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    loaded = authority.load(directory, NOW)
    assert (loaded.trust_domain, loaded.roots, loaded.issuer.certificate) == (
        DOMAIN,
        made.roots,
        made.issuer.certificate,
    )
    root_key = load_pem_private_key((directory / "root.key").read_bytes(), None)
    assert root_key.public_key() == made.roots[0].public_key()


@pytest.mark.parametrize("name", NAMES)
def test_a_ca_or_part_of_one_is_not_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(UsageError, match=name):
        authority.init(tmp_path, DOMAIN, NOW)
    assert content(tmp_path) == {name: b"precious"}
    authority.init(tmp_path, DOMAIN, NOW, force=True)
    assert authority.load(tmp_path, NOW).trust_domain == DOMAIN


@pytest.mark.parametrize("domain", ["", "Shop", "shop/x", ".shop", "shop.internal\n"])
def test_a_bad_trust_domain_makes_nothing(tmp_path: Path, domain: str) -> None:
    with pytest.raises(UsageError, match="trust domain"):
        authority.init(tmp_path / "ca", domain, NOW)
    assert not (tmp_path / "ca").exists()


# -- issue -------------------------------------------------------------------------------------------------------------


def test_what_is_issued_is_the_service_s_svid(ca: Path) -> None:
    loaded = authority.load(ca, NOW)
    issued = authority.issue(loaded, "api", NOW)
    leaf, intermediate = issued.chain
    svid = parse_svid(leaf.public_bytes(serialization.Encoding.DER))
    assert str(svid.id) == str(issued.identity) == "spiffe://shop.internal/api"
    assert issued.not_after == svid.not_after == NOW + HOUR
    assert issued.key.public_key() == leaf.public_key()
    leaf.verify_directly_issued_by(intermediate)
    intermediate.verify_directly_issued_by(issued.roots[0])
    assert authority.issue(loaded, "api", NOW).key.public_key() != issued.key.public_key(), "a fresh key each time"
    assert authority.issue(loaded, "api", NOW, 5 * HOUR).not_after == NOW + 5 * HOUR


@pytest.mark.parametrize("name", ["mesh/ca", "batch/nightly", "no", "API_v1.2"])
def test_names_that_an_operator_may_issue(ca: Path, name: str) -> None:
    assert str(authority.issue(authority.load(ca, NOW), name, NOW).identity) == f"spiffe://shop.internal/{name}"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/api",
        "api/",
        "..",
        "../api",
        "a//b",
        "a b",
        "api\n",
        "аpi",
        "%61pi",
        "spiffe://shop.internal/api",
        "a" * 2048,
    ],
)
def test_names_that_nobody_may_have(ca: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a service's name"):
        authority.issue(authority.load(ca, NOW), name, NOW)


def test_a_bad_ttl(ca: Path) -> None:
    with pytest.raises(UsageError, match="for 5 minutes to 24 hours"):
        authority.issue(authority.load(ca, NOW), "api", NOW, 25 * HOUR)


def test_a_leaf_ends_with_its_issuer(ca: Path) -> None:
    late = NOW + 90 * DAY - timedelta(minutes=10)
    assert authority.issue(authority.load(ca, late), "api", late).not_after == NOW + 90 * DAY


# -- save --------------------------------------------------------------------------------------------------------------


def test_what_is_saved(ca: Path, tmp_path: Path) -> None:
    issued = authority.issue(authority.load(ca, NOW), "api", NOW)
    out = tmp_path / "out"
    authority.save(issued, out)
    assert sorted(content(out)) == ["bundle.pem", "certificate.pem", "key.pem"]
    assert tuple(load_pem_x509_certificates((out / "certificate.pem").read_bytes())) == issued.chain
    assert (out / "bundle.pem").read_bytes() == (ca / "root.pem").read_bytes()
    key = load_pem_private_key((out / "key.pem").read_bytes(), None)
    assert key.public_key() == issued.chain[0].public_key()
    assert stat.S_IMODE((out / "key.pem").stat().st_mode) == 0o600


def test_saving_again_needs_force_and_then_replaces_all(ca: Path, tmp_path: Path) -> None:
    loaded, out = authority.load(ca, NOW), tmp_path / "out"
    first, second = authority.issue(loaded, "api", NOW), authority.issue(loaded, "api", NOW)
    authority.save(first, out)
    before = content(out)
    with pytest.raises(UsageError, match=r"already there.*--force"):
        authority.save(second, out)
    assert content(out) == before
    authority.save(second, out, force=True)
    assert content(out) == {
        "bundle.pem": second.bundle_pem,
        "certificate.pem": second.chain_pem,
        "key.pem": second.key_pem,
    }


def test_the_certificate_is_replaced_last(ca: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order, rename = [], os.rename

    def recorded(source: str, target: str, **options: Any) -> None:
        order.append(Path(target).name)
        rename(source, target, **options)

    monkeypatch.setattr(os, "rename", recorded)
    authority.save(authority.issue(authority.load(ca, NOW), "api", NOW), tmp_path / "out")
    assert order == ["bundle.pem", "key.pem", "certificate.pem"]


def test_an_out_that_cannot_be_written(ca: Path, tmp_path: Path) -> None:
    issued = authority.issue(authority.load(ca, NOW), "api", NOW)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot make the directory"):
        authority.save(issued, tmp_path / "file")
    (tmp_path / "key.pem").symlink_to(tmp_path / "file")
    with pytest.raises(UsageError, match="symlink"):
        authority.save(issued, tmp_path, force=True)
    assert (tmp_path / "file").read_bytes() == b""


# -- a directory that must not issue -----------------------------------------------------------------------------------


def refusal(directory: Path, now: datetime = NOW) -> str:
    with pytest.raises(UsageError) as refused:
        authority.load(directory, now)
    assert "PRIVATE" not in str(refused.value)
    return str(refused.value)


def write_ca(
    directory: Path,
    mesh: Authority,
    *,
    issuing: Credential | None = None,
    roots: bytes | None = None,
    key: bytes | None = None,
) -> Path:
    """The directory of a foreign CA: the factory's, bent."""
    issuing = issuing or mesh.issuing
    directory.mkdir()
    (directory / "root.pem").write_bytes(roots or mesh.bundle_pem)
    (directory / "issuing.pem").write_bytes(pem(issuing.certificate))
    (directory / "issuing.key").touch(mode=0o600)
    (directory / "issuing.key").write_bytes(key or issuing.key_pem)
    return directory


def test_the_twin_a_foreign_ca_that_keeps_the_rules_can_issue(tmp_path: Path) -> None:
    mesh = Authority("other.internal", now=NOW)
    loaded = authority.load(write_ca(tmp_path / "ca", mesh), NOW)
    assert (loaded.trust_domain, loaded.roots) == ("other.internal", mesh.roots)


def test_during_a_rotation_there_are_two_roots(tmp_path: Path) -> None:
    mesh, new = Authority(now=NOW), Authority(now=NOW)
    loaded = authority.load(write_ca(tmp_path / "ca", mesh, roots=new.bundle_pem + mesh.bundle_pem), NOW)
    assert loaded.roots == (*new.roots, *mesh.roots)


def test_no_ca(tmp_path: Path) -> None:
    told = refusal(tmp_path / "none")
    assert "root.pem, issuing.pem, issuing.key missing" in told
    assert "certs init" in told


@pytest.mark.parametrize("name", ["root.pem", "issuing.pem", "issuing.key"])
def test_a_missing_file(ca: Path, name: str) -> None:
    (ca / name).unlink()
    assert f"{name} missing" in refusal(ca)


def test_the_root_key_may_be_kept_elsewhere(ca: Path) -> None:
    (ca / "root.key").unlink()
    assert authority.load(ca, NOW).trust_domain == DOMAIN


@pytest.mark.parametrize("name", ["root.pem", "issuing.pem", "issuing.key"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda _: b"garbage\0\xff",
        lambda old: old[: len(old) // 2],
        lambda old: old.replace(b"A", b"!", 1),
        lambda old: old.replace(old[40:80], old[80:120] if len(old) > 300 else b"A" * 40),
    ],
    ids=["empty", "garbage", "truncated", "no base64", "other bytes"],
)
def test_a_corrupt_file(ca: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    (ca / name).write_bytes(damage((ca / name).read_bytes()))
    assert name in refusal(ca)


@pytest.mark.parametrize("name", ["root.key", "issuing.key"])
def test_a_key_that_others_can_read(ca: Path, name: str) -> None:
    (ca / name).chmod(0o640)
    assert refusal(ca).endswith(f"chmod 600 {ca / name}")


def test_files_of_two_cas(ca: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    authority.init(other, DOMAIN, NOW)
    own = (ca / "issuing.key").read_bytes()
    (ca / "issuing.key").write_bytes((other / "issuing.key").read_bytes())
    assert "issuing.key does not belong to" in refusal(ca)
    (ca / "issuing.key").write_bytes(own)
    (ca / "root.pem").write_bytes((other / "root.pem").read_bytes())
    assert "two different CAs" in refusal(ca)


def test_an_expired_issuing_ca_says_until_when_it_was_good_and_what_to_do(ca: Path) -> None:
    told = refusal(ca, NOW + 90 * DAY)
    assert f"issuing.pem expired: it was valid until {NOW + 90 * DAY:%FT%TZ}" in told
    assert "certs renew-issuing" in told
    assert authority.load(ca, NOW + 90 * DAY - timedelta(seconds=1))


def test_an_expired_root(tmp_path: Path) -> None:
    mesh = Authority(now=NOW, age=2 * DAY, root_lifetime=DAY)
    assert "root.pem expired" in refusal(write_ca(tmp_path / "ca", mesh))


def test_a_clock_that_is_behind(ca: Path) -> None:
    assert "is this machine's clock right?" in refusal(ca, NOW - HOUR)


MESH = Authority(now=NOW)


@pytest.mark.parametrize(
    ("issuing", "why"),
    [
        (MESH.ca("issuing", ca=False, key_usage=CA_USAGE), "cA is not true"),
        (MESH.ca("issuing", key_usage=usage("digital_signature")), "lacks keyCertSign"),
        (MESH.ca("issuing", permitted=()), "no name constraint"),
        (MESH.ca("issuing", permitted=["a.internal", "b.internal"]), "not bound to one trust domain"),
        (MESH.ca("issuing", permitted=["shop.internal/x"]), "not bound to one trust domain"),
        (MESH.ca("issuing", permitted=["Shop.internal"]), "not bound to one trust domain"),
    ],
)
def test_a_certificate_that_is_no_issuing_ca(tmp_path: Path, issuing: Credential, why: str) -> None:
    assert why in refusal(write_ca(tmp_path / "ca", MESH, issuing=issuing))


def test_keys_that_are_not_ours(tmp_path: Path) -> None:
    rsa = MESH.ca("issuing", key=rsa_key())
    assert "not an ECDSA key" in refusal(write_ca(tmp_path / "rsa", MESH, issuing=rsa))
    encrypted = ec_key().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    )
    assert "is encrypted" in refusal(write_ca(tmp_path / "encrypted", MESH, key=encrypted))


def test_an_issuing_file_with_more_than_one_certificate(ca: Path) -> None:
    (ca / "issuing.pem").write_bytes((ca / "issuing.pem").read_bytes() + (ca / "root.pem").read_bytes())
    assert "2 certificates instead of one" in refusal(ca)


def test_an_issuer_that_runs_out_between_load_and_issue(ca: Path) -> None:
    loaded = authority.load(ca, NOW)
    with pytest.raises(UsageError, match="the issuer's certificate is valid from"):
        authority.issue(loaded, "api", NOW + 91 * DAY)


# -- the root's key, elsewhere and encrypted ---------------------------------------------------------------------------

PASSPHRASE = b"correct horse"


def test_a_root_key_can_go_to_another_directory_at_once(tmp_path: Path) -> None:
    directory, safe = tmp_path / "ca", tmp_path / "safe"
    made = authority.init(directory, DOMAIN, NOW, root_key_out=safe)
    assert sorted(content(directory)) == [name for name in NAMES if name != "root.key"]
    assert sorted(content(safe)) == ["root.key"]
    assert stat.S_IMODE((safe / "root.key").stat().st_mode) == 0o600
    assert authority.load(directory, NOW).issuer.certificate == made.issuer.certificate
    assert authority.load_root(directory, safe / "root.key", None).certificate == made.root
    with pytest.raises(UsageError, match="give its place: --root-key FILE"):
        authority.load_root(directory, None, None)


def test_and_be_encrypted(tmp_path: Path) -> None:
    directory, safe = tmp_path / "ca", tmp_path / "safe"
    made = authority.init(directory, DOMAIN, NOW, root_key_out=safe, passphrase=PASSPHRASE)
    key = safe / "root.key"
    assert authority.is_encrypted(key)
    assert not authority.is_encrypted(directory / "issuing.key")
    assert authority.load_root(directory, key, PASSPHRASE).certificate == made.root
    with pytest.raises(UsageError, match="is encrypted, and its passphrase was not given"):
        authority.load_root(directory, key, None)
    with pytest.raises(UsageError, match="cannot be read with this passphrase"):
        authority.load_root(directory, key, b"wrong horse")


def test_an_encrypted_root_key_in_the_directory_itself_hinders_no_issuing(tmp_path: Path) -> None:
    authority.init(tmp_path, DOMAIN, NOW, passphrase=PASSPHRASE)
    assert authority.issue(authority.load(tmp_path, NOW), "api", NOW)
    assert authority.load_root(tmp_path, None, PASSPHRASE)


def test_a_passphrase_for_a_key_that_has_none(ca: Path) -> None:
    with pytest.raises(UsageError, match="is not encrypted, and a passphrase was given"):
        authority.load_root(ca, None, PASSPHRASE)
    assert authority.load_root(ca, None, None)


def test_a_root_key_of_another_ca(ca: Path, tmp_path: Path) -> None:
    authority.init(tmp_path / "other", DOMAIN, NOW)
    with pytest.raises(UsageError, match=r"is not the key of any root in .*root\.pem"):
        authority.load_root(ca, tmp_path / "other" / "root.key", None)


def test_a_root_key_that_others_can_read_signs_nothing(ca: Path) -> None:
    (ca / "root.key").chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        authority.load_root(ca, None, None)


def test_a_root_key_elsewhere_is_not_overwritten_and_a_failed_init_leaves_none(tmp_path: Path) -> None:
    directory, safe = tmp_path / "ca", tmp_path / "safe"
    directory.mkdir()
    (directory / "issuing.pem").write_bytes(b"precious")
    with pytest.raises(UsageError, match="already there"):
        authority.init(directory, DOMAIN, NOW, root_key_out=safe)
    assert content(directory) == {"issuing.pem": b"precious"}
    assert content(safe) == {}
    (safe / "root.key").write_bytes(b"precious")
    with pytest.raises(UsageError, match="already there"):
        authority.init(tmp_path / "new", DOMAIN, NOW, root_key_out=safe)
    assert content(safe) == {"root.key": b"precious"}
    assert content(tmp_path / "new") == {}


def test_a_new_ca_that_cannot_be_written_leaves_the_old_one_its_key_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, safe = tmp_path / "ca", tmp_path / "safe"
    authority.init(directory, DOMAIN, NOW, root_key_out=safe)
    before = content(directory), content(safe)
    write = files.write

    def fails(where: Path, *rest: Any, **options: Any) -> None:
        if where == directory:
            raise UsageError("the disk is full")
        write(where, *rest, **options)

    with monkeypatch.context() as patched:
        patched.setattr(files, "write", fails)
        with pytest.raises(UsageError, match="the disk is full"):
            authority.init(directory, DOMAIN, NOW, root_key_out=safe, force=True)
    assert (content(directory), content(safe)) == before
    assert stat.S_IMODE((safe / "root.key").stat().st_mode) == 0o600
    authority.init(directory, DOMAIN, NOW, root_key_out=safe, force=True)
    assert content(safe) != before[1]


def test_an_old_root_key_does_not_stay_where_the_new_one_is_kept_elsewhere(ca: Path, tmp_path: Path) -> None:
    before = content(ca)
    with pytest.raises(
        UsageError, match=r"root\.key exists, but the new root's key is to be kept elsewhere: remove that file"
    ):
        authority.init(ca, "other.internal", NOW, force=True, root_key_out=tmp_path / "safe")
    assert content(ca) == before
    (ca / "root.key").unlink()
    authority.init(ca, "other.internal", NOW, force=True, root_key_out=tmp_path / "safe")
    assert authority.load(ca, NOW).trust_domain == "other.internal"


# -- the delegate, and the first bundle --------------------------------------------------------------------------------


def test_a_new_ca_has_a_delegate_and_a_bundle_that_its_root_signed(ca: Path) -> None:
    loaded = authority.load(ca, NOW)
    assert loaded.delegate is not None
    loaded.delegate.certificate.verify_directly_issued_by(loaded.root)
    bundle = documents.read_bundle(authority.bundle_document(ca), DOMAIN, frozenset({loaded.root_digest}), NOW)
    assert (bundle.roots, bundle.active, bundle.distrusted) == (loaded.roots, loaded.root_digest, frozenset())


def test_a_directory_of_an_older_version_issues_and_says_what_it_lacks(ca: Path) -> None:
    (ca / "revocation.pem").unlink()
    (ca / "bundle.json").unlink()
    loaded = authority.load(ca, NOW)
    assert loaded.delegate is None
    assert authority.issue(loaded, "api", NOW)
    with pytest.raises(UsageError, match=r"bundle\.json is missing: .* certs renew-issuing"):
        authority.bundle_document(ca)
    renewed, _ = authority.renew_issuing(ca, NOW)
    assert renewed.delegate is not None
    assert documents.read_kept_bundle(authority.bundle_document(ca), DOMAIN, NOW).roots == loaded.roots


def test_a_delegate_that_does_not_belong_here(ca: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    authority.init(other, DOMAIN, NOW)
    mine, theirs = (ca / "revocation.pem").read_bytes(), (other / "revocation.pem").read_bytes()
    (ca / "revocation.pem").write_bytes(theirs)
    assert "revocation.pem was not signed by a root in" in refusal(ca)
    certificate, key = mine[: mine.index(b"-----BEGIN PRIVATE")], theirs[theirs.index(b"-----BEGIN PRIVATE") :]
    (ca / "revocation.pem").write_bytes(certificate + key)
    assert "its key does not belong to its certificate" in refusal(ca)
    for damaged in (b"", b"junk", certificate, key, mine[:100]):
        (ca / "revocation.pem").write_bytes(damaged)
        assert "revocation.pem is not a " in refusal(ca)
    (ca / "revocation.pem").write_bytes(mine)
    assert authority.load(ca, NOW).delegate, "the twin"
    (ca / "revocation.pem").chmod(0o640)
    assert "chmod 600" in refusal(ca)


# -- a new issuing CA --------------------------------------------------------------------------------------------------


def test_a_new_issuing_ca_takes_the_old_one_s_place(ca: Path) -> None:
    before = authority.load(ca, NOW)
    old = authority.issue(before, "api", NOW)
    later = NOW + 60 * DAY
    made, root = authority.renew_issuing(ca, later)
    assert root.certificate == made.root == before.root
    assert made.issuer.certificate.not_valid_after_utc == later + 90 * DAY
    assert made.issuer.certificate.subject != before.issuer.certificate.subject
    assert made.trust_domain == DOMAIN
    loaded = authority.load(ca, later)
    assert loaded.issuer.certificate == made.issuer.certificate
    assert loaded.delegate is not None
    assert made.delegate is not None
    assert loaded.delegate.certificate == made.delegate.certificate
    assert authority.issue(loaded, "api", later).chain[1] == made.issuer.certificate
    old.chain[1].verify_directly_issued_by(made.root)
    assert sorted(content(ca)) == NAMES, "no issuing.key.next is left"


def test_it_works_when_the_old_one_has_ended_already(ca: Path) -> None:
    late = NOW + 100 * DAY
    assert "expired" in refusal(ca, late)
    authority.renew_issuing(ca, late)
    assert authority.issue(authority.load(ca, late), "api", late)


def test_it_needs_the_root_s_key_and_a_root_that_is_good(ca: Path, tmp_path: Path) -> None:
    before = content(ca)
    key = tmp_path / "root.key"
    (ca / "root.key").rename(key)
    with pytest.raises(UsageError, match="this needs the root's key"):
        authority.renew_issuing(ca, NOW)
    with pytest.raises(UsageError, match=r"root\.pem expired.*certs rotate-root"):
        authority.renew_issuing(ca, NOW + 3651 * DAY, key)
    assert content(ca) == {name: data for name, data in before.items() if name != "root.key"}
    authority.renew_issuing(ca, NOW, key)
    assert (ca / "issuing.pem").read_bytes() != before["issuing.pem"]


@pytest.mark.parametrize("name", ["root.pem", "issuing.pem"])
def test_there_is_none_to_renew_where_there_is_no_ca(ca: Path, name: str) -> None:
    (ca / name).unlink()
    with pytest.raises(UsageError, match=f"holds no CA: {name} missing"):
        authority.renew_issuing(ca, NOW)


def test_the_issuing_certificate_as_it_is(ca: Path, tmp_path: Path) -> None:
    assert authority.issuing_certificate(ca) == authority.load(ca, NOW).issuer.certificate
    with pytest.raises(UsageError, match=r"holds no CA: issuing\.pem missing"):
        authority.issuing_certificate(tmp_path / "none")


class Killed(BaseException):
    """The process ends here."""


def dying(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """From now on the ``at``-th file that gets its name is the last thing that this process does."""
    rename, done = os.rename, 0

    def counted(*arguments: Any, **options: Any) -> None:
        nonlocal done
        done += 1
        if done == at:
            raise Killed
        rename(*arguments, **options)

    monkeypatch.setattr(os, "rename", counted)


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_cut_off_at_any_file_it_can_issue_and_can_be_done_again(
    ca: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    before = authority.load(ca, NOW)
    with monkeypatch.context() as patch:
        dying(patch, at)
        with pytest.raises(Killed):
            authority.renew_issuing(ca, NOW)
    loaded = authority.load(ca, NOW)
    assert (loaded.issuer.certificate == before.issuer.certificate) == (at <= 3), "replacing issuing.pem is what counts"
    issued = authority.issue(loaded, "api", NOW)
    issued.chain[0].verify_directly_issued_by(loaded.issuer.certificate)
    made, _ = authority.renew_issuing(ca, NOW)
    assert authority.load(ca, NOW).issuer.certificate == made.issuer.certificate
    assert sorted(content(ca)) == NAMES


def test_cut_off_before_the_key_that_is_no_longer_needed_is_gone(ca: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            authority.renew_issuing(ca, NOW)
    assert "issuing.key.next" in content(ca)
    assert authority.issue(authority.load(ca, NOW), "api", NOW)
    (ca / "issuing.key").unlink()
    assert authority.issue(authority.load(ca, NOW), "api", NOW), "either name will do"
    (ca / "issuing.key.next").unlink()
    assert "issuing.key missing" in refusal(ca)


@pytest.mark.parametrize("at", range(1, 7))
def test_an_init_that_is_cut_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    with monkeypatch.context() as patch:
        dying(patch, at)
        with pytest.raises(Killed):
            authority.init(tmp_path, DOMAIN, NOW)
    assert content(tmp_path) == {}
    authority.init(tmp_path, DOMAIN, NOW)


# -- warnings ----------------------------------------------------------------------------------------------------------


def test_it_is_said_thirty_days_before_the_issuing_ca_ends(ca: Path) -> None:
    loaded = authority.load(ca, NOW)
    assert authority.soon_over(loaded, NOW) is None
    assert authority.soon_over(loaded, NOW + 60 * DAY - timedelta(seconds=1)) is None
    told = authority.soon_over(loaded, NOW + 60 * DAY)
    assert told is not None
    assert f"valid only until {NOW + 90 * DAY:%FT%TZ}" in told
    assert "certs renew-issuing" in told
