"""What a certificate is said to be: every rule told, nothing raised, nothing printed that was not escaped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtensionOID
from hypothesis import given
from hypothesis import strategies as st

from certs.authority.pem_or_der import read
from certs.protocol.inspection import Report, as_json, as_text, ca_faults, examine, is_signed_by
from sidecar.identity.reasons import UsageError
from tests.beds.certificates import (
    CA_USAGE,
    DAY,
    HOUR,
    SERVER_AUTH,
    Authority,
    Credential,
    der,
    raw,
    raw_names,
    usage,
)

MESH = Authority()
NOW = MESH.now
HONEST = MESH.leaf("api", dns=["api"])
MINUTE = timedelta(minutes=1)


def report(*certificates: x509.Certificate) -> Report:
    return examine(certificates, NOW)


def faults(*certificates: x509.Certificate, of: int = 0) -> Sequence[str]:
    return report(*certificates).accounts[of].faults


def fields(certificate: x509.Certificate) -> dict[str, str]:
    return dict(report(certificate).accounts[0].fields)


# -- the honest ones ---------------------------------------------------------------------------------------------------


def test_the_honest_chain_keeps_every_rule() -> None:
    told = report(*HONEST.chain, MESH.root.certificate)
    assert told.is_clean
    assert [account.role for account in told.accounts] == ["leaf", "CA", "CA"]
    assert told.accounts[0].spiffe_id == "spiffe://shop.internal/api"
    assert [dict(account.fields)["signed by"] for account in told.accounts] == [
        "certificate 2",
        "certificate 3",
        "itself",
    ]


def test_a_bundle_of_roots_is_no_chain() -> None:
    assert report(MESH.root.certificate, Authority(now=NOW).root.certificate, MESH.issuing.certificate).is_clean


def test_the_account_for_people() -> None:
    text = as_text(report(*HONEST.chain))
    assert text.isascii()
    lines = text.splitlines()
    assert lines[0] == "-: certificate 1 of 2 (leaf)"
    assert lines[1] == "  SPIFFE ID:         spiffe://shop.internal/api"
    assert text.count("  rules:             all kept") == 2
    broken = as_text(report(MESH.leaf(uris=(), eku=(SERVER_AUTH,)).certificate))
    assert "  SPIFFE ID:         none" in broken
    assert "  BROKEN RULE:       its ExtendedKeyUsage lacks clientAuth" in broken
    assert "all kept" not in broken


def test_the_account_for_programs() -> None:
    (document,) = json.loads(as_json([report(*HONEST.chain)]))
    leaf, issuing = document["certificates"]
    assert (leaf["spiffe_id"], leaf["faults"], leaf["fields"]["key"]) == (
        "spiffe://shop.internal/api",
        [],
        "ECDSA P-256",
    )
    assert (issuing["role"], issuing["spiffe_id"]) == ("CA", None)


# -- broken rules of a leaf --------------------------------------------------------------------------------------------


def test_every_broken_rule_of_a_leaf_is_told() -> None:
    worst = MESH.leaf(
        uris=["spiffe://shop.internal/api", "https://x"], ca=True, key_usage=None, eku=None,
        not_before=NOW - 10 * 366 * DAY, not_after=NOW - HOUR,
    )  # fmt: skip
    assert report(worst.certificate).accounts[0].role == "leaf", "it names a workload, so it is one that breaks a rule"
    assert faults(worst.certificate) == (
        "it is a CA certificate (cA=true)",
        "it has no KeyUsage",
        "it has no ExtendedKeyUsage",
        "it has 2 URI names; an SVID has exactly one",
        "it is valid for 10 years, and a leaf for at most 25 h (max_leaf_ttl, unless the mesh says otherwise)",
        "it has expired",
    )


def test_lifetimes() -> None:
    start = NOW - MINUTE
    assert faults(MESH.leaf(not_before=start, not_after=start + 25 * HOUR).certificate) == ()
    assert "25 h" in faults(MESH.leaf(not_before=start, not_after=start + 25 * HOUR + MINUTE).certificate)[0]


@pytest.mark.parametrize(
    ("start", "end", "state", "broken"),
    [
        (-MINUTE, 43 * MINUTE, "expires in 43 min", ()),
        (-MINUTE, timedelta(0), "expires in 0 s", ()),
        (timedelta(0), HOUR, "expires in 60 min", ()),
        (-3 * HOUR, -2 * HOUR, "expired 2 h ago", ("it has expired",)),
        (5 * MINUTE, HOUR, "valid in 5 min", ("it is not valid yet",)),
    ],
)
def test_time(start: timedelta, end: timedelta, state: str, broken: tuple[str, ...]) -> None:
    certificate = MESH.leaf(not_before=NOW + start, not_after=NOW + end).certificate
    assert f"({state})" in fields(certificate)["valid"]
    assert faults(certificate) == broken


# -- broken rules of a CA ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bent", "fault"),
    [
        (MESH.ca("x", key_usage=None), "it has no KeyUsage"),
        (MESH.ca("x", key_usage=usage("crl_sign")), "its KeyUsage lacks keyCertSign"),
        (
            MESH.ca("x", key_usage=None, extensions=[(CA_USAGE, False)]),
            "its KeyUsage is not critical",
        ),
        (
            MESH.ca(
                "x", permitted=(),
                extensions=[(x509.NameConstraints([x509.UniformResourceIdentifier("shop.internal")], None), False)],
            ),
            "its NameConstraints are not critical",
        ),
        (
            MESH.leaf(uris=(), ca=None, key_usage=CA_USAGE, eku=None, extensions=[(x509.BasicConstraints(True, 0), False)]),
            "its BasicConstraints are not critical",
        ),
    ],
)  # fmt: skip
def test_a_ca_that_breaks_a_rule(bent: Credential, fault: str) -> None:
    assert ca_faults(bent.certificate) == [fault]
    assert faults(bent.certificate) == (fault,)
    assert not report(bent.certificate).is_clean


def test_a_leaf_is_no_ca() -> None:
    assert "it is not a CA certificate (cA is not true)" in ca_faults(HONEST.certificate)
    assert "it is not a CA certificate (cA is not true)" in ca_faults(MESH.leaf(ca=None).certificate)
    assert ca_faults(MESH.issuing.certificate) == ca_faults(MESH.root.certificate) == []


def test_an_expired_ca() -> None:
    assert faults(Authority(age=91 * DAY).issuing.certificate) == ("it has expired",)


# -- chains ------------------------------------------------------------------------------------------------------------


def test_a_chain_out_of_order() -> None:
    leaf, issuing, root = HONEST.certificate, MESH.issuing.certificate, MESH.root.certificate
    assert "out of order: certificate 3 signed it" in faults(leaf, root, issuing)[0]
    assert "out of order: certificate 2 signed it" in faults(leaf, root, issuing, of=2)[0]


def test_junk_in_a_chain() -> None:
    junk = Authority().issuing.certificate
    assert faults(HONEST.certificate, junk) == ("it is not signed by certificate 2, which follows it in the chain",)
    assert faults(*HONEST.chain, junk, of=1) == ("it is not signed by certificate 3, which follows it in the chain",)


def test_a_ca_of_the_same_name_with_another_key_signed_nothing() -> None:
    assert not is_signed_by(HONEST.certificate, Authority().issuing.certificate)
    assert is_signed_by(HONEST.certificate, MESH.issuing.certificate)


def test_a_self_signed_leaf() -> None:
    assert faults(MESH.leaf(self_signed=True).certificate) == ("it is self-signed, so no CA vouches for it",)


def test_a_path_that_is_too_long() -> None:
    below = MESH.ca("below", signer=MESH.issuing)
    leaf = MESH.leaf(signer=below)
    assert faults(*leaf.chain, of=1) == ("CAs below certificate 3: 1; its path length allows 0",)
    unlimited = MESH.ca("unlimited", pathlen=None)
    assert report(*MESH.leaf(signer=MESH.ca("below", signer=unlimited)).chain).is_clean


def test_a_leaf_signed_by_a_leaf() -> None:
    told = report(*MESH.leaf(signer=MESH.leaf("web", cn="web")).chain)
    assert [account.role for account in told.accounts] == ["leaf", "leaf", "CA"]
    assert told.accounts[0].faults == ("certificate 2 signed it and is not a CA",)


def test_a_signer_that_cannot_be_read() -> None:
    odd = MESH.ca("odd", key_usage=None, extensions=[raw(ExtensionOID.KEY_USAGE, b"\xff")])
    assert faults(*MESH.leaf(signer=odd).chain) == ("certificate 2 signed it and is not a CA",)


# -- attacker's certificates -------------------------------------------------------------------------------------------

_EVIL = "\x1b[2J\n\u202e"


def test_attacker_s_text_is_escaped() -> None:
    evil = MESH.leaf(
        cn="x\x1b[2J\nBROKEN", raw_san=raw_names(uris=[_EVIL.encode()], dns=[b"\x1b]0;x\x07"], emails=[b"\n"])
    )
    text = as_text(report(evil.certificate))
    assert all(line.isascii() and line.isprintable() for line in text.splitlines())
    assert "\\x1b" in text
    assert len(text.splitlines()) == len(as_text(report(MESH.leaf(uris=(), cn="x").certificate)).splitlines())


@pytest.mark.parametrize(
    "bent",
    [
        MESH.leaf(raw_san=b"\x30\x03\x86\x7f\x00"),
        MESH.leaf(eku=None, extensions=[raw(ExtensionOID.EXTENDED_KEY_USAGE, b"\x30\x05\x06")]),
        MESH.leaf(corrupt=(b"\x06\x03\x55\x1d\x23", b"\x06\x03\x55\x1d\x0e")),
        MESH.ca("x", key_usage=None, extensions=[raw(ExtensionOID.KEY_USAGE, b"\xff")]),
    ],
    ids=["SAN", "EKU", "an extension twice", "a CA's KeyUsage"],
)
def test_malformed_extensions_are_faults_and_hide_nothing_else(bent: Credential) -> None:
    account = report(bent.certificate).accounts[0]
    told = dict(account.fields)
    assert told["names (SAN)"].startswith("cannot be read")
    assert told["key"] == "ECDSA P-256"
    assert any("extensions cannot be read" in fault for fault in account.faults)
    assert ca_faults(bent.certificate)[0].startswith("its extensions cannot be read")


def test_an_unknown_key_is_a_fault() -> None:
    curve, unknown = der(0x06, bytes.fromhex("2a8648ce3d030107")), der(0x06, bytes.fromhex("2a8648ce3d030177"))
    bent = MESH.leaf(corrupt=(curve, unknown))
    assert fields(bent.certificate)["key"].startswith("cannot be read")
    assert "its key cannot be read" in faults(bent.certificate)


@given(st.lists(st.tuples(st.integers(0, len(HONEST.der) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_certificate_never_raises(damage: list[tuple[int, int]]) -> None:
    damaged = bytearray(HONEST.der)
    for at, byte in damage:
        damaged[at] = byte
    try:
        certificates = read(bytes(damaged))
    except UsageError:
        return
    text = as_text(report(*certificates))
    assert all(line.isascii() and line.isprintable() for line in text.splitlines())


@given(
    st.sampled_from([oid for oid in vars(ExtensionOID).values() if isinstance(oid, x509.ObjectIdentifier)]),
    st.binary(max_size=30) | st.builds(der, st.sampled_from([0x03, 0x04, 0x30, 0x31]), st.binary(max_size=20)),
)
def test_an_extension_of_any_bytes_never_raises(oid: x509.ObjectIdentifier, content: bytes) -> None:
    bent = MESH.leaf(
        uris=(), ca=None, key_usage=None, eku=None, key_ids=False, cn="x", extensions=[raw(oid, content)]
    ).certificate
    assert not report(bent, bent).is_clean
