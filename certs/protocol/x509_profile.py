"""The certificate profiles of the CA: root, issuing intermediate, leaf, delegate. Pure, except for random serials and
signatures.

References: RFC 5280 (certificates; section numbers below), SPIFFE's X509-SVID (leaves). Every field is set here and
nowhere else; only the public key is copied from a request. Chains made here pass OpenSSL's ``X509_STRICT``.

============== ====================== ============================== ===========================================
field          root                   issuing intermediate           leaf
============== ====================== ============================== ===========================================
validity       10 years               90 days                        1 h by default, 5 min to 24 h
cA, pathlen    true, 1                true, 0                        false
KeyUsage       keyCertSign, cRLSign   keyCertSign, cRLSign           digitalSignature
EKU            none                   none                           serverAuth, clientAuth
names          CN                     CN                             no subject; one URI, a DNS name where it is one
constraints    none                   URIs of the trust domain only  none
============== ====================== ============================== ===========================================

A root also issues a *delegate*, which signs revocation lists for it: 90 days, cA false, digitalSignature, and OCSPSigning
(RFC 6960 4.2.2.2) as its only extended key usage. It has no URI and no TLS usage, so no sidecar accepts it as a service.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sidecar.identity.spiffe import SpiffeId, is_trust_domain, shown

ROOT_LIFETIME = timedelta(days=3650)
ISSUING_LIFETIME = timedelta(days=90)
DEFAULT_TTL = timedelta(hours=1)
MIN_TTL = timedelta(minutes=5)
MAX_TTL = timedelta(hours=24)
BACKDATED = timedelta(seconds=60)
"""How far not-before is in the past, for peers whose clocks are behind the CA's."""

_DNS_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


class ProfileError(ValueError):
    """The requested certificate is outside the profile; the message names the rule, for people."""


