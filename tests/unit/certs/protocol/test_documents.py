"""The two signed documents: who may sign them, that nothing in them can be altered, and each way not to count."""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from certs.authority import authority
from certs.protocol import documents, x509_profile
from certs.protocol.documents import (
    BUNDLE,
    REVOCATIONS,
    Bundle,
    BundleName,
    RevocationList,
    Signer,
    UntrustedError,
    next_version,
    read_bundle,
    read_kept_bundle,
    read_revocations,
    sign_bundle,
    sign_revocations,
)
from certs.protocol.x509_profile import Issuer
from sidecar.identity.keys import certificate_digest, key_digest
from sidecar.identity.spiffe import SpiffeId
from tests.beds.certificates import DAY, HOUR, Credential, ec_key, rsa_key
from tests.beds.certificates import Authority as Factory
from tests.beds.clock import NOW
from tests.beds.store import API, DOMAIN, WEB

MADE, OTHER, FOREIGN = authority.make(DOMAIN, NOW), authority.make(DOMAIN, NOW), authority.make("other.internal", NOW)
ROOT = MADE.root.certificate
ANCHORS = frozenset({certificate_digest(ROOT)})

_leaf_key = ec_key()
LEAF = Issuer(x509_profile.leaf(API, _leaf_key.public_key(), MADE.issuing, NOW), _leaf_key)

PLAIN = Bundle(DOMAIN, 7, (ROOT,), certificate_digest(ROOT), frozenset({b"\x01" * 32}))
BOTH = Bundle(DOMAIN, 8, (ROOT, OTHER.root.certificate), certificate_digest(OTHER.root.certificate))
SIGNED = sign_bundle(PLAIN, [MADE.root])
REVOKED = RevocationList(
    DOMAIN,
    3,
    NOW,
    {API: NOW, SpiffeId(DOMAIN, ("batch", "nightly")): NOW - HOUR},
    frozenset({(b"name", 0x1F)}),
    BundleName(7, b"\x07" * 32),
    frozenset({b"\x01" * 32, b"\x02" * 32}),
)
LIST = sign_revocations(REVOKED, MADE.delegate)


def why(document: bytes, anchors: frozenset[bytes] = ANCHORS, domain: str = DOMAIN, now: datetime = NOW) -> str:
    with pytest.raises(UntrustedError) as refused:
        read_bundle(document, domain, anchors, now)
    return str(refused.value)


def why_list(document: bytes, bundle: Bundle = PLAIN, now: datetime = NOW) -> str:
    with pytest.raises(UntrustedError) as refused:
        read_revocations(document, bundle, now)
    return str(refused.value)


def payload(document: bytes) -> dict[str, Any]:
    said = json.loads(b64decode(json.loads(document)["payload"]))
    assert isinstance(said, dict)
    return said


def resealed(said: Any, signer: Issuer = MADE.root, kind: str = BUNDLE) -> bytes:
    """A document of any payload, rightly signed."""
    return documents._seal(kind, said, [signer])


def bent(change: Callable[[dict[str, Any]], Any], document: bytes = SIGNED) -> bytes:
    """An envelope with something in it changed after it was signed."""
    envelope = json.loads(document)
    change(envelope)
    return json.dumps(envelope).encode()


# -- bundles -----------------------------------------------------------------------------------------------------------


def test_a_bundle_is_read_as_it_was_signed() -> None:
    assert read_bundle(SIGNED, DOMAIN, ANCHORS, NOW) == PLAIN
    assert PLAIN.anchors == ANCHORS


def test_a_bundle_is_named_by_its_version_and_the_digest_of_what_was_signed() -> None:
    body = b64decode(json.loads(SIGNED)["payload"])
    assert read_bundle(SIGNED, DOMAIN, ANCHORS, NOW).name == BundleName(7, sha256(body).digest())
    again = sign_bundle(PLAIN, [MADE.root, OTHER.root])
    assert again != SIGNED
    assert read_bundle(again, DOMAIN, ANCHORS, NOW).name == BundleName(7, sha256(body).digest()), "whoever signed it"
    other = read_bundle(sign_bundle(replace(PLAIN, distrusted=frozenset()), [MADE.root]), DOMAIN, ANCHORS, NOW)
    assert other.name.sha256 != sha256(body).digest()
    assert Bundle(DOMAIN, 7, (), b"").name == BundleName(7), "one that was not read has no digest yet"


