"""Our own certificate, key and bundle: whatever would make every peer refuse us is said before anything is served."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519

from sidecar.agent import credentials
from sidecar.agent.credentials import MAX_FILE_BYTES, Credentials
from sidecar.identity.judge import VerifyParams
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import SpiffeId
from sidecar.transport import tls
from tests.beds.certificates import DAY, HOUR, Authority, Credential, Key, pem, rsa_key

MESH = Authority()
NOW = MESH.now
API = SpiffeId("shop.internal", ("api",))
TERMS = VerifyParams("shop.internal", API)
HONEST = MESH.leaf("api")

CERTIFICATE, KEY, BUNDLE = "certificate.pem", "key.pem", "bundle.pem"


def load(directory: Path, params: VerifyParams = TERMS, now: datetime = NOW) -> Credentials:
    return credentials.load(directory / CERTIFICATE, directory / KEY, directory / BUNDLE, params, now)


def mistake(directory: Path, params: VerifyParams = TERMS, now: datetime = NOW) -> str:
    with pytest.raises(UsageError) as error:
        load(directory, params, now)
    return str(error.value)


@pytest.fixture
def honest(tmp_path: Path) -> Path:
    return HONEST.write(tmp_path / "api")


def test_honest_files_are_loaded(honest: Path) -> None:
    loaded = load(honest)
    assert loaded.svid.id == API
    assert loaded.keys.chain == HONEST.chain
    assert loaded.keys.roots == MESH.roots
    assert loaded.keys.key.public_key() == HONEST.certificate.public_key()


def test_our_own_identity_must_be_known() -> None:
    with pytest.raises(ValueError, match=r"params\.expected"):
        load(Path(), VerifyParams("shop.internal"))


# -- files that cannot be read -----------------------------------------------------------------------------------------

Bend = Callable[[Path], object]


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


UNREADABLE: list[tuple[str, Bend, str]] = [
    ("missing", lambda path: path.unlink(), "No such file"),
    ("directory", make_directory, "a directory, where the"),
    ("fifo", make_fifo, "not a regular file"),
    ("empty", lambda path: path.write_bytes(b""), "is empty"),
    ("blank", lambda path: path.write_bytes(b" \n\n"), "is empty"),
    ("garbage", lambda path: path.write_bytes(b"\x00\xff certainly not PEM \x1b[2J"), "no PEM"),
    ("too large", lambda path: path.write_bytes(b"#" * (MAX_FILE_BYTES + 1)), f"more than {MAX_FILE_BYTES} bytes"),
    ("cut short", lambda path: path.write_bytes(path.read_bytes()[:100]), "no PEM"),
    ("not base64", lambda path: path.write_bytes(path.read_bytes().replace(b"M", b"!")), "no PEM"),
]


@pytest.mark.parametrize("name", [CERTIFICATE, KEY, BUNDLE])
@pytest.mark.parametrize(("bend", "expected"), [case[1:] for case in UNREADABLE], ids=[case[0] for case in UNREADABLE])
def test_a_file_that_cannot_be_read_is_named(honest: Path, name: str, bend: Bend, expected: str) -> None:
    bend(honest / name)
    said = mistake(honest)
    assert said.startswith(f"{honest / name}: ")
    assert expected in said
    assert said.isprintable()


@pytest.mark.parametrize("name", [CERTIFICATE, KEY, BUNDLE])
def test_a_file_that_may_not_be_read_is_named(honest: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a fault injected where files are opened, because root may read everything."""
    real = os.open

    def refuse(path: Path, *arguments: Any, **options: Any) -> int:
        if Path(path).name == name:
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    said = mistake(honest)
    assert said.startswith(f"{honest / name}: cannot read the ")
    assert said.endswith("Permission denied")


@pytest.mark.parametrize("size", [MAX_FILE_BYTES, MAX_FILE_BYTES + 1])
def test_a_file_as_large_as_may_be(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"#" * size)
    if size == MAX_FILE_BYTES:
        assert len(credentials.read_file(path, "key")) == size
    else:
        with pytest.raises(UsageError, match="more than"):
            credentials.read_file(path, "key")


