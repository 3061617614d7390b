"""What is in our certificates, exactly: every extension, whether it is critical, and what OpenSSL makes of the chain."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID
from OpenSSL import crypto

from certs.protocol import x509_profile
from certs.protocol.x509_profile import Issuer, ProfileError
from sidecar.identity.spiffe import SpiffeId, parse_spiffe_id, svid_faults
from tests.beds.certificates import CA_USAGE, CLIENT_AUTH, DAY, HONEST_USAGE, HOUR, SERVER_AUTH, Authority, pem

NOW = datetime.now(UTC).replace(microsecond=0)
MINUTE = timedelta(minutes=1)
DOMAIN = "shop.internal"
API = SpiffeId(DOMAIN, ("api",))

ROOT_KEY, ISSUING_KEY, LEAF_KEY = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
ROOT = x509_profile.root(DOMAIN, ROOT_KEY, NOW)
ISSUING = x509_profile.intermediate(DOMAIN, ISSUING_KEY.public_key(), Issuer(ROOT, ROOT_KEY), NOW)
ISSUER = Issuer(ISSUING, ISSUING_KEY)


def leaf(
    identity: SpiffeId = API, ttl: timedelta = HOUR, now: datetime = NOW, issuer: Issuer = ISSUER
) -> x509.Certificate:
    return x509_profile.leaf(identity, LEAF_KEY.public_key(), issuer, now, ttl)


def extensions(certificate: x509.Certificate) -> dict[str, tuple[x509.ExtensionType, bool]]:
    return {one.oid._name: (one.value, one.critical) for one in certificate.extensions}


def key_ids(
    key: ec.EllipticCurvePrivateKey, issuer: ec.EllipticCurvePrivateKey
) -> dict[str, tuple[x509.ExtensionType, bool]]:
    below, above = (x509.SubjectKeyIdentifier.from_public_key(each.public_key()) for each in (key, issuer))
    return {
        "subjectKeyIdentifier": (below, False),
        "authorityKeyIdentifier": (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(above), False),
    }


# -- what is in them ---------------------------------------------------------------------------------------------------


def test_a_root_is_exactly_this() -> None:
    assert extensions(ROOT) == {
        "basicConstraints": (x509.BasicConstraints(ca=True, path_length=1), True),
        "keyUsage": (CA_USAGE, True),
        **key_ids(ROOT_KEY, ROOT_KEY),
    }
    assert (ROOT.not_valid_before_utc, ROOT.not_valid_after_utc) == (NOW - MINUTE, NOW + 3650 * DAY)
    assert ROOT.subject == ROOT.issuer


def test_an_intermediate_is_exactly_this() -> None:
    permitted = [x509.UniformResourceIdentifier(DOMAIN)]
    assert extensions(ISSUING) == {
        "basicConstraints": (x509.BasicConstraints(ca=True, path_length=0), True),
        "keyUsage": (CA_USAGE, True),
        "nameConstraints": (x509.NameConstraints(permitted_subtrees=permitted, excluded_subtrees=None), True),
        **key_ids(ISSUING_KEY, ROOT_KEY),
    }
    assert (ISSUING.not_valid_before_utc, ISSUING.not_valid_after_utc) == (NOW - MINUTE, NOW + 90 * DAY)
    assert ISSUING.issuer == ROOT.subject != ISSUING.subject


def test_a_leaf_is_exactly_this() -> None:
    certificate = leaf()
    names = [x509.UniformResourceIdentifier("spiffe://shop.internal/api"), x509.DNSName("api")]
    assert extensions(certificate) == {
        "basicConstraints": (x509.BasicConstraints(ca=False, path_length=None), True),
        "keyUsage": (HONEST_USAGE, True),
        "extendedKeyUsage": (x509.ExtendedKeyUsage([SERVER_AUTH, CLIENT_AUTH]), False),
        "subjectAltName": (x509.SubjectAlternativeName(names), True),
        **key_ids(LEAF_KEY, ISSUING_KEY),
    }
    assert (certificate.not_valid_before_utc, certificate.not_valid_after_utc) == (NOW - MINUTE, NOW + HOUR)
    assert certificate.subject == x509.Name([])
    assert svid_faults(certificate) == []


@pytest.mark.parametrize("certificate", [ROOT, ISSUING, leaf()], ids=["root", "intermediate", "leaf"])
def test_all_are_version_3_p256_sha256(certificate: x509.Certificate) -> None:
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)
    assert isinstance(certificate.signature_hash_algorithm, hashes.SHA256)
    assert certificate.version is x509.Version.v3


def test_serials_are_random_positive_and_at_most_20_bytes() -> None:
    serials = {leaf().serial_number for _ in range(50)}
    assert len(serials) == 50
    assert all(0 < serial < 1 << 159 for serial in serials)
    assert max(serials) > 1 << 140


def test_ca_names_differ_with_their_keys_and_fit_for_the_longest_domain() -> None:
    other = x509_profile.root(DOMAIN, ISSUING_KEY, NOW)
    assert other.subject != ROOT.subject
    long = x509_profile.root("d" * 255, ROOT_KEY, NOW)
    assert len(str(long.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)) <= 64


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["api", "API", "web-admin", "a.b", "1a", "a" * 63, "x.1a", "9.a"])
def test_a_service_with_a_host_name_gets_it_as_a_dns_name(service: str) -> None:
    names = leaf(SpiffeId(DOMAIN, (service,))).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [service]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"spiffe://{DOMAIN}/{service}"]


@pytest.mark.parametrize(
    "path", ["no_host", "-a", "a-", "a..b", ".a", "a.", "a" * 64, "10.0.0.1", "7", "mesh/ca", "a/b/c"]
)
def test_any_other_is_left_without_one(path: str) -> None:
    names = leaf(parse_spiffe_id(f"spiffe://{DOMAIN}/{path}")).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert list(names.value) == [x509.UniformResourceIdentifier(f"spiffe://{DOMAIN}/{path}")]


def test_a_host_name_has_at_most_253_characters() -> None:
    longest = ".".join(["a" * 63] * 3 + ["a" * 61])
    assert x509_profile.is_dns_name(longest)
    assert not x509_profile.is_dns_name(longest + "a")
    assert not x509_profile.is_dns_name("")
    assert not x509_profile.is_dns_name("api\n")


# -- time --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ttl", [5 * MINUTE, HOUR, 24 * HOUR])
def test_the_lifetimes_that_are_allowed(ttl: timedelta) -> None:
    assert leaf(ttl=ttl).not_valid_after_utc == NOW + ttl


@pytest.mark.parametrize("ttl", [5 * MINUTE - MINUTE / 60, 24 * HOUR + MINUTE / 60, timedelta(0), -HOUR, timedelta.max])
def test_any_other_is_an_error(ttl: timedelta) -> None:
    with pytest.raises(ProfileError, match="for 5 minutes to 24 hours"):
        leaf(ttl=ttl)


def test_a_leaf_does_not_outlive_its_issuer() -> None:
    end = ISSUING.not_valid_after_utc
    assert leaf(now=end - 10 * MINUTE).not_valid_after_utc == end
    assert leaf(now=end - 2 * HOUR).not_valid_after_utc == end - HOUR


def test_nor_does_an_intermediate() -> None:
    late = ROOT.not_valid_after_utc - DAY
    issuing = x509_profile.intermediate(DOMAIN, ISSUING_KEY.public_key(), Issuer(ROOT, ROOT_KEY), late)
    assert issuing.not_valid_after_utc == ROOT.not_valid_after_utc


def test_a_leaf_is_not_backdated_beyond_its_issuer() -> None:
    for now in (NOW - MINUTE / 2, ISSUING.not_valid_before_utc):
        assert leaf(now=now).not_valid_before_utc == ISSUING.not_valid_before_utc


@pytest.mark.parametrize("now", [NOW - 2 * MINUTE, NOW + 90 * DAY, NOW + 91 * DAY])
def test_an_issuer_out_of_its_time_signs_nothing(now: datetime) -> None:
    with pytest.raises(ProfileError, match="the issuer's certificate is valid from"):
        leaf(now=now)


# -- keys and domains --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()).public_key(),
        ec.generate_private_key(ec.SECP256K1()).public_key(),
        rsa.generate_private_key(65537, 2048).public_key(),
        ed25519.Ed25519PrivateKey.generate().public_key(),
    ],
    ids=["P-384", "secp256k1", "RSA", "Ed25519"],
)
def test_keys_are_p256(key: ec.EllipticCurvePublicKey) -> None:
    with pytest.raises(ProfileError, match="P-256"):
        x509_profile.leaf(API, key, ISSUER, NOW)
    with pytest.raises(ProfileError, match="P-256"):
        x509_profile.intermediate(DOMAIN, key, Issuer(ROOT, ROOT_KEY), NOW)


def test_a_root_key_is_p256() -> None:
    with pytest.raises(ProfileError, match="P-256"):
        x509_profile.root(DOMAIN, ec.generate_private_key(ec.SECP384R1()), NOW)


def test_an_issuer_s_key_belongs_to_its_certificate() -> None:
    with pytest.raises(ProfileError, match="does not belong"):
        leaf(issuer=Issuer(ISSUING, ROOT_KEY))


@pytest.mark.parametrize(
    "domain", ["", "Shop.internal", "shop/internal", "shop.internal\n", "spiffe://shop.internal", ".shop"]
)
def test_what_is_no_trust_domain_gets_no_ca(domain: str) -> None:
    with pytest.raises(ProfileError, match="trust domain"):
        x509_profile.root(domain, ROOT_KEY, NOW)
    with pytest.raises(ProfileError, match="trust domain"):
        x509_profile.intermediate(domain, ISSUING_KEY.public_key(), Issuer(ROOT, ROOT_KEY), NOW)


# -- what OpenSSL says -------------------------------------------------------------------------------------------------


def openssl_fault(certificate: x509.Certificate, *above: x509.Certificate) -> str | None:
    """What the OpenSSL that we ship with finds, strictly; None if nothing."""
    store = crypto.X509Store()
    store.add_cert(crypto.X509.from_cryptography(ROOT))
    store.set_flags(crypto.X509StoreFlags.X509_STRICT)
    chain = [crypto.X509.from_cryptography(each) for each in above]
    try:
        crypto.X509StoreContext(store, crypto.X509.from_cryptography(certificate), chain).verify_certificate()
    except crypto.X509StoreContextError as error:
        return str(error)
    return None


@pytest.mark.parametrize("path", ["api", "no_host", "mesh/ca"])
def test_openssl_strict_accepts_the_chain(path: str) -> None:
    assert openssl_fault(leaf(parse_spiffe_id(f"spiffe://{DOMAIN}/{path}")), ISSUING) is None


def test_and_not_without_the_intermediate() -> None:
    assert "unable to get local issuer" in str(openssl_fault(leaf()))


@pytest.mark.parametrize(
    "domain", ["other.internal", "x.shop.internal", "shop.internal.evil", "shop", "xshop.internal"]
)
def test_openssl_refuses_another_domain_s_leaf_under_our_issuing_ca(domain: str) -> None:
    assert "permitted subtree violation" in str(openssl_fault(leaf(SpiffeId(domain, ("api",))), ISSUING))


def test_openssl_refuses_a_ca_below_the_issuing_one() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    below = x509_profile.intermediate(DOMAIN, key.public_key(), ISSUER, NOW)
    assert "path length" in str(openssl_fault(leaf(issuer=Issuer(below, key)), below, ISSUING))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl program on this machine")
@pytest.mark.parametrize("purpose", ["sslserver", "sslclient"])
def test_the_openssl_program_agrees(tmp_path: Path, purpose: str) -> None:
    files = {
        "root": pem(ROOT),
        "issuing": pem(ISSUING),
        "api": pem(leaf()),
        "foreign": pem(leaf(SpiffeId("other", ("api",)))),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)

    def verify(name: str) -> subprocess.CompletedProcess[str]:
        options = ["-x509_strict", "-purpose", purpose, "-CAfile", "root", "-untrusted", "issuing"]
        return subprocess.run(
            ["openssl", "verify", *options, name], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
        )

    assert verify("api").stdout == "api: OK\n"
    refused = verify("foreign")
    assert refused.returncode != 0
    assert "permitted subtree violation" in refused.stderr


def test_the_factory_of_the_tests_makes_the_same_leaf_by_itself() -> None:
    """Two builders that share no code agree, so that what other tests call honest is what the CA makes."""
    theirs, ours = Authority(now=NOW).leaf("api", dns=["api"]).certificate, leaf()
    assert {each.oid: each.critical for each in theirs.extensions} == {
        each.oid: each.critical for each in ours.extensions
    }
    differing = {ExtensionOID.SUBJECT_KEY_IDENTIFIER, ExtensionOID.AUTHORITY_KEY_IDENTIFIER}
    for each in ours.extensions:
        assert each.oid in differing or theirs.extensions.get_extension_for_oid(each.oid).value == each.value


# -- the delegate ------------------------------------------------------------------------------------------------------

DELEGATE_KEY = ec.generate_private_key(ec.SECP256R1())
DELEGATE = x509_profile.delegate(DELEGATE_KEY.public_key(), Issuer(ROOT, ROOT_KEY), NOW)


def test_a_delegate_is_exactly_this() -> None:
    assert extensions(DELEGATE) == {
        "basicConstraints": (x509.BasicConstraints(ca=False, path_length=None), True),
        "keyUsage": (HONEST_USAGE, True),
        "extendedKeyUsage": (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING]), True),
        **key_ids(DELEGATE_KEY, ROOT_KEY),
    }
    assert (DELEGATE.not_valid_before_utc, DELEGATE.not_valid_after_utc) == (NOW - MINUTE, NOW + 90 * DAY)
    assert DELEGATE.issuer == ROOT.subject != DELEGATE.subject


def test_a_delegate_is_no_service() -> None:
    assert svid_faults(DELEGATE) != []
    assert svid_faults(leaf()) == [], "the twin"
    assert openssl_fault(DELEGATE) is None, "and OpenSSL, asked for no purpose, minds nothing"


def test_a_delegate_s_key_is_p256_and_its_issuer_within_its_time() -> None:
    with pytest.raises(ProfileError, match="P-256"):
        x509_profile.delegate(ec.generate_private_key(ec.SECP384R1()).public_key(), Issuer(ROOT, ROOT_KEY), NOW)
    with pytest.raises(ProfileError, match="is valid from"):
        x509_profile.delegate(DELEGATE_KEY.public_key(), Issuer(ROOT, ROOT_KEY), ROOT.not_valid_after_utc)


# -- not before, and more names ----------------------------------------------------------------------------------------


def test_a_leaf_of_an_identity_that_was_revoked_is_not_dated_back_before_that() -> None:
    def since(not_before: datetime | None) -> datetime:
        return x509_profile.leaf(API, LEAF_KEY.public_key(), ISSUER, NOW, not_before=not_before).not_valid_before_utc

    assert since(None) == NOW - MINUTE
    assert since(NOW - MINUTE / 2) == NOW - MINUTE / 2
    assert since(NOW + MINUTE / 60) == NOW + MINUTE / 60, "in the second of the revocation itself"
    assert since(NOW - HOUR) == NOW - MINUTE, "an old revocation dates nothing back further"


def test_a_leaf_that_would_never_be_good_is_not_made() -> None:
    with pytest.raises(ProfileError, match="which is never"):
        x509_profile.leaf(API, LEAF_KEY.public_key(), ISSUER, NOW, not_before=NOW + HOUR)
    assert x509_profile.leaf(API, LEAF_KEY.public_key(), ISSUER, NOW, not_before=NOW + HOUR - MINUTE / 60)


def test_more_dns_names_are_for_tools_and_only_where_they_are_names() -> None:
    certificate = x509_profile.leaf(
        parse_spiffe_id(f"spiffe://{DOMAIN}/mesh/ca"),
        LEAF_KEY.public_key(),
        ISSUER,
        NOW,
        dns=["ca.example", "10.0.0.1", "::1", "no_host", "localhost"],
    )
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["ca.example", "localhost"]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"spiffe://{DOMAIN}/mesh/ca"]
    assert svid_faults(certificate) == []
