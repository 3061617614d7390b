"""Checks of the certificates that the CA answers with. Fails closed: an answer that differs from the request is refused.
(Bundles and lists of revocations: :mod:`sidecar.agent.trust`.)

The answers come from a verified CA and are checked all the same. A CA that is compromised or faulty must not be able to
change this sidecar's identity, to add a root that it trusts, or to give it a certificate that every peer would refuse.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from certs.protocol.x509_profile import BACKDATED
from sidecar.agent.credentials import Credentials, judge_own
from sidecar.identity.judge import Revocations, VerifyParams
from sidecar.identity.reasons import Reason, Refused
from sidecar.identity.spiffe import SpiffeId, parse_svid, shown
from sidecar.transport.tls import KeyPair, PrivateKey, Roots

MIN_LIFE = timedelta(minutes=1)
"""A new certificate must be good for at least this long."""

MAX_CHAIN = 3
"""Leaf, issuing CA, and one more intermediate, for a future CA."""


class AnswerRefusedError(Exception):
    """An answer of the CA, or a kept file, is refused. The message says why, for people."""


def csr_for(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A CSR, in PEM, with the key and nothing else: the CA takes the identity from the authentication, not from the CSR."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def take_certificate(
    chain_pem: bytes,
    key: PrivateKey,
    own: SpiffeId,
    roots: Roots,
    distrusted: frozenset[bytes],
    max_leaf_ttl: timedelta,
    now: datetime,
) -> Credentials:
    """The certificate, if it has our identity and our key, chains to a trusted root without a distrusted key, is good now,
    and lives no longer than ``max_leaf_ttl``. Raises :class:`AnswerRefusedError`."""
    try:
        chain = tuple(x509.load_pem_x509_certificates(chain_pem))
    except Exception as error:  # any error of the parser
        raise AnswerRefusedError("the CA's certificate is refused: it is not PEM with certificates") from error
    if not 2 <= len(chain) <= MAX_CHAIN:
        raise AnswerRefusedError(
            f"the CA's certificate is refused: {len(chain)} in its chain; expected a leaf and its issuer"
        )
    try:
        is_ours = chain[0].public_key() == key.public_key()
    except Exception:  # an unreadable key is not ours
        is_ours = False
    if not is_ours:
        raise AnswerRefusedError("the CA's certificate is refused: it is for another key than the one that was sent")
    end = chain[0].not_valid_after_utc
    if end < now + MIN_LIFE:
        raise AnswerRefusedError(
            f"the CA's certificate is refused: it is good until {end:%FT%TZ} only, and our clock shows {now:%FT%TZ}; "
            "are both clocks right?"
        )
    keys = KeyPair(chain, key, roots)
    params = VerifyParams(own.trust_domain, own, max_leaf_ttl, Revocations(keys=distrusted))
    try:
        svid = judge_own(keys, params, now)
    except Refused as refusal:
        hint = ""
        if refusal.reason is Reason.NOT_YET_VALID:
            hint = f"; certificates are dated back {BACKDATED.seconds} s: are both clocks right?"
        raise AnswerRefusedError(
            f"the CA's certificate is refused: every peer would refuse it, because it {refusal.detail}{hint}"
        ) from refusal
    return Credentials(keys, svid)


def with_roots(credentials: Credentials, roots: Roots) -> Credentials:
    """The same certificate, with other roots."""
    keys = credentials.keys
    return Credentials(KeyPair(keys.chain, keys.key, roots), credentials.svid)


def kept_certificate(pem: bytes, own: SpiffeId, roots: Roots) -> Credentials:
    """Reads what :func:`identity_pem` made, if it is complete and ours. The certificate may have ended, or be under a root
    that is gone: it is still good for re-enrolment. Raises :class:`AnswerRefusedError`."""
    key = read_key(pem)
    try:
        chain = tuple(x509.load_pem_x509_certificates(pem))
        svid = parse_svid(chain[0].public_bytes(serialization.Encoding.DER))
    except Exception as error:  # any error of the parsers
        raise AnswerRefusedError("it has no certificate that is an SVID") from error
    if svid.id != own or chain[0].public_key() != key.public_key() or len(chain) < 2:
        raise AnswerRefusedError(f"its certificate is not one of {own} with its key and its issuer")
    return Credentials(KeyPair(chain, key, roots), svid)


def identity_pem(credentials: Credentials) -> bytes:
    """Key and chain in one PEM, for ``identity.pem``."""
    chain = b"".join(one.public_bytes(serialization.Encoding.PEM) for one in credentials.keys.chain)
    return key_pem(credentials.keys.key) + chain


def key_pem(key: PrivateKey) -> bytes:
    """A private key as unencrypted PKCS #8 PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def read_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Raises :class:`AnswerRefusedError`, whose message quotes nothing of the file."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except Exception as error:  # any error of the parser
        raise AnswerRefusedError("it has no private key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise AnswerRefusedError("its key is not an elliptic-curve key")
    return key


def describe(error: Exception) -> str:
    """The error's message, escaped and bounded, for a log line."""
    return shown(str(error), 500)[1:-1]
