"""How keys are made, and the digests by which keys and certificates are told from others. Pure."""

from __future__ import annotations

from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


def new_key() -> ec.EllipticCurvePrivateKey:
    """A new private key, of the one kind that a mesh makes: P-256 (FIPS 186-5)."""
    return ec.generate_private_key(ec.SECP256R1())


def certificate_digest(certificate: x509.Certificate) -> bytes:
    """SHA-256 of a certificate's DER: how a root is pinned and told from others."""
    return der_digest(certificate.public_bytes(Encoding.DER))


def der_digest(der: bytes) -> bytes:
    """The digest of a certificate that is at hand as DER."""
    return sha256(der).digest()


def key_digest(certificate: x509.Certificate) -> bytes:
    """SHA-256 of a certificate's public key: the same for every certificate of that key."""
    return public_key_digest(certificate.public_key())


def public_key_digest(key: PublicKeyTypes) -> bytes:
    """SHA-256 of a public key's DER (SubjectPublicKeyInfo, RFC 5280 4.1)."""
    return sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