def test_an_unsigned_one_and_one_whose_signatures_were_taken_off() -> None:
    assert why(sign_bundle(PLAIN, [])) == "it is not signed"
    assert why(bent(lambda envelope: envelope.update(signatures=[]))) == "it is not signed"


@pytest.mark.parametrize(
    "signer",
    [MADE.issuing, MADE.delegate, LEAF, OTHER.root, FOREIGN.root],
    ids=["the issuing CA", "the delegate", "a leaf", "another root", "another mesh's root"],
)
def test_nobody_but_a_trusted_root_signs_a_bundle(signer: Issuer) -> None:
    assert why(sign_bundle(PLAIN, [signer])) == "it is signed not by a root that is trusted here"
    assert read_bundle(sign_bundle(PLAIN, [signer, MADE.root]), DOMAIN, ANCHORS, NOW) == PLAIN, "the twin: one root did"


def test_the_issuing_key_under_the_root_s_certificate() -> None:
    forged = sign_bundle(BOTH, [Issuer(ROOT, MADE.issuing.key)])
    assert why(forged) == "it is signed with a signature that is wrong"


def test_a_root_that_is_only_in_the_bundle_itself_introduces_nobody() -> None:
    assert why(sign_bundle(BOTH, [OTHER.root])) == "it is signed not by a root that is trusted here"
    assert read_bundle(sign_bundle(BOTH, [OTHER.root]), DOMAIN, BOTH.anchors, NOW) == BOTH


def test_a_reader_of_the_old_root_follows_to_the_new_one() -> None:
    middle = read_bundle(sign_bundle(BOTH, [MADE.root, OTHER.root]), DOMAIN, ANCHORS, NOW)
    last = Bundle(DOMAIN, 9, (OTHER.root.certificate,), certificate_digest(OTHER.root.certificate))
    document = sign_bundle(last, [OTHER.root])
    assert read_bundle(document, DOMAIN, middle.anchors, NOW) == last
    assert "not by a root that is trusted here" in why(document)
    assert "not by a root that is trusted here" in why(SIGNED, anchors=last.anchors), "and the way back is closed"


def test_another_mesh_s_bundle() -> None:
    assert why(sign_bundle(replace(PLAIN, trust_domain="other.internal"), [MADE.root])) == (
        "it is of the trust domain 'other.internal', not of shop.internal"
    )


def test_a_list_is_no_bundle_and_a_bundle_no_list_not_even_under_the_other_s_name() -> None:
    assert why(LIST) == f"it is a document of type '{REVOCATIONS}', where {BUNDLE} is expected"
    assert why_list(SIGNED) == f"it is a document of type '{BUNDLE}', where {REVOCATIONS} is expected"
    by_root = sign_revocations(REVOKED, MADE.root)
    assert read_revocations(by_root, PLAIN, NOW) == REVOKED
    assert (
        why(bent(lambda envelope: envelope.update(type=BUNDLE), by_root))
        == "it is signed with a signature that is wrong"
    )
    assert (
        why_list(bent(lambda envelope: envelope.update(type=REVOCATIONS)))
        == "it is signed with a signature that is wrong"
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"roots": []}, "has no roots"),
        ({"roots": [documents._pem(MADE.issuing.certificate)]}, "not a root: it did not sign itself"),
        ({"roots": [documents._pem(LEAF.certificate)]}, "not a root: it is not a CA certificate"),
        ({"roots": ["junk"]}, "cannot be read"),
        ({"roots": "junk"}, "cannot be read"),
        ({"roots": [1]}, "cannot be read"),
        ({"roots": [documents._pem(ROOT)] * 9}, "cannot be read"),
        ({"active": certificate_digest(OTHER.root.certificate).hex()}, "an active root that is not in it"),
        ({"active": "zz"}, "cannot be read"),
        ({"active": 1}, "cannot be read"),
        ({"version": 0}, "cannot be read"),
        ({"version": -1}, "cannot be read"),
        ({"version": True}, "cannot be read"),
        ({"version": "8"}, "cannot be read"),
        ({"version": 8.0}, "cannot be read"),
        ({"version": 1 << 53}, "cannot be read"),
        ({"distrusted": ["xyz"]}, "cannot be read"),
        ({"distrusted": {}}, "cannot be read"),
        ({"distrusted": ["00"] * 1001}, "cannot be read"),
    ],
)
def test_what_a_root_signed_and_makes_no_sense(change: dict[str, Any], told: str) -> None:
    said = payload(SIGNED)
    assert read_bundle(resealed(said), DOMAIN, ANCHORS, NOW) == PLAIN
    assert told in why(resealed({**said, **change}))


