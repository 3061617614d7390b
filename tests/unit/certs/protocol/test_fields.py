"""What a certificate says, in words: every field, escaped and cut."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from certs.protocol.fields import describe_span, read_fields
from tests.beds.certificates import HOUR, SERVER_AUTH, UNKNOWN_CRITICAL, Authority, Credential, rsa_key

MESH = Authority()
NOW = MESH.now
HONEST = MESH.leaf("api", dns=["api"])
MINUTE = timedelta(minutes=1)

NAMES = x509.SubjectAlternativeName(
    [
        x509.UniformResourceIdentifier("spiffe://shop.internal/api"),
        x509.DirectoryName(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "d\n")])),
        x509.RegisteredID(x509.ObjectIdentifier("1.2.3")),
        x509.OtherName(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"),
        x509.RFC822Name("a@b"),
    ]
)


def fields(certificate: x509.Certificate) -> dict[str, str]:
    told, faults = read_fields(certificate, NOW)
    assert not faults
    return dict(told)


def test_an_honest_leaf_in_words() -> None:
    told = fields(HONEST.certificate)
    start, end = NOW - MINUTE, NOW + HOUR
    assert told == {
        "subject": "(empty)",
        "issuer": "'CN=Test mesh issuing'",
        "serial": f"{HONEST.certificate.serial_number:x}",
        "valid": f"{start:%FT%TZ} to {end:%FT%TZ} (expires in 60 min)",
        "key": "ECDSA P-256",
        "names (SAN)": "URI 'spiffe://shop.internal/api', DNS 'api' (critical)",
        "key usage": "digitalSignature (critical)",
        "extended usage": "serverAuth, clientAuth",
        "basic constraints": "cA=false (critical)",
        "name constraints": "none",
        "other extensions": "none",
        "SHA-256": told["SHA-256"],
    }


def test_an_honest_ca_in_words() -> None:
    told = fields(MESH.issuing.certificate)
    assert told["basic constraints"] == "cA=true, path length 0 (critical)"
    assert told["name constraints"] == "only URI 'shop.internal' (critical)"
    assert told["key usage"] == "keyCertSign, cRLSign (critical)"
    assert (
        fields(MESH.ca("x", pathlen=None).certificate)["basic constraints"]
        == "cA=true, path length not limited (critical)"
    )


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"), (59, "59 s"), (60, "1 min"), (7199, "119 min"), (7200, "2 h"), (172799, "47 h"), (172800, "2 days"),
        (729 * 86400, "729 days"), (730 * 86400, "2 years"), (3653 * 86400, "10 years"),
    ],
)  # fmt: skip
def test_spans(seconds: int, words: str) -> None:
    assert describe_span(timedelta(seconds=seconds)) == words


def test_names_of_every_kind() -> None:
    told = fields(MESH.leaf(uris=(), extensions=[(NAMES, True)]).certificate)["names (SAN)"]
    assert "URI 'spiffe://shop.internal/api', directory 'CN=d\\n'" in told
    assert "OID '1.2.3'" in told
    assert "email 'a@b'" in told
    assert told.isprintable()


def test_many_names_are_cut_short() -> None:
    told = fields(MESH.leaf(dns=[f"d{number}" for number in range(500)]).certificate)["names (SAN)"]
    assert "and 481 more" in told
    assert len(told) < 1000


def test_other_extensions_and_usages() -> None:
    odd = MESH.leaf(extensions=[UNKNOWN_CRITICAL], eku=(SERVER_AUTH, x509.ObjectIdentifier("1.2.3")), key_usage=None)
    told = fields(odd.certificate)
    assert told["other extensions"] == "1.3.6.1.4.1.55555.1 (critical)"
    assert told["extended usage"] == "serverAuth, 1.2.3"
    assert told["key usage"] == "none"
    assert fields(MESH.leaf(ca=None, eku=None, uris=()).certificate)["basic constraints"] == "none"
    assert fields(MESH.leaf(ca=None, eku=None, uris=()).certificate)["extended usage"] == "none"
    assert fields(MESH.leaf(uris=()).certificate)["names (SAN)"] == "none"


def test_excluded_names() -> None:
    excluded = x509.NameConstraints(None, [x509.DNSName("evil.example")])
    told = fields(MESH.ca("x", permitted=(), extensions=[(excluded, True)]).certificate)
    assert told["name constraints"] == "never DNS 'evil.example' (critical)"


@pytest.mark.parametrize(
    ("credential", "words"),
    [
        (MESH.leaf(key=rsa_key(1024)), "RSA 1024"),
        (MESH.leaf(key=ed25519.Ed25519PrivateKey.generate()), "Ed25519"),
        (MESH.leaf(key=ec.generate_private_key(ec.SECP384R1())), "ECDSA P-384"),
        (MESH.leaf(key=ec.generate_private_key(ec.SECP256K1())), "ECDSA secp256k1"),
    ],
)
def test_keys(credential: Credential, words: str) -> None:
    assert fields(credential.certificate)["key"] == words