@dataclass(frozen=True, slots=True)
class Issuer:
    """A signer: a certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def root(trust_domain: str, key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    """The self-signed trust anchor of ``trust_domain``. Raises :class:`ProfileError`."""
    _check_trust_domain(trust_domain)
    public_key = _p256(key.public_key())
    name = _ca_name("root", public_key)
    builder = _builder(name, name, public_key, public_key, now - BACKDATED, now + ROOT_LIFETIME)
    return _as_ca(builder, path_length=1).sign(key, hashes.SHA256())


def intermediate(trust_domain: str, public_key: PublicKeyTypes, issuer: Issuer, now: datetime) -> x509.Certificate:
    """The issuing CA. It can sign leaves but no further CA, and only URIs of ``trust_domain``, even if its key is stolen.

    Raises :class:`ProfileError`.
    """
    _check_trust_domain(trust_domain)
    constraint = x509.NameConstraints([x509.UniformResourceIdentifier(trust_domain)], None)
    builder = _under(issuer, _ca_name("issuing", _p256(public_key)), public_key, now, ISSUING_LIFETIME)
    return (
        _as_ca(builder, path_length=0)
        .add_extension(constraint, critical=True)  # 4.2.1.10: MUST be critical; a host without a dot before it is exact
        .sign(issuer.key, hashes.SHA256())
    )


def delegate(public_key: PublicKeyTypes, issuer: Issuer, now: datetime) -> x509.Certificate:
    """The certificate that signs revocation lists for a root, so that the root's key can be kept offline. The issuing key
    may not sign them: with a stolen one, the thief could undo a revocation. Raises :class:`ProfileError`."""
    builder = _under(issuer, _ca_name("revocations", _p256(public_key)), public_key, now, ISSUING_LIFETIME)
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING]), critical=True)
        .sign(issuer.key, hashes.SHA256())
    )


def leaf(
    identity: SpiffeId,
    public_key: PublicKeyTypes,
    issuer: Issuer,
    now: datetime,
    ttl: timedelta = DEFAULT_TTL,
    *,
    not_before: datetime | None = None,
    dns: Sequence[str] = (),
    shortest: timedelta = MIN_TTL,
) -> x509.Certificate:
    """The X.509-SVID of ``identity``, valid for ``ttl`` from ``now`` but no longer than its issuer.

    Does not check whether the caller may have this identity. The subject is empty, so that only the URI can be read as the
    name. ``not_before``: the earliest start; backdating stops there. It is for an identity whose certificates before that
    time are revoked. ``dns``: more DNS names, for tools such as curl. ``shortest``: as in :func:`check_ttl`. Raises
    :class:`ProfileError`.
    """
    check_ttl(ttl, shortest)
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(identity))]
    if identity.service is not None and is_dns_name(identity.service):
        names.append(x509.DNSName(identity.service))
    names += [x509.DNSName(name) for name in dns if is_dns_name(name)]
    return (
        _under(issuer, x509.Name([]), public_key, now, ttl, not_before)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        # 4.2.1.6: critical, because the subject is empty.
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .sign(issuer.key, hashes.SHA256())
    )


def check_ttl(ttl: timedelta, shortest: timedelta = MIN_TTL) -> None:
    """Raises :class:`ProfileError` unless a leaf may be valid for that long. A longer-lived one would need revocation.
    ``shortest``: less than usual for one that is not renewed."""
    if not shortest <= ttl <= MAX_TTL:
        minutes = shortest // timedelta(minutes=1)
        raise ProfileError(
            f"a certificate is valid for {minutes} minute{'' if minutes == 1 else 's'} to 24 hours, not for {ttl}"
        )


def is_dns_name(text: str) -> bool:
    """Whether ``text`` is a host name (RFC 1123 2.1): labels of letters, digits and hyphens, the last not only digits, as in
    an IP address."""
    labels = text.split(".")
    return len(text) <= 253 and all(_DNS_LABEL.fullmatch(label) for label in labels) and not labels[-1].isdigit()


def _check_trust_domain(trust_domain: str) -> None:
    if not is_trust_domain(trust_domain):
        raise ProfileError(f"{shown(trust_domain)} is not a trust domain: 1 to 255 of a-z 0-9 . _ - and nothing else")
    if trust_domain.startswith("."):
        # 4.2.1.10: in a name constraint, a leading dot means "any host below", without the domain itself.
        raise ProfileError(f"{shown(trust_domain)} cannot be a trust domain here: it starts with a dot")


def _p256(public_key: PublicKeyTypes) -> ec.EllipticCurvePublicKey:
    if isinstance(public_key, ec.EllipticCurvePublicKey) and isinstance(public_key.curve, ec.SECP256R1):
        return public_key
    raise ProfileError("the key is not an ECDSA key on the curve P-256; the mesh uses no others")


def _ca_name(role: str, public_key: ec.EllipticCurvePublicKey) -> x509.Name:
    """A CA's name. It contains the key's identifier, so that two CAs of one mesh never have the same name."""
    key_id = x509.SubjectKeyIdentifier.from_public_key(public_key).digest.hex()
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"mesh {role} {key_id[:16]}")])


def _under(
    issuer: Issuer,
    subject: x509.Name,
    public_key: PublicKeyTypes,
    now: datetime,
    lifetime: timedelta,
    earliest: datetime | None = None,
) -> x509.CertificateBuilder:
    """The fields that every certificate under an issuer shares; its validity is within the issuer's."""
    above = issuer.certificate
    if issuer.key.public_key() != above.public_key():
        raise ProfileError("the issuer's key does not belong to its certificate")
    if not above.not_valid_before_utc <= now < above.not_valid_after_utc:
        raise ProfileError(
            f"the issuer's certificate is valid from {above.not_valid_before_utc:%FT%TZ} "
            f"to {above.not_valid_after_utc:%FT%TZ}, and it is {now:%FT%TZ}"
        )
    not_before = max(now - BACKDATED, above.not_valid_before_utc, earliest or now - BACKDATED)
    not_after = min(now + lifetime, above.not_valid_after_utc)
    if not_before >= not_after:
        raise ProfileError(f"it would be valid from {not_before:%FT%TZ} to {not_after:%FT%TZ}, which is never")
    return _builder(above.subject, subject, _p256(public_key), issuer.key.public_key(), not_before, not_after)


def _builder(
    issuer: x509.Name,
    subject: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    not_before: datetime,
    not_after: datetime,
) -> x509.CertificateBuilder:
    above = x509.SubjectKeyIdentifier.from_public_key(issuer_key)
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())  # 4.1.2.2: at most 20 bytes; 159 random bits
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(above), critical=False)
    )


def _as_ca(builder: x509.CertificateBuilder, path_length: int) -> x509.CertificateBuilder:
    return builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True).add_extension(
        _key_usage(key_cert_sign=True, crl_sign=True), critical=True
    )


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