@pytest.mark.parametrize("name", ["critical", "Roots", "issued_at", ""])
def test_what_is_signed_and_unknown_is_refused_and_what_is_not_signed_is_ignored(name: str) -> None:
    assert "is no field of this type" in why(resealed({**payload(SIGNED), name: 1}))
    by_delegate = resealed({**payload(LIST), "roots": []}, MADE.delegate, REVOCATIONS)
    assert "roots is no field of this type" in why_list(by_delegate)
    named = {"version": 7, "sha256": "", name: 1}
    assert "is no field" in why_list(resealed({**payload(LIST), "bundle": named}, MADE.delegate, REVOCATIONS))
    assert read_bundle(bent(lambda envelope: envelope.update({name or "x": 1})), DOMAIN, ANCHORS, NOW) == PLAIN
    assert read_bundle(_signature(**{name or "x": 1}), DOMAIN, ANCHORS, NOW) == PLAIN


@pytest.mark.parametrize(
    ("document", "kind", "signer"), [(SIGNED, BUNDLE, MADE.root), (LIST, REVOCATIONS, MADE.delegate)]
)
def test_a_name_that_occurs_twice_in_what_is_signed(document: bytes, kind: str, signer: Issuer) -> None:
    body = b64decode(json.loads(document)["payload"])
    for twice in (b'{"version":7,' + body[1:], body.replace(b'"identities":{', b'"identities":{"a":1,"a":2,')):
        if twice == body:
            continue
        signed = signer.key.sign(documents._signing_input(kind, twice), ec.ECDSA(hashes.SHA256()))
        said = {
            "type": kind,
            "payload": b64encode(twice).decode(),
            "signatures": [
                {"certificate": documents._pem(signer.certificate), "signature": b64encode(signed).decode()}
            ],
        }
        read = why if kind == BUNDLE else why_list
        assert read(json.dumps(said).encode()) == "its payload is not a document of a mesh"


def test_what_is_signed_is_the_pre_authentication_encoding_of_dsse() -> None:
    assert documents._signing_input("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    ), "the protocol's own example"
    body = b64decode(json.loads(SIGNED)["payload"])
    old = MADE.root.key.sign(BUNDLE.encode() + b"\0" + body, ec.ECDSA(hashes.SHA256()))
    assert why(_signature(signature=b64encode(old).decode())) == "it is signed with a signature that is wrong"


@pytest.mark.parametrize("key", ["roots", "active", "version", "distrusted"])
def test_what_a_root_signed_and_is_not_complete(key: str) -> None:
    said = payload(SIGNED)
    del said[key]
    assert "cannot be read" in why(resealed(said))


@pytest.mark.parametrize("said", [[], "text", 1, None, {}])
def test_what_a_root_signed_and_is_no_document(said: Any) -> None:
    assert why(resealed(said)) == "its payload is not a document of a mesh"


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"junk",
        b"\xff\xfe",
        b"[]",
        b"1",
        b"{}",
        b"null",
        b"[" * 100_000,
        SIGNED[:-10],
        bent(lambda envelope: envelope.update(payload=1)),
        bent(lambda envelope: envelope.update(payload="*")),
        bent(lambda envelope: envelope.update(signatures=None)),
        bent(lambda envelope: envelope.update(signatures=["x"])),
        bent(lambda envelope: envelope.pop("signatures")),
        bent(lambda envelope: envelope.update(signatures=envelope["signatures"] * 9)),
    ],
)
def test_what_is_no_signed_document(document: bytes) -> None:
    assert why(document) == "it is not a signed document"
    with pytest.raises(UntrustedError):
        read_kept_bundle(document, DOMAIN, NOW)
    with pytest.raises(UntrustedError):
        read_revocations(document, PLAIN, NOW)


def test_one_that_is_too_large_is_not_parsed() -> None:
    assert why(b"{" + b" " * (1 << 20)) == "it is larger than 1024 KiB"
    assert read_bundle(SIGNED + b" " * ((1 << 20) - len(SIGNED)), DOMAIN, ANCHORS, NOW) == PLAIN


def test_a_type_is_shown_escaped() -> None:
    assert why(bent(lambda envelope: envelope.update(type="\x1b[31m"))).startswith(
        r"it is a document of type '\x1b[31m'"
    )


