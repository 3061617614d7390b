"""New keys, and the digests that identify keys and certificates. Pure."""

from __future__ import annotations

from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


def new_key() -> ec.EllipticCurvePrivateKey:
    """A new private key on P-256 (FIPS 186-5), as all keys of a mesh are."""
    return ec.generate_private_key(ec.SECP256R1())


def certificate_digest(certificate: x509.Certificate) -> bytes:
    """SHA-256 of a certificate's DER. A root is pinned by this digest."""
    return der_digest(certificate.public_bytes(Encoding.DER))


def der_digest(der: bytes) -> bytes:
    """SHA-256 of a certificate that is given as DER."""
    return sha256(der).digest()


def key_digest(certificate: x509.Certificate) -> bytes:
    """SHA-256 of a certificate's public key: the same for every certificate of that key."""
    return public_key_digest(certificate.public_key())


def public_key_digest(key: PublicKeyTypes) -> bytes:
    """SHA-256 of a public key's DER (SubjectPublicKeyInfo, RFC 5280 4.1)."""
    return sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
