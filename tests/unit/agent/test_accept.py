"""What a sidecar accepts of its CA's answers: exactly what was asked for. ``test_member.py`` has the same over the wire."""

from __future__ import annotations

import json
from base64 import b64encode
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from certs.authority import authority, pemfiles
from certs.authority.authority import Made
from certs.protocol import documents, x509_profile
from certs.protocol.documents import Bundle, RevocationList
from sidecar.agent import accept
from sidecar.agent.accept import MAX_CHAIN, AnswerRefusedError
from sidecar.agent.credentials import Credentials
from sidecar.identity.judge import Presented, VerifyParams, judge
from sidecar.identity.keys import certificate_digest, key_digest, new_key
from sidecar.identity.reasons import Reason, Refused
from sidecar.identity.spiffe import SpiffeId
from tests.beds.certificates import DAY, HOUR, rsa_key

NOW = datetime.now(UTC).replace(microsecond=0)
MESH = "shop.internal"
API, WEB = SpiffeId(MESH, ("api",)), SpiffeId(MESH, ("web",))


def made() -> Made:
    return authority.make(MESH, NOW)


FIRST, SECOND, THIRD = made(), made(), made()
KEY = new_key()


def bundle(
    version: int, *roots: Made, active: Made | None = None, distrusted: frozenset[bytes] = frozenset()
) -> Bundle:
    certificates = tuple(root.root.certificate for root in roots)
    return Bundle(MESH, version, certificates, certificate_digest((active or roots[0]).root.certificate), distrusted)


def signed(wanted: Bundle, *signers: Made) -> bytes:
    return documents.sign_bundle(wanted, [signer.root for signer in signers])


PIN = certificate_digest(FIRST.root.certificate)


def learn(*documents: bytes, have: Bundle | None = None) -> accept.Learnt:
    return accept.learn(documents, have, PIN, MESH, NOW)


# -- trust bundles -----------------------------------------------------------------------------------------------------


def test_the_first_bundle_is_one_that_the_pinned_root_signed() -> None:
    document = signed(bundle(1, FIRST), FIRST)
    assert learn(document) == accept.Learnt(bundle(1, FIRST), document, ())
    foreign = learn(signed(bundle(1, SECOND), SECOND))
    assert foreign.bundle is None
    assert foreign.faults == ("it is signed not by a root that is trusted here",)


def test_it_follows_the_signatures_from_one_root_to_the_next() -> None:
    both = signed(bundle(2, FIRST, SECOND), FIRST, SECOND)
    alone = signed(bundle(3, SECOND), SECOND)
    again = signed(bundle(4, SECOND, THIRD), SECOND)
    last = signed(bundle(5, THIRD), THIRD)
    learnt = learn(both, alone, again, last)
    assert learnt.bundle == bundle(5, THIRD)
    assert learnt.document == last
    assert learnt.faults == ()


def test_a_link_that_is_missing_ends_the_way() -> None:
    both, last = signed(bundle(2, FIRST, SECOND), FIRST), signed(bundle(5, THIRD), THIRD)
    learnt = learn(both, last)
    assert learnt.bundle == bundle(2, FIRST, SECOND)
    assert len(learnt.faults) == 1


def test_an_older_bundle_is_no_news() -> None:
    have = bundle(7, FIRST)
    for version in (1, 6, 7):
        learnt = learn(signed(bundle(version, FIRST), FIRST), have=have)
        assert learnt.bundle is None
        assert learnt.faults == (f"version {version} is no newer than 7, which is in force",)
    assert learn(signed(bundle(8, FIRST), FIRST), have=have).bundle == bundle(8, FIRST)


def test_a_root_that_is_retired_signs_nothing_more() -> None:
    learnt = learn(signed(bundle(8, FIRST), FIRST), have=bundle(7, SECOND))
    assert learnt.bundle is None


def test_the_pinned_root_counts_no_more_once_there_is_a_bundle() -> None:
    """It is for the first contact; whoever has stolen an old root's key must not bring it back."""
    assert learn(signed(bundle(9, FIRST), FIRST), have=bundle(7, SECOND)).bundle is None


def test_nothing_and_garbage() -> None:
    assert learn() == accept.Learnt(None, b"", ())
    assert learn(b"", b"garbage", b"[]").bundle is None
    assert learn(b"garbage", signed(bundle(1, FIRST), FIRST)).bundle == bundle(1, FIRST)


# -- lists of revocations ----------------------------------------------------------------------------------------------


def listed(version: int, at: datetime = NOW, signer: Made = FIRST) -> bytes:
    return documents.sign_revocations(RevocationList(MESH, version, at, {WEB: at}), signer.delegate)


def take(document: bytes, have: RevocationList | None = None) -> RevocationList:
    return accept.take_revocations(document, have, bundle(1, FIRST), NOW)