def _signature(**change: Any) -> bytes:
    return bent(lambda envelope: envelope["signatures"][0].update(change))


@pytest.mark.parametrize(
    ("document", "told"),
    [
        (_signature(signature="AAAA"), "with a signature that is wrong"),
        (_signature(signature="!"), "in a way that cannot be read"),
        (_signature(certificate="junk"), "in a way that cannot be read"),
        (_signature(certificate=1), "in a way that cannot be read"),
        (bent(lambda envelope: envelope["signatures"][0].pop("signature")), "in a way that cannot be read"),
    ],
)
def test_a_signature_that_is_none(document: bytes, told: str) -> None:
    assert why(document) == f"it is signed {told}"


def test_one_bad_signature_beside_a_good_one_does_no_harm() -> None:
    junk = {"certificate": "junk", "signature": "junk"}
    assert read_bundle(bent(lambda envelope: envelope["signatures"].insert(0, junk)), DOMAIN, ANCHORS, NOW) == PLAIN


def test_a_root_of_another_kind_of_key_signs_nothing() -> None:
    mesh = Factory(now=NOW)
    foreign = mesh.ca("root", signer=None, key=rsa_key())
    document = bent(lambda envelope: envelope["signatures"][0].update(certificate=documents._pem(foreign.certificate)))
    assert (
        why(document, frozenset({certificate_digest(foreign.certificate)}))
        == "it is signed with a key that is not an elliptic-curve key"
    )


def test_a_root_signs_while_it_is_good() -> None:
    end = ROOT.not_valid_after_utc
    for now in (ROOT.not_valid_before_utc, end):
        assert read_bundle(SIGNED, DOMAIN, ANCHORS, now) == PLAIN
    for now in (end + timedelta(seconds=1), ROOT.not_valid_before_utc - timedelta(seconds=1)):
        assert "by a certificate that is valid from" in why(SIGNED, now=now)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_whichever_byte_is_changed_it_counts_no_more_or_says_the_same(data: st.DataObject) -> None:
    """(Of white space, and of base64's unused bits, nothing is signed: they say nothing.)"""
    at = data.draw(st.integers(0, len(SIGNED) - 1))
    new = data.draw(st.integers(0, 255).filter(lambda value: value != SIGNED[at]))
    try:
        read = read_bundle(SIGNED[:at] + bytes([new]) + SIGNED[at + 1 :], DOMAIN, ANCHORS, NOW)
    except UntrustedError:
        return
    assert read == PLAIN


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_whichever_bit_of_what_is_signed_is_changed_it_counts_no_more(data: st.DataObject) -> None:
    envelope = json.loads(SIGNED)
    body = bytearray(b64decode(envelope["payload"]))
    at = data.draw(st.integers(0, len(body) * 8 - 1))
    body[at // 8] ^= 1 << at % 8
    envelope["payload"] = b64encode(bytes(body)).decode()
    assert why(json.dumps(envelope).encode()) == "it is signed with a signature that is wrong"


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_do_anything_but_not_count(document: bytes) -> None:
    with pytest.raises(UntrustedError):
        read_bundle(document, DOMAIN, ANCHORS, NOW)
    with pytest.raises(UntrustedError):
        read_kept_bundle(document, DOMAIN, NOW)
    with pytest.raises(UntrustedError):
        read_revocations(document, PLAIN, NOW)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(["version", "roots", "active", "distrusted", "trust_domain"]), json_values),
    st.dictionaries(st.sampled_from(["version", "issued_at", "identities", "serials", "trust_domain"]), json_values),
)
def test_whatever_was_signed_it_is_read_whole_or_does_not_count(
    bundle: dict[str, Any], revoked: dict[str, Any]
) -> None:
    for said, read in (
        (resealed({**payload(SIGNED), **bundle}), lambda it: read_bundle(it, DOMAIN, ANCHORS, NOW)),
        (
            resealed({**payload(LIST), **revoked}, MADE.delegate, REVOCATIONS),
            lambda it: read_revocations(it, PLAIN, NOW),
        ),
    ):
        try:
            found = read(said)
        except UntrustedError:
            continue
        assert isinstance(found, Bundle | RevocationList)


# -- a bundle that was kept --------------------------------------------------------------------------------------------


def test_a_kept_bundle_vouches_for_itself() -> None:
    assert read_kept_bundle(SIGNED, DOMAIN, NOW) == PLAIN
    assert read_kept_bundle(sign_bundle(BOTH, [MADE.root, OTHER.root]), DOMAIN, NOW) == BOTH