def test_a_name_that_no_file_can_have(honest: Path) -> None:
    with pytest.raises(UsageError, match="not a file name"):
        credentials.load(honest / "a\0b", honest / KEY, honest / BUNDLE, TERMS, NOW)


def test_a_symlink_to_the_files_is_followed(honest: Path, tmp_path: Path) -> None:
    """As Kubernetes and certbot lay them out."""
    links = tmp_path / "live"
    links.mkdir()
    for name in (CERTIFICATE, KEY, BUNDLE):
        (links / name).symlink_to(honest / name)
    assert load(links).svid.id == API


# -- keys --------------------------------------------------------------------------------------------------------------


def test_an_encrypted_key(honest: Path) -> None:
    encryption = serialization.BestAvailableEncryption(b"passphrase")
    for form in (serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL):
        (honest / KEY).write_bytes(HONEST.key.private_bytes(serialization.Encoding.PEM, form, encryption))
        said = mistake(honest)
        assert said.startswith(f"{honest / KEY}: ")
        assert "encrypted" in said


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620, 0o644, 0o777, 0o601])
def test_a_key_that_others_can_read(honest: Path, mode: int) -> None:
    (honest / KEY).chmod(mode)
    said = mistake(honest)
    assert f"mode {mode:04o}" in said
    assert f"chmod 600 {honest / KEY}" in said


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_key_that_only_its_owner_can_read(honest: Path, mode: int) -> None:
    (honest / KEY).chmod(mode)
    assert load(honest).svid.id == API


def test_the_key_of_another_certificate(honest: Path) -> None:
    (honest / KEY).write_bytes(MESH.leaf("api").key_pem)
    said = mistake(honest)
    assert "does not belong to the certificate" in said
    assert str(honest / CERTIFICATE) in said


def test_a_key_of_a_kind_that_tls_has_no_use_for(honest: Path) -> None:
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (honest / KEY).write_bytes(
        dsa.generate_private_key(1024).private_bytes(serialization.Encoding.PEM, *plain)  # noqa: S505 (on purpose)
    )
    assert "P-256" in mistake(honest)


@pytest.mark.parametrize("bits", [1024, 2048])
def test_an_rsa_key_needs_2048_bits(tmp_path: Path, bits: int) -> None:
    check_strength(tmp_path, rsa_key(bits), strong=bits >= 2048)


@pytest.mark.parametrize(
    ("curve", "strong"),
    [(ec.SECP256R1, True), (ec.SECP384R1, True), (ec.SECP521R1, True), (ec.SECP256K1, False), (ec.SECP192R1, False)],
)
def test_a_curve_must_be_one_of_tls_1_3(tmp_path: Path, curve: type[ec.EllipticCurve], strong: bool) -> None:
    check_strength(tmp_path, ec.generate_private_key(curve()), strong=strong)


def test_an_ed25519_key_is_fine(tmp_path: Path) -> None:
    check_strength(tmp_path, ed25519.Ed25519PrivateKey.generate(), strong=True)


def test_a_dsa_key_is_weak_however_long() -> None:
    key: Any = dsa.generate_private_key(2048)
    with pytest.raises(UsageError, match=r"TLS 1\.3 peers refuse"):
        credentials._check_strength(MESH.leaf("api", key=key).certificate, Path("bundle.pem"))


def check_strength(directory: Path, key: Key, *, strong: bool) -> None:
    MESH.leaf("api", key=key).write(directory)
    if strong:
        tls.Context(load(directory).keys, TERMS)  # and OpenSSL agrees
    else:
        assert "TLS 1.3 peers refuse" in mistake(directory)


def test_a_weak_key_above_ours_is_refused_too(tmp_path: Path) -> None:
    weak = MESH.ca("weak", key=rsa_key(1024))
    MESH.leaf("api", signer=weak).write(tmp_path)
    assert "TLS 1.3 peers refuse" in mistake(tmp_path)


# -- certificates ------------------------------------------------------------------------------------------------------


