"""The one judgement: every reason, its honest twin, and the fixed order in which reasons win."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from sidecar.identity.judge import MAX_CHAIN, ChainFault, Presented, Revocations, VerifyParams, judge
from sidecar.identity.keys import key_digest
from sidecar.identity.reasons import Reason, Refused
from sidecar.identity.spiffe import SpiffeId
from tests.beds.certificates import Authority, Credential, pem, usage

MESH = Authority()
NOW = MESH.now
SECOND = timedelta(seconds=1)
API, WEB = SpiffeId("shop.internal", ("api",)), SpiffeId("shop.internal", ("web",))
TERMS = VerifyParams("shop.internal")
ROOT_DER = MESH.root.der
FAULT = ChainFault(Reason.UNKNOWN_CA, "its signature is somebody else's")


def presented(leaf: Credential, *, fault: ChainFault | None = None) -> Presented:
    """What OpenSSL would report of a peer with this credential, had the chain verified."""
    return Presented(leaf.chain_der, (*leaf.chain_der, ROOT_DER), fault)


def refusal(evidence: Presented, params: VerifyParams = TERMS, now: datetime = NOW) -> Refused:
    with pytest.raises(Refused) as refused:
        judge(evidence, params, now)
    return refused.value


HONEST = MESH.leaf("api")


def test_the_honest_peer_is_let_in() -> None:
    svid = judge(presented(HONEST), TERMS, NOW)
    assert svid.id == API
    assert svid.serial == HONEST.certificate.serial_number


# -- what was sent -----------------------------------------------------------------------------------------------------


def test_no_certificate() -> None:
    assert refusal(Presented(())).reason is Reason.NO_CERTIFICATE
    assert refusal(Presented((), fault=FAULT)).reason is Reason.NO_CERTIFICATE


def test_a_chain_is_at_most_four_long() -> None:
    at_most = (*HONEST.chain_der, ROOT_DER, b"junk is not read")
    assert len(at_most) == MAX_CHAIN
    assert judge(Presented(at_most, (*HONEST.chain_der, ROOT_DER)), TERMS, NOW).id == API
    too_long = refusal(Presented((*at_most, b""), (*HONEST.chain_der, ROOT_DER)))
    assert too_long.reason is Reason.BAD_IDENTITY
    assert "5 certificates; at most 4" in too_long.detail
    assert refusal(Presented(HONEST.chain_der * 50)).reason is Reason.BAD_IDENTITY


# -- the chain ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [Reason.UNKNOWN_CA, Reason.EXPIRED, Reason.NOT_YET_VALID, Reason.BAD_IDENTITY])
def test_what_openssl_found_is_the_verdict_in_our_words(reason: Reason) -> None:
    refused = refusal(presented(HONEST, fault=ChainFault(reason, "as OpenSSL says")))
    assert (refused.reason, refused.detail) == (reason, "as OpenSSL says")


@pytest.mark.parametrize(
    "path",
    [
        pytest.param((), id="none"),
        pytest.param((MESH.leaf("api").der, MESH.issuing.der, ROOT_DER), id="of another leaf"),
        pytest.param((MESH.issuing.der, ROOT_DER), id="without the leaf"),
    ],
)
def test_a_leaf_without_a_verified_path_of_its_own_is_unknown(path: tuple[bytes, ...]) -> None:
    assert refusal(Presented(HONEST.chain_der, path)).reason is Reason.UNKNOWN_CA


# -- the leaf ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("leaf", "why"),
    [
        (MESH.leaf(ca=True), "it is a CA certificate"),
        (MESH.leaf(key_usage=usage("digital_signature", "key_cert_sign")), "keyCertSign"),
        (MESH.leaf(key_usage=None), "no KeyUsage"),
        (MESH.leaf(eku=None), "no ExtendedKeyUsage"),
        (MESH.leaf(uris=()), "no URI names"),
        (MESH.leaf(uris=["spiffe://shop.internal/api", "spiffe://shop.internal/web"]), "2 URI names"),
    ],
)
def test_a_leaf_that_is_no_svid(leaf: Credential, why: str) -> None:
    refused = refusal(presented(leaf))
    assert refused.reason is Reason.BAD_IDENTITY
    assert why in refused.detail


def test_a_leaf_that_is_no_certificate() -> None:
    assert refusal(Presented((b"junk",), (b"junk",))).reason is Reason.BAD_IDENTITY


@pytest.mark.parametrize(
    "trust_domain", ["other.internal", "shop.internal.evil", "xshop.internal", "shop-internal", "internal"]
)
def test_another_trust_domain_under_the_same_ca(trust_domain: str) -> None:
    foreign = MESH.leaf(uris=[f"spiffe://{trust_domain}/api"])
    refused = refusal(presented(foreign))
    assert refused.reason is Reason.WRONG_TRUST_DOMAIN
    assert f"spiffe://{trust_domain}/api" in refused.detail
    assert "shop.internal" in refused.detail
    assert judge(presented(foreign), VerifyParams(trust_domain), NOW).id.trust_domain == trust_domain


# -- time --------------------------------------------------------------------------------------------------------------


def test_both_ends_of_the_validity_belong_to_it() -> None:
    start, end = NOW - timedelta(minutes=1), NOW + timedelta(hours=1)
    assert judge(presented(HONEST), TERMS, start).id == API
    assert judge(presented(HONEST), TERMS, end).id == API
    early, late = refusal(presented(HONEST), now=start - SECOND), refusal(presented(HONEST), now=end + SECOND)
    assert early.reason is Reason.NOT_YET_VALID
    assert f"not valid before {start:%FT%TZ}" in early.detail
    assert late.reason is Reason.EXPIRED
    assert f"expired at {end:%FT%TZ}" in late.detail


def test_a_leaf_lives_at_most_25_hours() -> None:
    start = NOW - timedelta(minutes=1)
    longest = MESH.leaf(not_before=start, not_after=start + timedelta(hours=25))
    assert judge(presented(longest), TERMS, NOW).id == API
    longer = MESH.leaf(not_before=start, not_after=start + timedelta(hours=25) + SECOND)
    assert refusal(presented(longer)).reason is Reason.BAD_IDENTITY
    assert "max_leaf_ttl" in refusal(presented(MESH.leaf(lifetime=timedelta(days=3650)))).detail


def test_the_mesh_may_say_otherwise_about_lifetimes() -> None:
    hour = MESH.leaf(not_before=NOW, not_after=NOW + timedelta(hours=1))
    assert judge(presented(hour), replace(TERMS, max_leaf_ttl=timedelta(hours=1)), NOW).id == API
    assert refusal(presented(hour), replace(TERMS, max_leaf_ttl=timedelta(minutes=59))).reason is Reason.BAD_IDENTITY


# -- revocation --------------------------------------------------------------------------------------------------------


def revoked(**what: object) -> VerifyParams:
    return replace(TERMS, revocations=Revocations(**what))  # type: ignore[arg-type]


def entry(certificate: Credential) -> tuple[bytes, int]:
    return certificate.certificate.issuer.public_bytes(), certificate.certificate.serial_number


def test_an_identity_revoked_by_time() -> None:
    start = NOW - timedelta(minutes=1)
    refused = refusal(presented(HONEST), revoked(identities={API: start + SECOND}))
    assert refused.reason is Reason.REVOKED
    assert "spiffe://shop.internal/api" in refused.detail
    assert judge(presented(HONEST), revoked(identities={API: start}), NOW).id == API, "issued then or later: good again"
    assert judge(presented(HONEST), revoked(identities={WEB: NOW + timedelta(days=1)}), NOW).id == API


def test_a_leaf_revoked_by_its_serial() -> None:
    refused = refusal(presented(HONEST), revoked(serials=frozenset({entry(HONEST)})))
    assert refused.reason is Reason.REVOKED
    assert f"{HONEST.certificate.serial_number:x}" in refused.detail
    name, serial = entry(HONEST)
    others = frozenset({(name, serial + 1), (b"another issuer", serial), entry(MESH.leaf("api"))})
    assert judge(presented(HONEST), revoked(serials=others), NOW).id == API


@pytest.mark.parametrize("issuer", [MESH.issuing, MESH.root], ids=["intermediate", "root"])
def test_an_issuer_revoked_by_its_serial_takes_its_leaves_with_it(issuer: Credential) -> None:
    refused = refusal(presented(HONEST), revoked(serials=frozenset({entry(issuer)})))
    assert refused.reason is Reason.REVOKED
    assert f"{issuer.certificate.serial_number:x}" in refused.detail
    assert judge(presented(HONEST), revoked(serials=frozenset({entry(Authority().issuing)})), NOW).id == API


def test_an_issuer_is_distrusted_by_its_key_whoever_signed_for_it() -> None:
    issuing = MESH.issuing.certificate
    refused = refusal(presented(HONEST), revoked(keys=frozenset({key_digest(issuing)})))
    assert refused.reason is Reason.REVOKED
    assert "revoked issuer" in refused.detail
    again = MESH.ca("issuing", key=MESH.issuing.key)
    assert again.certificate != issuing
    assert key_digest(again.certificate) == key_digest(issuing)
    other = frozenset({key_digest(Authority().issuing.certificate)})
    assert judge(presented(HONEST), revoked(keys=other), NOW).id == API


def test_a_list_that_is_too_old_lets_nobody_in_and_says_which_it_is() -> None:
    refused = refusal(presented(HONEST), revoked(fresh_until=NOW - SECOND))
    assert refused.reason is Reason.REVOCATIONS_STALE
    assert f"{NOW - SECOND:%FT%TZ}" in refused.detail
    assert judge(presented(HONEST), revoked(fresh_until=NOW), NOW).id == API, "still good in its last second"
    known = revoked(fresh_until=NOW - SECOND, identities={API: NOW})
    assert refusal(presented(HONEST), known).reason is Reason.REVOKED, "what is known to be revoked is called so"


def test_only_the_verified_path_is_looked_at_for_revoked_issuers() -> None:
    other = Authority().issuing
    sent = Presented((*HONEST.chain_der, other.der), (*HONEST.chain_der, ROOT_DER))
    assert judge(sent, revoked(serials=frozenset({entry(other)})), NOW).id == API


# -- whom we expected --------------------------------------------------------------------------------------------------


def test_the_expected_peer_and_nobody_else() -> None:
    assert judge(presented(HONEST), replace(TERMS, expected=API), NOW).id == API
    refused = refusal(presented(MESH.leaf("web")), replace(TERMS, expected=API))
    assert refused.reason is Reason.UNEXPECTED_PEER
    assert refused.detail == "met spiffe://shop.internal/web (valid, same CA)"


@pytest.mark.parametrize("name", ["API", "api-2", "ap", "api/x", "x/api", "api."])
def test_nearly_the_expected_peer_is_another_one(name: str) -> None:
    assert refusal(presented(MESH.leaf(name)), replace(TERMS, expected=API)).reason is Reason.UNEXPECTED_PEER


# -- precedence --------------------------------------------------------------------------------------------------------


def test_reasons_win_in_a_fixed_order() -> None:
    """One certificate that breaks every rule; each line mends what the line before was refused for."""
    long, foreign = timedelta(days=30), ["spiffe://other.internal/web"]
    worst = MESH.leaf(uris=foreign, eku=None, lifetime=long, not_before=NOW - long)
    mesh = replace(TERMS, expected=API)
    late, early = NOW + 2 * long, NOW - 2 * long

    assert refusal(Presented(()), mesh, late).reason is Reason.NO_CERTIFICATE
    assert "at most" in refusal(Presented(worst.chain_der * 3, fault=FAULT), mesh, late).detail
    assert refusal(presented(worst, fault=FAULT), mesh, late).reason is Reason.UNKNOWN_CA
    assert refusal(Presented(worst.chain_der), mesh, late).reason is Reason.UNKNOWN_CA
    refused = refusal(presented(worst), mesh, late)
    assert (refused.reason, "ExtendedKeyUsage" in refused.detail) == (Reason.BAD_IDENTITY, True)

    foreigner = MESH.leaf(uris=foreign, lifetime=long, not_before=NOW - long)
    assert refusal(presented(foreigner), mesh, late).reason is Reason.WRONG_TRUST_DOMAIN

    web = MESH.leaf("web", lifetime=long, not_before=NOW - long)
    mesh = replace(mesh, revocations=Revocations({WEB: NOW + long}, frozenset({entry(web), entry(MESH.issuing)})))
    assert refusal(presented(web), mesh, late).reason is Reason.EXPIRED
    assert refusal(presented(web), mesh, early).reason is Reason.NOT_YET_VALID
    refused = refusal(presented(web), mesh)
    assert (refused.reason, "max_leaf_ttl" in refused.detail) == (Reason.BAD_IDENTITY, True)

    mesh = replace(mesh, max_leaf_ttl=3 * long)
    assert "issued before" in refusal(presented(web), mesh).detail
    mesh = replace(mesh, revocations=replace(mesh.revocations, identities={}))
    assert "revoked certificate (serial" in refusal(presented(web), mesh).detail
    mesh = replace(mesh, revocations=Revocations(serials=frozenset({entry(MESH.issuing)})))
    assert "revoked issuer" in refusal(presented(web), mesh).detail
    mesh = replace(mesh, revocations=Revocations())
    assert refusal(presented(web), mesh).reason is Reason.UNEXPECTED_PEER
    assert judge(presented(web), replace(mesh, expected=WEB), NOW).id == WEB


def test_a_refusal_says_its_reason_and_is_printable() -> None:
    refused = refusal(presented(MESH.leaf(uris=["spiffe://shop.internal/api\n\x1b[2J"])))
    assert str(refused).startswith("bad_identity: ")
    assert str(refused).isprintable()
    assert refused.peer_reason is None


def test_certificates_of_another_encoding_are_no_leaf() -> None:
    text = pem(HONEST.certificate)
    assert refusal(Presented((text,), (text,))).reason is Reason.BAD_IDENTITY
