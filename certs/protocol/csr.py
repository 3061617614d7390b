"""The rules for a certificate signing request, and the proof that its sender has the key. Pure; fails closed.

A CSR (RFC 2986) carries a public key and proves that its sender has the private one. The sender's credential (a token, a
secret, a certificate) decides the identity. So a CSR may ask for exactly that identity or for no name at all. Anything else
is refused, not corrected: a CA that silently drops what it does not grant hides an attack, and one that copies it into the
certificate grants names that it did not check.
"""

from __future__ import annotations

import warnings

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from certs.protocol.denial import Denial, Denied
from sidecar.identity.keys import public_key_digest
from sidecar.identity.spiffe import SpiffeId, shown

MAX_CSR_BYTES = 4096
"""A CSR with a P-256 key and one name has about 500."""

_EXTENSION_REQUEST = x509.ObjectIdentifier("1.2.840.113549.1.9.14")

PROOF = b"mesh-reenrol/1\0"
"""The prefix of what a re-enrolment signs, so that no other signature can be used for it (:func:`proof_of_possession`)."""


def read_csr(text: str) -> tuple[x509.CertificateSigningRequest, ec.EllipticCurvePublicKey]:
    """Reads a CSR in PEM and verifies its signature; returns it and its P-256 key. Raises :class:`Denied`."""
    if len(text) > MAX_CSR_BYTES:
        raise Denied(Denial.BAD_CSR, f"the CSR is larger than {MAX_CSR_BYTES} bytes; only a key is asked for")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            csr = x509.load_pem_x509_csr(text.encode("ascii"))
            key = csr.public_key()
    except Exception as error:  # a parser of untrusted bytes raises many classes
        raise Denied(Denial.BAD_CSR, "the CSR is not a certificate signing request in PEM (RFC 2986)") from error
    if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)):
        raise Denied(Denial.BAD_CSR, "the CSR's key is not an ECDSA key on the curve P-256; the mesh uses no others")
    try:
        is_strong = isinstance(csr.signature_hash_algorithm, hashes.SHA256 | hashes.SHA384 | hashes.SHA512)
        is_valid = is_strong and csr.is_signature_valid
    except Exception:  # as above; also for an unknown algorithm
        is_strong = is_valid = False
    if not is_strong:
        raise Denied(Denial.BAD_CSR, "the CSR is not signed with SHA-256, SHA-384 or SHA-512")
    if not is_valid:
        raise Denied(Denial.BAD_CSR, "the CSR is not signed with its own key, so its sender may not have that key")
    return csr, key


def check_csr(csr: x509.CertificateSigningRequest, identity: SpiffeId) -> None:
    """Raises :class:`Denied` unless the CSR asks for ``identity`` alone, or for no name."""
    if csr.subject.rdns:
        raise Denied(
            Denial.BAD_CSR,
            f"the CSR has the subject {shown(csr.subject.rfc4514_string())}; an SVID has no subject: leave it empty",
        )
    try:
        extensions = list(csr.extensions)
        attributes = list(csr.attributes)
    except Exception as error:  # malformed; each way has its own class
        raise Denied(Denial.BAD_CSR, "the CSR's extensions cannot be read") from error
    # RFC 2985 5.4.2: one request for extensions. The parser reads only the first, so a second would not be checked.
    if [attribute.oid for attribute in attributes] not in ([], [_EXTENSION_REQUEST]):
        raise Denied(Denial.BAD_CSR, "the CSR has attributes besides its extensions; it may have none")
    for extension in extensions:
        names = extension.value
        if not isinstance(names, x509.SubjectAlternativeName):
            raise Denied(
                Denial.BAD_CSR,
                f"the CSR asks for the extension {extension.oid.dotted_string}; only the CA chooses extensions",
            )
        if list(names) != [x509.UniformResourceIdentifier(str(identity))]:
            asked = ", ".join(shown(str(name.value)) for name in list(names)[:4])
            raise Denied(
                Denial.BAD_CSR, f"the CSR asks for the names {asked}; it may ask for {identity} and nothing else"
            )


def key_hash(key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of a public key, hexadecimal."""
    return public_key_digest(key).hex()


def proof_of_possession(nonce: bytes, new_key: ec.EllipticCurvePublicKey) -> bytes:
    """What the holder of an expired certificate signs with its old key (ECDSA, SHA-256) to have ``new_key`` certified. It
    covers the CA's nonce, so that it is fresh, and the new key, so that it certifies no other key."""
    return PROOF + nonce + bytes.fromhex(key_hash(new_key))
