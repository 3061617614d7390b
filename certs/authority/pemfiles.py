"""Reads and writes the CA's keys and certificates as PEM. Pure; an error names the file and what to do."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from certs.protocol.x509_profile import Issuer
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import is_trust_domain


def certificates(path: Path, content: bytes) -> list[x509.Certificate]:
    """The certificates in a file's PEM, at least one. Raises :class:`UsageError`, as every reader here does."""
    try:
        return x509.load_pem_x509_certificates(content)
    except Exception as error:  # the parser raises many classes (ValueError, InvalidVersion)
        raise UsageError(f"{path} is not a certificate in PEM, or is damaged: restore it from a copy") from error


def private_key(path: Path, content: bytes, passphrase: bytes | None = None) -> ec.EllipticCurvePrivateKey:
    """The key in a file's PEM. A ``passphrase`` for an unencrypted key is an error too."""
    try:
        key = load_pem_private_key(content, password=passphrase)
    except TypeError as error:
        if passphrase is not None:
            raise UsageError(f"{path} is not encrypted, and a passphrase was given for it") from error
        raise UsageError(f"{path} is encrypted, and its passphrase was not given") from error
    except Exception as error:  # the parser raises many classes
        if passphrase is not None:
            raise UsageError(f"{path} cannot be read with this passphrase") from error
        raise UsageError(f"{path} is not a private key in PEM, or is damaged: restore it from a copy") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UsageError(f"{path} is not an ECDSA key, so 'certs init' did not make it")
    return key


def check_valid(path: Path, certificate: x509.Certificate, now: datetime, remedy: str) -> None:
    """Raises :class:`UsageError` unless the certificate is valid at ``now``. ``remedy``: the command to make a new one."""
    if now < certificate.not_valid_before_utc:
        raise UsageError(
            f"{path} is not valid before {certificate.not_valid_before_utc:%FT%TZ}, and it is {now:%FT%TZ}: "
            "is this machine's clock right?"
        )
    if now >= certificate.not_valid_after_utc:
        raise UsageError(
            f"{path} expired: it was valid until {certificate.not_valid_after_utc:%FT%TZ}, and it is {now:%FT%TZ}. "
            f"Make a new one: {remedy}"
        )


def trust_domain_of(path: Path, issuing: x509.Certificate) -> str:
    """The one trust domain that the issuing CA may sign for, from its name constraint."""
    try:
        extension = issuing.extensions.get_extension_for_class(x509.NameConstraints)
    except x509.ExtensionNotFound as error:
        raise UsageError(f"{path} has no name constraint, so 'certs init' did not make it") from error
    subtrees = extension.value.permitted_subtrees or []
    permitted = [name.value for name in subtrees if isinstance(name, x509.UniformResourceIdentifier)]
    if len(permitted) != 1 or not is_trust_domain(permitted[0]) or not extension.critical:
        raise UsageError(f"{path} is not bound to one trust domain, so 'certs init' did not make it")
    return permitted[0]


def key_pem(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    """A key as PKCS #8 in PEM, encrypted with the passphrase if there is one."""
    encryption = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def delegate_pem(delegate: Issuer) -> bytes:
    """Certificate and key in one file, so that both are replaced in one step."""
    return pem(delegate.certificate) + key_pem(delegate.key)


def pem(*certificates: x509.Certificate) -> bytes:
    """Certificates in PEM, concatenated."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)
