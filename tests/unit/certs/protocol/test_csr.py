"""What a CSR may say: a key and its owner's signature, the one name that its sender has anyway, and nothing else."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID
from hypothesis import given, settings
from hypothesis import strategies as st

from certs.protocol.csr import MAX_CSR_BYTES, check_csr, key_hash, proof_of_possession, read_csr
from certs.protocol.denial import Denial, Denied
from tests.beds.certificates import (
    CA_USAGE,
    ECDSA_SHA1,
    der,
    ec_key,
    extension_request,
    pem_of,
    raw,
    raw_csr,
    raw_extension,
    raw_names,
    rsa_key,
)
from tests.beds.store import API, csr, denial

KEY, ANOTHER = ec_key(), ec_key()
API_URI = "spiffe://shop.internal/api"
SAN, EKU = bytes.fromhex("551d11"), bytes.fromhex("551d25")


def judge(text: str) -> ec.EllipticCurvePublicKey:
    """As the registrar does."""
    request, key = read_csr(text)
    check_csr(request, API)
    return key


def test_the_twin_a_csr_for_its_own_name() -> None:
    assert judge(csr(KEY)) == KEY.public_key()


def test_one_that_asks_for_nothing_in_particular() -> None:
    assert judge(csr(KEY, uris=())) == KEY.public_key()
    assert judge(raw_csr(KEY)) == KEY.public_key()


def test_one_put_together_by_hand_is_as_good() -> None:
    assert judge(raw_csr(KEY, extension_request(raw_extension(SAN, raw_names(uris=[API_URI.encode()])))))


@pytest.mark.parametrize(
    "text",
    [
        csr(uris=["spiffe://shop.internal/web"]),
        csr(uris=["spiffe://shop.internal/mesh/ca"]),
        csr(uris=["spiffe://other.internal/api"]),
        csr(uris=[API_URI, "spiffe://shop.internal/web"]),
        csr(uris=[API_URI, API_URI]),
        csr(uris=[API_URI + "/"]),
        csr(uris=["SPIFFE://shop.internal/api"]),
        csr(uris=[API_URI + "\n"]),
        csr(names=[x509.DNSName("api")]),
        csr(names=[x509.DNSName("admin.shop.internal")]),
        csr(uris=(), names=[x509.DNSName(API_URI)]),
        csr(uris=(), names=[x509.RFC822Name("api@shop.internal")]),
        csr(uris=(), names=[x509.RegisteredID(x509.ObjectIdentifier("1.2.3"))]),
        csr(uris=(), names=[x509.OtherName(x509.ObjectIdentifier("1.2.3"), b"\x05\x00")]),
        csr(uris=(), names=[x509.DirectoryName(x509.Name([]))]),
        raw_csr(ec_key(), extension_request(raw_extension(SAN, der(0x30, b"")))),
    ],
)
def test_any_other_name_is_refused(text: str) -> None:
    with pytest.raises(Denied, match=f"may ask for {API_URI} and nothing else") as refused:
        judge(text)
    assert denial(refused) is Denial.BAD_CSR


@pytest.mark.parametrize(
    ("extension", "oid"),
    [
        (x509.BasicConstraints(ca=True, path_length=None), "2.5.29.19"),
        (x509.BasicConstraints(ca=False, path_length=None), "2.5.29.19"),
        (CA_USAGE, "2.5.29.15"),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING]), "2.5.29.37"),
        (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00"), "1.3.6.1.4.1.55555.1"),
    ],
    ids=["cA=true", "cA=false", "keyCertSign", "OCSPSigning", "unknown"],
)
def test_no_extension_besides_is_asked_for(extension: x509.ExtensionType, oid: str) -> None:
    with pytest.raises(Denied, match=f"asks for the extension {oid}") as refused:
        judge(csr(extensions=[(extension, True)]))
    assert denial(refused) is Denial.BAD_CSR


def test_a_subject_is_refused_and_shown_escaped() -> None:
    with pytest.raises(Denied, match=r"has the subject 'CN=api\\x1b\[31m'"):
        judge(csr(cn="api\x1b[31m"))


@pytest.mark.parametrize(
    "value",
    [b"", b"\xff", b"\x30", b"\x30\x84\xff\xff\xff\xff", b"\x30\x03\x06\x01", b"\x05\x00", b"\x30\x02\x06\x00"],
)
@pytest.mark.parametrize(
    "oid",
    [ExtensionOID.EXTENDED_KEY_USAGE, ExtensionOID.SUBJECT_ALTERNATIVE_NAME, ExtensionOID.BASIC_CONSTRAINTS],
    ids=["EKU", "SAN", "basicConstraints"],
)
def test_a_malformed_extension_is_a_refusal_and_no_crash(oid: x509.ObjectIdentifier, value: bytes) -> None:
    with pytest.raises(Denied) as refused:
        judge(csr(uris=(), extensions=[raw(oid, value)]))
    assert denial(refused) is Denial.BAD_CSR


@pytest.mark.parametrize(
    "attributes",
    [
        extension_request(b"\x05\x00"),
        extension_request(b"\xff"),
        extension_request(),
        extension_request(raw_extension(SAN, raw_names(uris=[b"spiffe://shop.internal/\xffapi"]))),
        extension_request(raw_extension(EKU, b"\x30\x80")),
    ],
)
def test_extensions_that_cannot_be_read(attributes: bytes) -> None:
    with pytest.raises(Denied) as refused:
        judge(raw_csr(KEY, attributes))
    assert denial(refused) is Denial.BAD_CSR


def test_the_same_extension_twice() -> None:
    one = raw_extension(SAN, raw_names(uris=[API_URI.encode()]))[2:]
    with pytest.raises(Denied, match="cannot be read"):
        judge(raw_csr(KEY, extension_request(der(0x30, one + one))))


def test_extensions_asked_for_twice_the_second_time_for_another_s_name() -> None:
    honest, evil = (
        extension_request(raw_extension(SAN, raw_names(uris=[uri])))
        for uri in (API_URI.encode(), b"spiffe://shop.internal/web")
    )
    assert judge(raw_csr(KEY, honest))
    with pytest.raises(Denied) as refused:
        judge(raw_csr(KEY, honest + evil))
    assert denial(refused) is Denial.BAD_CSR


def test_attributes_besides_are_refused() -> None:
    challenge = (x509.ObjectIdentifier("1.2.840.113549.1.9.7"), b"password")
    with pytest.raises(Denied, match="attributes besides its extensions"):
        judge(csr(attributes=[challenge]))


# -- keys and signatures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        rsa_key(1024),
        rsa_key(2048),
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP256K1()),
        ec.generate_private_key(ec.SECP192R1()),
    ],
    ids=["RSA 1024", "RSA 2048", "P-384", "secp256k1", "P-192"],
)
def test_a_key_that_is_not_p_256(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> None:
    with pytest.raises(Denied, match="not an ECDSA key on the curve P-256") as refused:
        judge(csr(key))
    assert denial(refused) is Denial.BAD_CSR


def test_an_ed25519_key() -> None:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    text = builder.sign(ed25519.Ed25519PrivateKey.generate(), None).public_bytes(Encoding.PEM).decode()
    with pytest.raises(Denied, match="not an ECDSA key on the curve P-256"):
        judge(text)


def test_a_signature_by_another_key_so_the_key_in_it_is_somebody_else_s() -> None:
    assert judge(raw_csr(KEY, signer=KEY)) == KEY.public_key()
    with pytest.raises(Denied, match="not signed with its own key") as refused:
        judge(raw_csr(KEY, signer=ANOTHER))
    assert denial(refused) is Denial.BAD_CSR


def test_a_signature_of_a_weak_hash() -> None:
    with pytest.raises(Denied, match="not signed with SHA-256"):
        judge(raw_csr(KEY, algorithm=ECDSA_SHA1))


@pytest.mark.parametrize(
    "algorithm", ["300d06092a864886f70d01010b0500", "300a06080086 48ce3d040302", "300506032b6570"]
)  # RSA with SHA-256; none that there is; Ed25519
def test_a_signature_of_an_algorithm_that_is_not_the_key_s(algorithm: str) -> None:
    with pytest.raises(Denied) as refused:
        judge(raw_csr(KEY, algorithm=bytes.fromhex(algorithm)))
    assert denial(refused) is Denial.BAD_CSR


# -- bytes of strangers ------------------------------------------------------------------------------------------------


def test_a_huge_one_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(Denied, match="larger than 4096 bytes"):
        judge("A" * (1 << 20))
    text = csr(KEY)
    assert judge(text + "\n" * (MAX_CSR_BYTES - len(text)))
    with pytest.raises(Denied, match="larger than 4096 bytes"):
        judge(text + "\n" * (MAX_CSR_BYTES - len(text) + 1))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "junk",
        "-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n",
        csr(KEY)[:-40],
        csr(KEY).replace("CERTIFICATE REQUEST", "CERTIFICATE"),
        csr(KEY).replace("M", "é", 1),
        "\0" + csr(KEY)[1:],
        "\ud800",
    ],
)
def test_what_is_no_csr(text: str) -> None:
    with pytest.raises(Denied, match="not a certificate signing request in PEM") as refused:
        judge(text)
    assert denial(refused) is Denial.BAD_CSR


@settings(deadline=None)
@given(st.text(max_size=300))
def test_no_text_does_anything_but_being_refused(text: str) -> None:
    with pytest.raises(Denied):
        read_csr(text)


HONEST = x509.load_pem_x509_csr(csr(KEY).encode()).public_bytes(Encoding.DER)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_changed_byte_makes_it_refused(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(HONEST) - 1))
    new = data.draw(st.integers(0, 255).filter(lambda value: value != HONEST[at]))
    with pytest.raises(Denied) as refused:
        judge(pem_of(HONEST[:at] + bytes([new]) + HONEST[at + 1 :]))
    assert denial(refused) is Denial.BAD_CSR


# -- the proof that is asked of the holder of an expired certificate ---------------------------------------------------


def test_a_proof_is_of_one_nonce_and_one_key() -> None:
    proof = proof_of_possession(b"nonce", KEY.public_key())
    assert proof.startswith(b"mesh-reenrol/1\0")
    assert proof != proof_of_possession(b"other", KEY.public_key())
    assert proof != proof_of_possession(b"nonce", ANOTHER.public_key())


def test_a_key_s_hash_is_of_its_public_half_in_der() -> None:
    public = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    request, key = read_csr(csr(KEY))
    assert request.is_signature_valid
    assert key_hash(key) == key_hash(KEY.public_key()) != key_hash(ANOTHER.public_key())
    assert len(public) == 91
    assert len(key_hash(key)) == 64
