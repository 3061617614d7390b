"""Keys and certificates in PEM: what was written is read, and whatever else is in a file is named."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from certs.authority import authority, pemfiles
from sidecar.identity.reasons import UsageError
from tests.beds.certificates import rsa_key

NOW = datetime.now(UTC).replace(microsecond=0)
MADE = authority.make("shop.internal", NOW)
FILE = Path("ca/file.pem")


@pytest.mark.parametrize("passphrase", [None, b"correct horse"])
def test_a_key_is_read_as_it_was_written(passphrase: bytes | None) -> None:
    written = pemfiles.key_pem(MADE.root.key, passphrase)
    assert (b"ENCRYPTED" in written) is (passphrase is not None)
    read = pemfiles.private_key(FILE, written, passphrase)
    assert read.private_numbers() == MADE.root.key.private_numbers()


def test_certificates_are_read_as_they_were_written() -> None:
    both = MADE.root.certificate, MADE.issuing.certificate
    assert tuple(pemfiles.certificates(FILE, pemfiles.pem(*both))) == both


def test_a_delegate_is_both() -> None:
    written = pemfiles.delegate_pem(MADE.delegate)
    assert pemfiles.certificates(FILE, written) == [MADE.delegate.certificate]
    assert pemfiles.private_key(FILE, written).public_key() == MADE.delegate.certificate.public_key()


_RSA = rsa_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    ("content", "passphrase", "why"),
    [
        (b"", None, "is not a private key in PEM"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", None, "is not a private key in PEM"),
        (pemfiles.key_pem(MADE.root.key, b"correct horse"), None, "its passphrase was not given"),
        (pemfiles.key_pem(MADE.root.key, b"correct horse"), b"wrong horse", "cannot be read with this passphrase"),
        (pemfiles.key_pem(MADE.root.key), b"correct horse", "is not encrypted, and a passphrase was given"),
        (_RSA, None, "is not an ECDSA key"),
    ],
)
def test_what_is_no_key_of_ours(content: bytes, passphrase: bytes | None, why: str) -> None:
    with pytest.raises(UsageError, match=why) as refused:
        pemfiles.private_key(FILE, content, passphrase)
    assert str(refused.value).startswith(str(FILE))


@pytest.mark.parametrize("content", [b"", b"garbage", pemfiles.key_pem(MADE.root.key)])
def test_what_is_no_certificate(content: bytes) -> None:
    with pytest.raises(UsageError, match=r"^ca/file\.pem is not a certificate in PEM"):
        pemfiles.certificates(FILE, content)


def test_validity_at_both_ends_to_the_second() -> None:
    one = MADE.issuing.certificate
    first, end, second = one.not_valid_before_utc, one.not_valid_after_utc, timedelta(seconds=1)
    pemfiles.check_valid(FILE, one, first, "mend")
    pemfiles.check_valid(FILE, one, end - second, "mend")
    with pytest.raises(UsageError, match="is this machine's clock right"):
        pemfiles.check_valid(FILE, one, first - second, "mend")
    with pytest.raises(UsageError, match=r"expired: .* Make a new one: mend"):
        pemfiles.check_valid(FILE, one, end, "mend")


def test_the_trust_domain_is_the_name_constraint_s() -> None:
    assert pemfiles.trust_domain_of(FILE, MADE.issuing.certificate) == "shop.internal"
    with pytest.raises(UsageError, match="has no name constraint"):
        pemfiles.trust_domain_of(FILE, MADE.root.certificate)


def constrained(*permitted: x509.GeneralName, critical: bool = True) -> x509.Certificate:
    extension = x509.NameConstraints(permitted, None)
    builder = x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(x509.Name([])).serial_number(1)
    builder = (
        builder.not_valid_before(NOW).not_valid_after(NOW + timedelta(days=1)).public_key(MADE.issuing.key.public_key())
    )
    return builder.add_extension(extension, critical).sign(MADE.issuing.key, SHA256())


SHOP, BANK = (x509.UniformResourceIdentifier(name) for name in ("shop.internal", "bank.internal"))


@pytest.mark.parametrize(
    "bound",
    [
        constrained(SHOP, critical=False),
        constrained(SHOP, BANK),
        constrained(x509.UniformResourceIdentifier("Shop.internal")),
        constrained(x509.DNSName("shop.internal")),
    ],
    ids=["not critical", "two", "no trust domain", "no URI"],
)
def test_what_binds_to_no_one_trust_domain(bound: x509.Certificate) -> None:
    assert pemfiles.trust_domain_of(FILE, constrained(SHOP)) == "shop.internal"
    with pytest.raises(UsageError, match="is not bound to one trust domain"):
        pemfiles.trust_domain_of(FILE, bound)
