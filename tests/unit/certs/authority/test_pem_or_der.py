"""Certificates are read whole, and whatever else is in a file is named and never shown."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from certs.authority.pem_or_der import read
from sidecar.identity.reasons import UsageError
from tests.beds.certificates import Authority, ec_key, pem

MESH = Authority()
HONEST = MESH.leaf("api", dns=["api"])


@pytest.mark.parametrize(
    "data",
    [
        HONEST.chain_pem,
        b"# a comment\n\n" + HONEST.chain_pem.replace(b"\n", b"\r\n") + b"\ntrailing words\n",
        HONEST.key_pem + HONEST.chain_pem,
    ],
    ids=["PEM", "PEM with words around it", "PEM with its key"],
)
def test_a_chain_in_pem(data: bytes) -> None:
    assert tuple(read(data)) == HONEST.chain


def test_a_certificate_in_der() -> None:
    assert read(HONEST.der) == [HONEST.certificate]


def _key(encoding: serialization.Encoding, password: bytes | None = None) -> bytes:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return ec_key().private_bytes(encoding, serialization.PrivateFormat.PKCS8, encryption)


UNUSABLE = {
    "empty": (b"", "empty"),
    "blank": (b" \n\t\n", "empty"),
    "garbage": (b"\x00\xff garbage", "neither PEM nor DER"),
    "text": (b"hello\n", "neither PEM nor DER"),
    "a key": (HONEST.key_pem, "a private key, not a certificate"),
    "an encrypted key": (_key(serialization.Encoding.PEM, b"x"), "a private key, not a certificate"),
    "a key in DER": (_key(serialization.Encoding.DER), "a private key, not a certificate"),
    "an encrypted key in DER": (_key(serialization.Encoding.DER, b"x"), "a private key, not a certificate"),
    "a request": (
        b"-----BEGIN CERTIFICATE REQUEST-----\nAA==\n-----END CERTIFICATE REQUEST-----\n",
        "only CERTIFICATE REQUEST",
    ),
    "truncated PEM": (HONEST.chain_pem[:-100], "cut off or damaged: a PEM block"),
    "truncated first": (pem(HONEST.certificate)[:-30] + pem(MESH.issuing.certificate), "cut off or damaged"),
    "PEM of garbage": (
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "certificate 1 of 1 in it is damaged",
    ),
    "no base64": (
        b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
        "certificate 1 of 1 in it is damaged",
    ),
    "the second damaged": (
        pem(HONEST.certificate) + pem(HONEST.certificate).replace(b"MI", b"AA", 1),
        "certificate 2 of 2",
    ),
    "truncated DER": (HONEST.der[:-1], "neither PEM nor DER"),
    "DER and more": (HONEST.der + b"\0", "neither PEM nor DER"),
    "an end alone": (b"-----END CERTIFICATE-----\n" + HONEST.chain_pem, "cut off or damaged"),
    "two begins": (b"-----BEGIN CERTIFICATE-----\n" + HONEST.chain_pem, "cut off or damaged"),
    "an end of another kind": (HONEST.der + b"-----BEGIN A-----\n-----END B-----\n", "cut off or damaged"),
    "many blocks of nothing": (b"-----BEGIN A-----" * 30_000 + b"-----END B-----" * 30_000, "cut off or damaged"),
    "large": (b"x" * (1024 * 1024 + 1), "larger than 1024 KiB"),
    "many": (pem(HONEST.certificate) * 257, "257 certificates in it; at most 256"),
}


@pytest.mark.parametrize(("data", "why"), UNUSABLE.values(), ids=UNUSABLE)
def test_what_is_no_certificate_is_named(data: bytes, why: str) -> None:
    with pytest.raises(UsageError) as refused:
        read(data)
    assert why in str(refused.value)
    assert str(refused.value).isprintable()
    body = HONEST.key_pem.splitlines()[1].decode()
    assert body not in str(refused.value)


@given(st.binary(max_size=200))
def test_reading_never_raises_anything_else(data: bytes) -> None:
    for given_bytes in (data, b"-----BEGIN CERTIFICATE-----" + data, b"-----BEGIN EC PRIVATE KEY-----" + data):
        with pytest.raises(UsageError):
            read(given_bytes)