def test_a_list_is_taken_if_it_is_no_older_than_the_one_in_force() -> None:
    have = RevocationList(MESH, 5, NOW - HOUR)
    assert take(listed(5), have).version == 5  # the same, signed anew
    assert take(listed(5, NOW - HOUR), have).issued_at == have.issued_at  # the very same
    assert take(listed(6, NOW - 2 * HOUR), have).version == 6
    assert take(listed(1)).identities == {WEB: NOW}
    for version, at in ((4, NOW), (5, NOW - 2 * HOUR)):
        with pytest.raises(AnswerRefusedError, match=r"it is older \(version"):
            take(listed(version, at), have)


def test_a_list_that_nobody_trusted_signed_is_refused() -> None:
    with pytest.raises(AnswerRefusedError, match="by a certificate that no trusted root issued"):
        take(listed(6, signer=SECOND))
    issuing = documents.sign_revocations(RevocationList(MESH, 6, NOW), FIRST.issuing)
    with pytest.raises(AnswerRefusedError, match="such as an issuing CA's"):
        take(issuing)


def test_without_any_list_nobody_is_let_in() -> None:
    roots = bundle(1, FIRST)
    svid = taken()
    path = tuple(one.public_bytes(serialization.Encoding.DER) for one in (*svid.keys.chain, FIRST.root.certificate))
    params = VerifyParams(MESH, revocations=accept.revocations(roots, None, HOUR))
    with pytest.raises(Refused) as refused:
        judge(Presented(path[:2], path), params, NOW)
    assert refused.value.reason is Reason.REVOCATIONS_STALE
    fresh = VerifyParams(MESH, revocations=accept.revocations(roots, RevocationList(MESH, 1, NOW), HOUR))
    assert judge(Presented(path[:2], path), fresh, NOW + timedelta(minutes=30)).id == API
    with pytest.raises(Refused):
        judge(Presented(path[:2], path), fresh, NOW + timedelta(minutes=61))


# -- a certificate -----------------------------------------------------------------------------------------------------


def chain(
    identity: SpiffeId = API,
    key: ec.EllipticCurvePrivateKey = KEY,
    ttl: timedelta = HOUR,
    ca: Made = FIRST,
    now: datetime = NOW,
) -> bytes:
    leaf = x509_profile.leaf(identity, key.public_key(), ca.issuing, now, ttl)
    return pemfiles.pem(leaf, ca.issuing.certificate)


def taken(
    pem: bytes | None = None, *, trusted: Bundle | None = None, longest: timedelta = 25 * HOUR, now: datetime = NOW
) -> Credentials:
    return accept.take_certificate(chain() if pem is None else pem, KEY, API, trusted or bundle(1, FIRST), longest, now)


def test_what_was_asked_for_is_taken() -> None:
    got = taken()
    assert got.svid.id == API
    assert got.keys.key is KEY
    assert got.keys.roots == (FIRST.root.certificate,)


_END = b"-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    ("pem", "why"),
    [
        (b"", "it is not PEM with certificates"),
        (b"garbage", "it is not PEM with certificates"),
        (chain()[:400], "it is not PEM with certificates"),
        (chain() + chain(), r"4 in its chain; expected a leaf and its issuer"),
        (chain().partition(_END)[0] + _END, "1 in its chain"),
        (chain(key=new_key()), "it is for another key than the one that was sent"),
        (chain(WEB), "because it met spiffe://shop.internal/web"),
        (chain(SpiffeId(MESH, ("mesh", "ca"))), "because it met spiffe://shop.internal/mesh/ca"),
        (chain(ca=SECOND), "every peer would refuse it"),
        (chain(now=NOW + timedelta(minutes=2)), "certificates are dated back 60 s: are both clocks right"),
    ],
)
def test_anything_else_is_refused(pem: bytes, why: str) -> None:
    with pytest.raises(AnswerRefusedError, match=f"the CA's certificate is refused: .*{why}"):
        taken(pem)


def test_a_life_that_is_too_long_or_almost_over_is_refused() -> None:
    with pytest.raises(AnswerRefusedError, match="longer than max_leaf_ttl"):
        taken(chain(ttl=2 * HOUR), longest=HOUR)
    assert taken(chain(ttl=2 * HOUR), longest=3 * HOUR)
    now = datetime.now(UTC).replace(microsecond=0)  # OpenSSL asks no other clock, and this one has a minute only
    older = authority.make(MESH, now - DAY)
    roots = bundle(1, older)
    leaf = x509_profile.leaf(API, KEY.public_key(), older.issuing, now - HOUR + timedelta(seconds=59), HOUR)
    pem = pemfiles.pem(leaf, older.issuing.certificate)
    with pytest.raises(AnswerRefusedError, match=r"only, and our clock shows .*; are both clocks right"):
        taken(pem, trusted=roots, now=now)
    for seconds in (60, 61):
        leaf = x509_profile.leaf(API, KEY.public_key(), older.issuing, now - HOUR + timedelta(seconds=seconds), HOUR)
        assert taken(pemfiles.pem(leaf, older.issuing.certificate), trusted=roots, now=now)


