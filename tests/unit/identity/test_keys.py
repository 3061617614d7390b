"""Keys of the one kind there is, and the digests that everything is told apart by."""

from __future__ import annotations

from hashlib import sha256

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sidecar.identity.keys import certificate_digest, der_digest, key_digest, new_key, public_key_digest
from tests.beds.certificates import Authority

MESH = Authority()


def test_a_new_key_is_on_p_256_and_is_new() -> None:
    one, other = new_key(), new_key()
    assert isinstance(one.curve, ec.SECP256R1)
    assert one.private_numbers() != other.private_numbers()


def test_a_certificate_s_digest_is_its_sha256_fingerprint() -> None:
    certificate = MESH.root.certificate
    assert certificate_digest(certificate) == certificate.fingerprint(hashes.SHA256())
    assert der_digest(certificate.public_bytes(Encoding.DER)) == certificate_digest(certificate)
    assert certificate_digest(MESH.leaf("web").certificate) != certificate_digest(certificate)


def test_a_key_s_digest_is_the_same_in_each_of_its_certificates() -> None:
    key = new_key()
    one, other = (MESH.leaf(name, key=key).certificate for name in ("web", "api"))
    info = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert key_digest(one) == key_digest(other) == public_key_digest(key.public_key()) == sha256(info).digest()
    assert key_digest(one) != key_digest(MESH.leaf("web").certificate)
