"""What a sidecar accepts of its CA's answers: exactly what was asked for. ``test_member.py`` has the same over the wire."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from certs.authority import authority, pemfiles
from certs.authority.authority import Made
from certs.protocol import documents, x509_profile
from certs.protocol.documents import Bundle
from sidecar.agent import accept
from sidecar.agent.accept import MAX_CHAIN, AnswerRefusedError
from sidecar.agent.credentials import Credentials
from sidecar.identity.keys import certificate_digest, key_digest, new_key
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
    believed = trusted or bundle(1, FIRST)
    return accept.take_certificate(
        chain() if pem is None else pem, KEY, API, believed.roots, believed.distrusted, longest, now
    )


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


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_what_is_kept_is_read_again_also_when_it_has_ended_or_its_root_is_gone() -> None:
    own = taken()
    again = accept.kept_certificate(accept.identity_pem(own), API, bundle(9, SECOND).roots)
    assert again.svid == own.svid
    assert accept.key_pem(again.keys.key) == accept.key_pem(KEY)
    assert again.keys.roots == (SECOND.root.certificate,)
    assert accept.with_roots(own, bundle(9, SECOND).roots).keys.roots == (SECOND.root.certificate,)


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
        accept.kept_certificate(pem, API, bundle(1, FIRST).roots)
    assert "PRIVATE KEY-----" not in str(refused.value)


def test_a_csr_gives_its_key_and_asks_for_nothing() -> None:
    csr = x509.load_pem_x509_csr(accept.csr_for(KEY))
    assert csr.is_signature_valid
    assert csr.public_key() == KEY.public_key()
    assert list(csr.subject) == list(csr.extensions) == list(csr.attributes) == []


def test_what_a_ca_says_forges_no_line() -> None:
    assert accept.describe(ValueError("no\n{'event': 'started'}\x1b[2J")).isprintable()
    assert len(accept.describe(ValueError("x" * 10_000))) < 600