def test_an_issuer_that_counts_no_longer_is_refused() -> None:
    distrusted = frozenset({key_digest(FIRST.issuing.certificate)})
    with pytest.raises(AnswerRefusedError, match="a revoked issuer"):
        taken(trusted=bundle(2, FIRST, distrusted=distrusted))


def test_a_chain_has_at_most_three() -> None:
    extra = pemfiles.pem(FIRST.root.certificate)
    assert len(taken(chain() + extra).keys.chain) == MAX_CHAIN
    with pytest.raises(AnswerRefusedError, match="4 in its chain"):
        taken(chain() + extra + extra)


# -- when it has to be replaced whatever its age -----------------------------------------------------------------------


def test_a_certificate_is_replaced_when_it_is_not_under_the_active_root() -> None:
    own = taken()
    assert not accept.must_renew(own, bundle(1, FIRST), None)
    assert not accept.must_renew(own, bundle(2, FIRST, SECOND), None)
    assert accept.must_renew(own, bundle(3, FIRST, SECOND, active=SECOND), None)
    assert accept.must_renew(own, bundle(4, SECOND), None)


def test_a_certificate_is_replaced_when_its_issuer_counts_no_longer() -> None:
    own = taken()
    assert accept.must_renew(own, bundle(2, FIRST, distrusted=frozenset({key_digest(FIRST.issuing.certificate)})), None)
    assert not accept.must_renew(
        own, bundle(2, FIRST, distrusted=frozenset({key_digest(SECOND.issuing.certificate)})), None
    )


def test_a_certificate_is_replaced_when_it_was_revoked() -> None:
    own, roots = taken(), bundle(1, FIRST)
    assert accept.must_renew(own, roots, RevocationList(MESH, 2, NOW, {API: NOW}))
    assert accept.must_renew(
        own, roots, RevocationList(MESH, 2, NOW, {}, frozenset({(own.svid.issuer, own.svid.serial)}))
    )
    assert not accept.must_renew(own, roots, RevocationList(MESH, 2, NOW, {WEB: NOW}))
    assert not accept.must_renew(own, roots, RevocationList(MESH, 2, NOW, {API: NOW - HOUR}))


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_what_is_kept_is_read_again_also_when_it_has_ended_or_its_root_is_gone() -> None:
    own = taken()
    again = accept.kept_certificate(accept.identity_pem(own), API, bundle(9, SECOND))
    assert again.svid == own.svid
    assert accept.key_pem(again.keys.key) == accept.key_pem(KEY)
    assert again.keys.roots == (SECOND.root.certificate,)
    assert accept.with_roots(own, bundle(9, SECOND)).keys.roots == (SECOND.root.certificate,)


@pytest.mark.parametrize(
    ("pem", "why"),
    [
        (b"", "it has no private key in PEM"),
        (chain(), "it has no private key in PEM"),
        (accept.key_pem(KEY), "it has no certificate that is an SVID"),
        (accept.key_pem(KEY) + pemfiles.pem(FIRST.root.certificate), "it has no certificate that is an SVID"),
        (accept.key_pem(KEY) + chain(WEB), "its certificate is not one of spiffe://shop.internal/api"),
        (accept.key_pem(new_key()) + chain(), "its certificate is not one of spiffe://shop.internal/api"),
        (accept.key_pem(KEY) + chain().partition(_END)[0] + _END, "with its key and its issuer"),
        (accept.key_pem(rsa_key()) + chain(), "its key is not an elliptic-curve key"),
    ],
)
def test_what_is_damaged_is_not_taken_and_none_of_it_is_said(pem: bytes, why: str) -> None:
    with pytest.raises(AnswerRefusedError, match=why) as refused:
        accept.kept_certificate(pem, API, bundle(1, FIRST))
    assert "PRIVATE KEY-----" not in str(refused.value)


def test_a_csr_gives_its_key_and_asks_for_nothing() -> None:
    csr = x509.load_pem_x509_csr(accept.csr_for(KEY))
    assert csr.is_signature_valid
    assert csr.public_key() == KEY.public_key()
    assert list(csr.subject) == list(csr.extensions) == list(csr.attributes) == []


def test_what_a_ca_says_forges_no_line() -> None:
    assert accept.describe(ValueError("no\n{'event': 'started'}\x1b[2J")).isprintable()
    assert len(accept.describe(ValueError("x" * 10_000))) < 600


def test_a_document_of_a_wrong_shape_is_no_bundle() -> None:
    payload = b64encode(json.dumps({"trust_domain": MESH}).encode()).decode()
    assert learn(json.dumps({"type": documents.BUNDLE, "payload": payload, "signatures": []}).encode()).faults == (
        "it is not signed",
    )
