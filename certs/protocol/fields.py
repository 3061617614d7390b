"""The fields of a certificate as text that is safe to print. Pure.

A certificate's content is untrusted: it is escaped and cut. A field that cannot be read does not hide the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from sidecar.identity.spiffe import shown

_E = TypeVar("_E", bound=x509.ExtensionType)

_EKU_NAMES = {
    ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth",
    ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth",
    ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE: "any",
}
_USAGES = {  # the names of RFC 5280 4.2.1.3
    "digital_signature": "digitalSignature",
    "content_commitment": "nonRepudiation",
    "key_encipherment": "keyEncipherment",
    "data_encipherment": "dataEncipherment",
    "key_agreement": "keyAgreement",
    "key_cert_sign": "keyCertSign",
    "crl_sign": "cRLSign",
}
_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}  # SEC's names, NIST's names
_MAX_LISTED = 20
_NAME_KINDS: dict[type[x509.GeneralName], str] = {
    x509.UniformResourceIdentifier: "URI",
    x509.DNSName: "DNS",
    x509.RFC822Name: "email",
    x509.IPAddress: "IP",
    x509.DirectoryName: "directory",
    x509.RegisteredID: "OID",
    x509.OtherName: "other",
}


def read_fields(certificate: x509.Certificate, now: datetime) -> tuple[list[tuple[str, str]], list[str]]:
    """The fields as (label, text), and a fault for each that cannot be read."""
    readers: list[tuple[str, Callable[[], str]]] = [
        ("subject", lambda: _show_name(certificate.subject)),
        ("issuer", lambda: _show_name(certificate.issuer)),
        ("serial", lambda: f"{certificate.serial_number:x}"),
        ("valid", lambda: _show_validity(certificate, now)),
        ("key", lambda: _show_key(certificate)),
        ("names (SAN)", lambda: _show_names(certificate)),
        ("key usage", lambda: _show_key_usage(certificate)),
        ("extended usage", lambda: _show_extended(certificate)),
        ("basic constraints", lambda: _show_basic(certificate)),
        ("name constraints", lambda: _show_limits(certificate)),
        ("other extensions", lambda: _show_others(certificate)),
        ("SHA-256", lambda: certificate.fingerprint(hashes.SHA256()).hex()),
    ]
    fields, faults = [], []
    for label, show in readers:
        try:
            fields.append((label, show()))
        except Exception as error:  # the parsers raise many classes
            fields.append((label, f"cannot be read: {shown(str(error))}"))
            faults.append(f"its {label} cannot be read")
    return fields, faults


def describe_span(span: timedelta) -> str:
    """A span of time for people, rounded down: ``43 min``, ``2 h``, ``10 years``."""
    seconds = int(span.total_seconds())
    for unit, size, least in (("years", 365 * 86400, 2), ("days", 86400, 2), ("h", 3600, 2), ("min", 60, 1)):
        if seconds >= least * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def find(extensions: x509.Extensions, kind: type[_E]) -> x509.Extension[_E] | None:
    """The extension of this kind, if there is one."""
    try:
        return extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


def _show_name(name: x509.Name) -> str:
    return shown(name.rfc4514_string()) if name.rdns else "(empty)"


def _show_validity(certificate: x509.Certificate, now: datetime) -> str:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < start:
        state = f"valid in {describe_span(start - now)}"
    elif now <= end:
        state = f"expires in {describe_span(end - now)}"
    else:
        state = f"expired {describe_span(now - end)} ago"
    return f"{start:%FT%TZ} to {end:%FT%TZ} ({state})"


def _show_key(certificate: x509.Certificate) -> str:
    match certificate.public_key():
        case ec.EllipticCurvePublicKey() as key:
            return f"ECDSA {_CURVES.get(key.curve.name, key.curve.name)}"
        case rsa.RSAPublicKey() as key:
            return f"RSA {key.key_size}"
        case key:
            return type(key).__name__.strip("_").removesuffix("PublicKey")


def _show_names(certificate: x509.Certificate) -> str:
    names = find(certificate.extensions, x509.SubjectAlternativeName)
    return "none" if names is None else _list([_show_general_name(name) for name in names.value]) + _mark(names)


def _show_general_name(name: x509.GeneralName) -> str:
    kind = _NAME_KINDS.get(type(name), type(name).__name__)
    match name.value:
        case x509.Name() as value:
            text = value.rfc4514_string()
        case x509.ObjectIdentifier() as value:
            text = value.dotted_string
        case value:
            text = str(value)
    return f"{kind} {shown(text)}"


def _show_key_usage(certificate: x509.Certificate) -> str:
    usage = find(certificate.extensions, x509.KeyUsage)
    if usage is None:
        return "none"
    return _list([name for attribute, name in _USAGES.items() if getattr(usage.value, attribute)]) + _mark(usage)


def _show_extended(certificate: x509.Certificate) -> str:
    usage = find(certificate.extensions, x509.ExtendedKeyUsage)
    if usage is None:
        return "none"
    return _list([_EKU_NAMES.get(oid, oid.dotted_string) for oid in usage.value]) + _mark(usage)


def _show_basic(certificate: x509.Certificate) -> str:
    constraints = find(certificate.extensions, x509.BasicConstraints)
    if constraints is None:
        return "none"
    limit = constraints.value.path_length
    length = "" if not constraints.value.ca else f", path length {'not limited' if limit is None else limit}"
    return f"cA={str(constraints.value.ca).lower()}{length}{_mark(constraints)}"


def _show_limits(certificate: x509.Certificate) -> str:
    limits = find(certificate.extensions, x509.NameConstraints)
    if limits is None:
        return "none"
    permitted = [f"only {_show_general_name(name)}" for name in limits.value.permitted_subtrees or ()]
    excluded = [f"never {_show_general_name(name)}" for name in limits.value.excluded_subtrees or ()]
    return _list([*permitted, *excluded]) + _mark(limits)


def _show_others(certificate: x509.Certificate) -> str:
    known = (
        x509.SubjectAlternativeName, x509.KeyUsage, x509.ExtendedKeyUsage, x509.BasicConstraints, x509.NameConstraints,
        x509.SubjectKeyIdentifier, x509.AuthorityKeyIdentifier,
    )  # fmt: skip
    others = [one for one in certificate.extensions if not isinstance(one.value, known)]
    return _list([one.oid.dotted_string + _mark(one) for one in others])


def _mark(extension: x509.Extension[Any]) -> str:
    return " (critical)" if extension.critical else ""


def _list(items: Sequence[str]) -> str:
    more = f" and {len(items) - _MAX_LISTED} more" if len(items) > _MAX_LISTED else ""
    return (", ".join(items[:_MAX_LISTED]) or "none") + more