def test_and_not_if_nobody_in_it_signed_it() -> None:
    with pytest.raises(UntrustedError, match="not by a root that is trusted here"):
        read_kept_bundle(sign_bundle(PLAIN, [OTHER.root]), DOMAIN, NOW)
    with pytest.raises(UntrustedError, match="damaged"):
        read_kept_bundle(SIGNED[: len(SIGNED) // 2], DOMAIN, NOW)
    with pytest.raises(UntrustedError, match="of the trust domain"):
        read_kept_bundle(SIGNED, "other.internal", NOW)


# -- lists of revocations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signer", [MADE.root, MADE.delegate], ids=["the root", "its delegate"])
def test_a_list_is_read_as_it_was_signed(signer: Issuer) -> None:
    assert read_revocations(sign_revocations(REVOKED, signer), PLAIN, NOW) == REVOKED


def test_a_list_says_who_signed_it() -> None:
    root = certificate_digest(ROOT)
    for signer in (MADE.root, MADE.delegate):
        read = read_revocations(sign_revocations(REVOKED, signer), PLAIN, NOW)
        assert read.signer == Signer(key_digest(signer.certificate), root)
    other = read_revocations(sign_revocations(REVOKED, OTHER.delegate), BOTH, NOW)
    assert other.signer == Signer(key_digest(OTHER.delegate.certificate), certificate_digest(OTHER.root.certificate))


def test_a_distrusted_key_signs_no_list_and_another_of_the_same_root_does() -> None:
    without = replace(PLAIN, distrusted=frozenset({key_digest(MADE.delegate.certificate)}))
    assert why_list(LIST, without) == "it is signed with a key that is distrusted"
    assert read_revocations(sign_revocations(REVOKED, MADE.root), without, NOW) == REVOKED
    root_too = replace(without, distrusted=without.distrusted | {key_digest(ROOT)})
    assert "a key that is distrusted" in why_list(sign_revocations(REVOKED, MADE.root), root_too)


def test_an_empty_list_says_that_nothing_is_revoked() -> None:
    empty = RevocationList(DOMAIN, 1, NOW)
    assert read_revocations(sign_revocations(empty, MADE.delegate), PLAIN, NOW) == empty


@pytest.mark.parametrize(
    ("signer", "told"),
    [
        (MADE.issuing, "by a certificate that was not made for that, such as an issuing CA's"),
        (LEAF, "by a certificate that no trusted root issued"),
        (OTHER.root, "by a certificate that no trusted root issued"),
        (OTHER.delegate, "by a certificate that no trusted root issued"),
        (FOREIGN.delegate, "by a certificate that no trusted root issued"),
        (Issuer(MADE.delegate.certificate, OTHER.delegate.key), "with a signature that is wrong"),
    ],
    ids=["the issuing CA", "a leaf", "another root", "its delegate", "another mesh's", "another key"],
)
def test_nobody_else_signs_a_list(signer: Issuer, told: str) -> None:
    assert why_list(sign_revocations(REVOKED, signer)) == f"it is signed {told}"


def _as_issuer(credential: Credential) -> Issuer:
    assert isinstance(credential.key, ec.EllipticCurvePrivateKey)
    return Issuer(credential.certificate, credential.key)


def test_a_leaf_that_a_root_signed_itself_is_no_delegate() -> None:
    mesh = Factory(now=NOW)
    bundle = Bundle(DOMAIN, 1, mesh.roots, certificate_digest(mesh.roots[0]))
    leaf = _as_issuer(mesh.leaf("api", signer=mesh.root))
    assert "was not made for that" in why_list(sign_revocations(REVOKED, leaf), bundle)
    key = ec_key()
    delegate = Issuer(x509_profile.delegate(key.public_key(), _as_issuer(mesh.root), NOW), key)
    assert read_revocations(sign_revocations(REVOKED, delegate), bundle, NOW) == REVOKED


def test_during_a_rotation_the_delegate_of_either_root_signs() -> None:
    for made in (MADE, OTHER):
        assert read_revocations(sign_revocations(REVOKED, made.delegate), BOTH, NOW) == REVOKED


def test_a_delegate_whose_time_is_over() -> None:
    late = NOW + 91 * DAY
    assert "by a certificate that is valid from" in why_list(LIST, now=late)
    assert read_revocations(sign_revocations(REVOKED, MADE.root), PLAIN, late) == REVOKED
    assert read_revocations(LIST, PLAIN, None) == REVOKED, "one that was taken while it was good, and kept"


def test_another_mesh_s_list() -> None:
    foreign = sign_revocations(replace(REVOKED, trust_domain="other.internal"), MADE.delegate)
    assert "of the trust domain 'other.internal'" in why_list(foreign)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 0},
        {"issued_at": "now"},
        {"issued_at": True},
        {"issued_at": 1 << 60},
        {"identities": []},
        {"identities": {"api": 1}},
        {"identities": {"spiffe://shop.internal/api": "1"}},
        {"identities": {"spiffe://shop.internal/api/": 1}},
        {"serials": {}},
        {"serials": ["1f"]},
        {"serials": [["bmFtZQ==", "1f", "more"]]},
        {"serials": [["*", "1f"]]},
        {"serials": [["bmFtZQ==", "xyz"]]},
        {"serials": [["bmFtZQ==", 31]]},
        {"bundle": 7},
        {"bundle": {"version": -1, "sha256": ""}},
        {"bundle": {"version": True, "sha256": ""}},
        {"bundle": {"version": 7}},
        {"bundle": {"version": 7, "sha256": "xyz"}},
        {"distrusted": ["xyz"]},
        {"distrusted": ["00"] * 1001},
    ],
)
def test_a_list_that_makes_no_sense_is_refused_whole(change: dict[str, Any]) -> None:
    said = payload(LIST)
    assert read_revocations(resealed(said, MADE.delegate, REVOCATIONS), PLAIN, NOW) == REVOKED
    assert "cannot be read" in why_list(resealed({**said, **change}, MADE.delegate, REVOCATIONS))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whichever_byte_of_a_list_is_changed(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(LIST) - 1))
    new = data.draw(st.integers(0, 255).filter(lambda value: value != LIST[at]))
    try:
        read = read_revocations(LIST[:at] + bytes([new]) + LIST[at + 1 :], PLAIN, NOW)
    except UntrustedError:
        return
    assert read == REVOKED


