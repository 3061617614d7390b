"""Who a certificate says its holder is: ATTACKS' first table at the pure level, each refusal beside its honest twin."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtensionOID

from sidecar.identity.spiffe import (
    MAX_CLAIMS_BYTES,
    InvalidIdentityError,
    SpiffeId,
    claims,
    is_segment,
    is_trust_domain,
    parse_spiffe_id,
    parse_svid,
    shown,
    svid_faults,
)
from tests.beds.certificates import (
    ANY_EKU,
    CLIENT_AUTH,
    SERVER_AUTH,
    Authority,
    Credential,
    ec_key,
    raw,
    raw_names,
    usage,
)

API = "spiffe://shop.internal/api"
MESH = Authority()


# -- SPIFFE IDs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "service"),
    [
        (API, "api"),
        ("spiffe://shop.internal/a", "a"),
        ("spiffe://s/api", "api"),
        ("spiffe://shop_1.internal-2/API.v2_x-y", "API.v2_x-y"),
        ("spiffe://shop.internal/...", "..."),
        ("spiffe://shop.internal/.a", ".a"),
        ("spiffe://shop.internal/mesh/ca", None),
        ("spiffe://shop.internal/a/b/c", None),
        (f"spiffe://{'d' * 255}/api", "api"),
        ("spiffe://t/" + "a" * 2037, "a" * 2037),
    ],
)
def test_a_spiffe_id_is_read_as_it_is_written(text: str, service: str | None) -> None:
    read = parse_spiffe_id(text)
    assert (str(read), read.service) == (text, service)


@pytest.mark.parametrize(
    "text",
    [
        "", "api", "spiffe:", "spiffe:/", "spiffe://", "spiffe:///", "spiffe:///api",
        "SPIFFE://shop.internal/api", "Spiffe://shop.internal/api", "https://shop.internal/api", "spiffe:/shop.internal/api",
        "spiffe://shop.internal", "spiffe://shop.internal/",
        "spiffe://Shop.internal/api", "spiffe://shop.internal:8443/api", "spiffe://user@shop.internal/api",
        "spiffe://shop internal/api", "spiffe://shöp.internal/api", "spiffe://[::1]/api", f"spiffe://{'d' * 256}/api",
        API + "/", "spiffe://shop.internal//api", "spiffe://shop.internal/./api", "spiffe://shop.internal/../api",
        "spiffe://shop.internal/web/../api", "spiffe://shop.internal/.", "spiffe://shop.internal/..",
        API + "?x=1", API + "#x", "spiffe://shop.internal/a%70i", "spiffe://shop.internal/api%00", API + ";x", API + ":x",
        API + "\0", API + "\0.evil.example", API + "\n", API + "\r\n", "\n" + API, " " + API, API + " ", API + "\t",
        "spiffe://shop.internal\n/api", API + ", URI:spiffe://shop.internal/web", API + "," + API,
        "spiffe://shop.internal/аpi", "spiffe://shop.internal/ａｐｉ", "spiffe://shop.internal/api\u200b",
        "spiffe://shop.internal\u2024x/api",
        "spiffe://shop.internal/\ud800", "spiffe://shop.internal\\api", "spiffe://shop.internal/*",
        "spiffe://t/" + "a" * 2038, "spiffe://t/" + "é" * 1100,
    ],
)  # fmt: skip
def test_what_is_outside_the_grammar_is_refused(text: str) -> None:
    with pytest.raises(InvalidIdentityError):
        parse_spiffe_id(text)


def test_ids_that_differ_in_one_byte_are_different() -> None:
    assert parse_spiffe_id(API) == SpiffeId("shop.internal", ("api",))
    for other in ("spiffe://shop.internal/Api", "spiffe://shop.internal/api-", "spiffe://shop.internax/api"):
        assert parse_spiffe_id(other) != parse_spiffe_id(API)
    assert SpiffeId("a", ("b", "c")) != SpiffeId("a", ("b/c",))


@pytest.mark.parametrize("name", ["api", "a", "web-admin", "a.b", "A_1", "..."])
def test_segments(name: str) -> None:
    assert is_segment(name)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "a\n", "é", "a%2f", "*"])
def test_what_is_no_segment(name: str) -> None:
    assert not is_segment(name)


def test_trust_domains() -> None:
    assert is_trust_domain("shop.internal")
    assert not any(map(is_trust_domain, ("", "Shop", "shop/x", "shop\n", "shop:1", "d" * 256)))


def test_untrusted_text_is_shown_escaped_and_short() -> None:
    assert shown("api\x1b[2J\n\u202e'") == '"api\\x1b[2J\\n\\u202e\'"'
    assert shown("a" * 200) == ascii("a" * 120 + "…")
    assert len(shown("\U0001f600" * 5000)) < 1300
    assert shown("plain") == "'plain'"


# -- leaves ------------------------------------------------------------------------------------------------------------


def test_the_honest_leaf_keeps_every_rule() -> None:
    honest = MESH.leaf("api")
    assert svid_faults(honest.certificate) == []
    svid = parse_svid(honest.der)
    assert svid.id == parse_spiffe_id(API)
    assert svid.serial == honest.certificate.serial_number
    assert svid.issuer == MESH.issuing.certificate.subject.public_bytes()
    assert (svid.not_before, svid.not_after) == (MESH.now - timedelta(minutes=1), MESH.now + timedelta(hours=1))
    assert svid.lifetime == timedelta(minutes=61)
    assert len(svid.sha256) == 64


@pytest.mark.parametrize(
    "leaf",
    [
        pytest.param(MESH.leaf(ca=None), id="no basicConstraints reads as no CA"),
        pytest.param(MESH.leaf(dns=["api", "db"]), id="DNS names beside the URI"),
        pytest.param(MESH.leaf(emails=["api@shop.internal"]), id="an e-mail address beside the URI"),
        pytest.param(MESH.leaf(cn="spiffe://shop.internal/db"), id="a CN that says otherwise"),
        pytest.param(MESH.leaf(eku=(SERVER_AUTH, CLIENT_AUTH, ANY_EKU)), id="any beside both EKUs"),
        pytest.param(MESH.leaf(key_usage=usage("digital_signature", "key_agreement")), id="a further key usage"),
        pytest.param(MESH.leaf(raw_san=raw_names(uris=[API.encode()])), id="the name, encoded by hand"),
        pytest.param(MESH.leaf(lifetime=timedelta(days=3650)), id="a long life is judged elsewhere"),
    ],
)
def test_twins_that_are_accepted_as_api(leaf: Credential) -> None:
    assert str(parse_svid(leaf.der).id) == API


NO_NAME = "it has no URI names"
UNREADABLE = "its extensions cannot be read"
GRAMMAR = "is not of A-Z a-z 0-9"


def _uri(*uris: bytes) -> Credential:
    return MESH.leaf(raw_san=raw_names(uris=uris))


BROKEN = {
    "cA=true": (MESH.leaf(ca=True), ["it is a CA certificate"]),
    "keyCertSign": (MESH.leaf(key_usage=usage("digital_signature", "key_cert_sign")), ["its KeyUsage has keyCertSign"]),
    "cRLSign": (MESH.leaf(key_usage=usage("digital_signature", "crl_sign")), ["its KeyUsage has cRLSign"]),
    "no KeyUsage": (MESH.leaf(key_usage=None), ["it has no KeyUsage"]),
    "no digitalSignature": (MESH.leaf(key_usage=usage("key_agreement")), ["its KeyUsage lacks digitalSignature"]),
    "KeyUsage not critical": (MESH.leaf(key_usage_critical=False), ["its KeyUsage is not critical"]),
    "no EKU": (MESH.leaf(eku=None), ["it has no ExtendedKeyUsage"]),
    "only serverAuth": (MESH.leaf(eku=(SERVER_AUTH,)), ["its ExtendedKeyUsage lacks clientAuth"]),
    "only clientAuth": (MESH.leaf(eku=(CLIENT_AUTH,)), ["its ExtendedKeyUsage lacks serverAuth"]),
    "only any": (MESH.leaf(eku=(ANY_EKU,)), ["lacks serverAuth", "lacks clientAuth"]),
    "two URIs": (MESH.leaf(uris=(API, "spiffe://shop.internal/db")), ["it has 2 URI names"]),
    "the same URI twice": (MESH.leaf(uris=(API, API)), ["it has 2 URI names"]),
    "a web address beside the URI": (MESH.leaf(uris=(API, "https://api")), ["it has 2 URI names"]),
    "no SAN, CN = the ID": (MESH.leaf(uris=(), cn=API), [NO_NAME]),
    "the ID as a DNS name": (MESH.leaf(raw_san=raw_names(dns=[API.encode()])), [NO_NAME]),
    "the ID as an e-mail address": (MESH.leaf(raw_san=raw_names(emails=[API.encode()])), [NO_NAME]),
    "only a DNS name": (MESH.leaf(uris=(), dns=["api"]), [NO_NAME]),
    "an empty SAN": (MESH.leaf(raw_san=raw_names()), [NO_NAME]),
    "NUL and text": (_uri(API.encode() + b"\0.evil.example"), [GRAMMAR]),
    "NUL before the path": (_uri(b"spiffe://shop.internal\0/api"), ["a trust domain has"]),
    "a newline at the end": (_uri(API.encode() + b"\n"), [GRAMMAR]),
    "Cyrillic": (_uri("spiffe://shop.internal/аpi".encode()), ["path segment '\\u0430pi'"]),
    "bytes of no text": (_uri(b"spiffe://shop.internal/\xff\xfe"), [UNREADABLE]),
    ", URI: inside": (_uri(API.encode() + b", URI:spiffe://shop.internal/db"), ["path segment 'api, URI:spiffe:'"]),
    "SPIFFE://": (_uri(b"SPIFFE://shop.internal/api"), ["does not start with spiffe://"]),
    "percent-encoding": (_uri(b"spiffe://shop.internal/%61pi"), [GRAMMAR]),
    "..": (_uri(b"spiffe://shop.internal/web/../api"), [GRAMMAR]),
    "a trailing slash": (_uri(API.encode() + b"/"), [GRAMMAR]),
    "no trust domain": (_uri(b"spiffe:///api"), ["a trust domain has"]),
    "no path": (_uri(b"spiffe://shop.internal"), ["has no path"]),
    "an empty URI": (_uri(b""), ["does not start with spiffe://"]),
    "too long": (_uri(b"spiffe://shop.internal/" + b"a" * 2048), ["at most 2048 bytes"]),
    "an extension twice": (MESH.leaf(corrupt=(b"\x06\x03\x55\x1d\x23", b"\x06\x03\x55\x1d\x0e")), [UNREADABLE]),
    "malformed EKU": (MESH.leaf(eku=None, extensions=[raw(ExtensionOID.EXTENDED_KEY_USAGE, b"\x30\x05\x06")]), [UNREADABLE]),
    "malformed KeyUsage": (MESH.leaf(key_usage=None, extensions=[raw(ExtensionOID.KEY_USAGE, b"\xff")]), [UNREADABLE]),
    "an odd TLSFeature": (MESH.leaf(extensions=[raw(ExtensionOID.TLS_FEATURE, b"\x30\x03\x02\x01\x07")]), [UNREADABLE]),
    "malformed SAN": (MESH.leaf(raw_san=b"\x30\x03\x86\x7f\x00"), [UNREADABLE]),
    "an x400 name": (MESH.leaf(raw_san=b"\x30\x02\xa3\x00"), [UNREADABLE]),
}  # fmt: skip


@pytest.mark.parametrize(("leaf", "faults"), BROKEN.values(), ids=BROKEN)
def test_a_leaf_that_breaks_a_rule_is_no_svid(leaf: Credential, faults: list[str]) -> None:
    found = svid_faults(leaf.certificate)
    assert len(found) == len(faults), found
    assert all(expected in fault for expected, fault in zip(faults, found, strict=True))
    assert all(fault.isascii() and fault.isprintable() for fault in found)
    with pytest.raises(InvalidIdentityError) as refused:
        parse_svid(leaf.der)
    assert str(refused.value) == found[0]


def test_every_broken_rule_is_told_and_the_first_one_is_the_verdict() -> None:
    worst = MESH.leaf(
        ca=True, key_usage=usage("key_cert_sign", "crl_sign"), key_usage_critical=False, eku=(ANY_EKU,), uris=()
    )
    faults = svid_faults(worst.certificate)
    assert faults == [
        "it is a CA certificate (cA=true)",
        "its KeyUsage is not critical",
        "its KeyUsage lacks digitalSignature",
        "its KeyUsage has keyCertSign",
        "its KeyUsage has cRLSign",
        "its ExtendedKeyUsage lacks serverAuth",
        "its ExtendedKeyUsage lacks clientAuth",
        "it has no URI names; an SVID has exactly one",
    ]


@pytest.mark.parametrize(
    "junk", [b"", b"\0", b"\x30\x00", b"-----BEGIN CERTIFICATE-----", b"\x30" * 500, MESH.leaf().der[:-1]]
)
def test_what_is_no_certificate_is_no_svid(junk: bytes) -> None:
    with pytest.raises(InvalidIdentityError, match="cannot be read"):
        parse_svid(junk)


def test_an_answer_is_remembered_for_these_very_bytes_only() -> None:
    one, other = MESH.leaf("api"), MESH.leaf("api", key=ec_key())
    assert parse_svid(one.der) is parse_svid(bytes(bytearray(one.der)))
    assert parse_svid(other.der) != parse_svid(one.der)
    with pytest.raises(InvalidIdentityError):
        parse_svid(one.der + b"\0")


# -- evidence ----------------------------------------------------------------------------------------------------------


def test_of_a_huge_certificate_nothing_is_read_but_its_digest() -> None:
    """Reading one takes long, and anybody may send one. The twin: the largest that is read."""
    huge = MESH.leaf(dns=[f"{number}.shop.internal" for number in range(200)]).der
    assert len(huge) > MAX_CLAIMS_BYTES
    found = claims(huge)
    assert found.keys() == {"sha256", "unreadable"}
    assert str(len(huge)) in found["unreadable"]
    large = MESH.leaf(extensions=[raw(x509.ObjectIdentifier("1.3.6.1.4.1.55555.1"), bytes(3000))]).der
    size = MAX_CLAIMS_BYTES - len(large) + 3000
    most = MESH.leaf(extensions=[raw(x509.ObjectIdentifier("1.3.6.1.4.1.55555.1"), bytes(size - 5))]).der
    assert MAX_CLAIMS_BYTES - 10 < len(most) <= MAX_CLAIMS_BYTES
    assert "unreadable" not in claims(most)


def test_claims_are_what_a_certificate_says_escaped() -> None:
    liar = MESH.leaf(cn="api\n\x1b[2J", uris=[API, "https://a\0b"])
    found = claims(liar.der)
    assert found == {
        "sha256": liar.certificate.fingerprint(hashes.SHA256()).hex(),
        "subject": "'CN=api\\n\\x1b[2J'",
        "issuer": "'CN=Test mesh issuing'",
        "uris": "'spiffe://shop.internal/api' 'https://a\\x00b'",
    }
    assert claims(MESH.leaf(uris=()).der)["uris"] == ""
    assert len(claims(MESH.leaf(uris=[API] * 50).der)["uris"].split()) == 4


@pytest.mark.parametrize("der", [b"", b"junk\n", MESH.leaf(raw_san=b"\x30\x03\x86\x7f\x00").der])
def test_what_cannot_be_read_is_a_finding(der: bytes) -> None:
    found = claims(der)
    assert found["sha256"]
    assert found["unreadable"].isprintable()


@pytest.mark.parametrize(
    ("text", "person"),
    [
        ("user/alice", "alice"),
        ("user", None),
        ("user/alice/x", None),
        ("users/alice", None),
        ("mesh/ca", None),
        ("alice/user", None),
    ],
)
def test_people(text: str, person: str | None) -> None:
    assert parse_spiffe_id(f"spiffe://shop.internal/{text}").person == person