def refused(tmp_path: Path, credential: Credential) -> str:
    """What is said of a certificate; what to do about it is always part of it."""
    directory = credential.write(tmp_path / "api")
    said = mistake(directory)
    assert said.startswith(f"{directory / CERTIFICATE}: ")
    assert f"certs issue CA_DIR api --out {directory} --force" in said
    return said


def test_an_expired_certificate_says_until_when_it_was_good(tmp_path: Path) -> None:
    said = refused(tmp_path, MESH.leaf("api", not_before=NOW - 2 * HOUR, not_after=NOW - HOUR))
    assert "expired" in said
    assert f"{NOW - HOUR:%F %T}" in said


def test_it_is_good_to_its_last_second(honest: Path) -> None:
    until = HONEST.certificate.not_valid_after_utc
    assert load(honest, now=until).svid.id == API
    assert "expired" in mistake(honest, now=until + timedelta(seconds=1))


def test_and_from_its_first_second(honest: Path) -> None:
    since = HONEST.certificate.not_valid_before_utc
    assert load(honest, now=since).svid.id == API
    assert "good only from" in mistake(honest, now=since - timedelta(seconds=1))


def test_a_certificate_of_tomorrow_asks_for_the_clock(tmp_path: Path) -> None:
    leaf = MESH.leaf("api", not_before=NOW + HOUR, not_after=NOW + 2 * HOUR)
    said = mistake(leaf.write(tmp_path))
    assert "clock" in said
    assert f"{NOW + HOUR:%F %T}" in said
    assert f"{NOW:%F %T}" in said


def test_a_certificate_of_another_service(tmp_path: Path) -> None:
    said = refused(tmp_path, MESH.leaf("web"))
    assert "spiffe://shop.internal/web" in said
    assert "spiffe://shop.internal/api" in said


def test_a_certificate_of_another_trust_domain(tmp_path: Path) -> None:
    assert "bank.internal" in refused(tmp_path, Authority("bank.internal", now=NOW).leaf("api"))


@pytest.mark.parametrize("uris", [(), ("https://shop.internal/api",), ("spiffe://shop.internal/api", "spiffe://x/y")])
def test_a_certificate_that_is_no_svid(tmp_path: Path, uris: tuple[str, ...]) -> None:
    assert "not usable as this service's identity" in refused(tmp_path, MESH.leaf("api", uris=uris))


def test_a_certificate_that_lives_too_long(tmp_path: Path) -> None:
    assert "max_leaf_ttl" in refused(tmp_path, MESH.leaf("api", lifetime=7 * DAY))


def test_a_chain_without_its_issuer(tmp_path: Path) -> None:
    assert "trust bundle" in refused(tmp_path, HONEST.sending(HONEST.certificate))


def test_a_chain_whose_issuer_has_expired(tmp_path: Path) -> None:
    assert "expired" in refused(tmp_path, Authority(now=NOW, age=91 * DAY).leaf("api"))


# -- bundles -----------------------------------------------------------------------------------------------------------


def test_a_bundle_that_does_not_verify_our_certificate(honest: Path) -> None:
    (honest / BUNDLE).write_bytes(Authority(now=NOW).bundle_pem)
    assert "does not verify against our trust bundle" in mistake(honest)


def test_a_bundle_with_two_roots_is_fine_while_one_of_them_is_ours(honest: Path) -> None:
    (honest / BUNDLE).write_bytes(Authority(now=NOW).bundle_pem + MESH.bundle_pem)
    assert len(load(honest).keys.roots) == 2


@pytest.mark.parametrize("ca", [False, None])
def test_a_bundle_with_a_leaf_in_it(honest: Path, ca: bool | None) -> None:
    leaf = MESH.leaf("web", ca=ca).certificate
    (honest / BUNDLE).write_bytes(pem(MESH.root.certificate, leaf))
    said = mistake(honest)
    assert said.startswith(f"{honest / BUNDLE}: ")
    assert "not a CA certificate" in said


def test_an_intermediate_is_no_anchor(honest: Path) -> None:
    (honest / BUNDLE).write_bytes(pem(MESH.issuing.certificate))
    assert "does not verify against our trust bundle" in mistake(honest)