times = st.datetimes(datetime(2020, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)).map(
    lambda when: when.replace(microsecond=0)
)


@settings(deadline=None)
@given(
    st.integers(1, (1 << 53) - 1),
    times,
    st.dictionaries(st.sampled_from([API, WEB, SpiffeId(DOMAIN, ("a", "b"))]), times),
    st.frozensets(st.tuples(st.binary(max_size=20), st.integers(0, 1 << 159)), max_size=5),
)
def test_every_list_is_read_as_it_was_signed(
    version: int, issued_at: datetime, identities: dict[SpiffeId, datetime], serials: frozenset[tuple[bytes, int]]
) -> None:
    revoked = RevocationList(DOMAIN, version, issued_at, identities, serials)
    assert read_revocations(sign_revocations(revoked, MADE.delegate), PLAIN, NOW) == revoked


# -- versions ----------------------------------------------------------------------------------------------------------


def test_versions_only_rise() -> None:
    seconds = int(NOW.timestamp())
    assert next_version(0, NOW) == seconds
    assert next_version(seconds, NOW) == seconds + 1
    assert next_version(seconds + 7200, NOW) == seconds + 7201, "a clock that was set back does not take them back"
    assert next_version(seconds - 7200, NOW) == seconds, "a store from yesterday's copy does not repeat what was used"
    assert next_version(0, NOW, 1000) == 1000 * seconds
    assert next_version(1000 * seconds, NOW, 1000) == 1000 * seconds + 1


def test_a_document_says_its_type_and_whose_signatures_it_has() -> None:
    envelope = json.loads(sign_bundle(BOTH, [MADE.root, OTHER.root]))
    assert envelope["type"] == "mesh-bundle/2"
    assert len(envelope["signatures"]) == 2
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", envelope["payload"])
    assert certificate_digest(ROOT) == ROOT.fingerprint(hashes.SHA256())


@pytest.mark.parametrize("number", [documents.MAX_SIGNATURES, documents.MAX_SIGNATURES + 1])
def test_as_many_signatures_as_are_read(number: int) -> None:
    document = sign_bundle(PLAIN, [MADE.root] * number)
    if number == documents.MAX_SIGNATURES:
        assert read_bundle(document, DOMAIN, ANCHORS, NOW) == PLAIN
    else:
        assert why(document)
