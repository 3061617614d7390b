"""What a certificate says, and which rules it breaks: :func:`read` → :func:`examine` → :func:`as_text`. Pure.

Made for certificates that somebody else sent: nothing in them can raise, everything in them is escaped, and a field that
cannot be read is a fault by itself. A file's private key is never shown.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from itertools import zip_longest
from typing import Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from sidecar.identity import DEFAULT_MAX_LEAF_TTL, parse_spiffe_id, shown, svid_faults
from sidecar.reasons import UsageError

_E = TypeVar("_E", bound=x509.ExtensionType)

MAX_BYTES = 1024 * 1024
MAX_CERTIFICATES = 256
"""More than a system's trust store has; it bounds the work, since each may be tried as the issuer of each."""

_MARKER = re.compile(rb"-----(BEGIN|END) ([A-Z0-9 ]{1,40})-----")  # RFC 7468 2
_CERTIFICATE_LABELS = (b"CERTIFICATE", b"X509 CERTIFICATE", b"TRUSTED CERTIFICATE")
_EKU_NAMES = {
    ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth",
    ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth",
    ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE: "any",
}
_USAGES = {  # RFC 5280 4.2.1.3, under its own names
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


@dataclass(frozen=True, slots=True)
class Account:
    """One certificate, in words safe to print. ``fields``: (label, text). ``faults``: the rules that it breaks."""

    role: str  # "leaf" or "CA"
    spiffe_id: str | None
    fields: tuple[tuple[str, str], ...]
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """All certificates of one input, in its order."""

    source: str
    accounts: tuple[Account, ...]

    @property
    def is_clean(self) -> bool:
        return not any(account.faults for account in self.accounts)


def read(data: bytes) -> list[x509.Certificate]:
    """The certificates in PEM or DER. Raises :class:`UsageError` if there is none, or one that is no certificate."""
    if len(data) > MAX_BYTES:
        raise UsageError(f"larger than {MAX_BYTES // 1024} KiB: no chain of certificates is")
    if not data.strip():
        raise UsageError("empty: no certificate in it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is odd about a certificate is reported as a fault, not on stderr
        if _MARKER.search(data):
            return _read_pem(data)
        try:
            return [x509.load_der_x509_certificate(data)]
        except Exception as error:  # a parser's own failure, whatever its class, means unusable
            if _is_der_key(data):
                raise UsageError(
                    "a private key, not a certificate; it is not shown, and should be shown to nobody"
                ) from error
            raise UsageError("neither PEM nor DER of a certificate") from error


def examine(certificates: Sequence[x509.Certificate], now: datetime, source: str = "-") -> Report:
    """What each certificate says, each rule that it breaks now, and whether each is signed by the next."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        accounts = []
        for at, certificate in enumerate(certificates):
            role = _role(certificate)
            link, link_faults = _link(certificates, at)
            fields, field_faults = _read_fields(certificate, now)
            own = (
                [*svid_faults(certificate), *_lifetime_faults(certificate)]
                if role == "leaf"
                else ca_faults(certificate)
            )
            faults = (*own, *_time_faults(certificate, now), *link_faults, *field_faults)
            spiffe_id = _spiffe_id(certificate) if role == "leaf" else None
            accounts.append(Account(role, spiffe_id, (("signed by", link), *fields), faults))
    return Report(source, tuple(accounts))


def ca_faults(certificate: x509.Certificate) -> list[str]:
    """Every rule of a CA certificate (RFC 5280 4.2.1.3, 4.2.1.9) that this one breaks, each as one sentence."""
    try:
        extensions = certificate.extensions
    except Exception as error:  # as above: malformed, and so not one to trust
        return [f"its extensions cannot be read: {shown(str(error))}"]
    faults = []
    constraints = _find(extensions, x509.BasicConstraints)
    if constraints is None or not constraints.value.ca:
        faults.append("it is no CA certificate (cA is not true)")
    elif not constraints.critical:
        faults.append("its BasicConstraints are not critical")
    usage = _find(extensions, x509.KeyUsage)
    if usage is None:
        faults.append("it has no KeyUsage")
    else:
        if not usage.critical:
            faults.append("its KeyUsage is not critical")
        if not usage.value.key_cert_sign:
            faults.append("its KeyUsage lacks keyCertSign")
    limits = _find(extensions, x509.NameConstraints)
    if limits is not None and not limits.critical:
        faults.append("its NameConstraints are not critical")
    return faults


def is_signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether ``issuer``'s name and key made the certificate. Whether it was entitled to is not asked; doubt is a no."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except Exception:  # InvalidSignature, another name, a key or an algorithm that is not known
        return False
    return True


def as_text(report: Report) -> str:
    """The report for people: plain aligned lines, ASCII wherever the certificate speaks."""
    lines = []
    for number, account in enumerate(report.accounts, 1):
        lines.append(f"{report.source}: certificate {number} of {len(report.accounts)} ({account.role})")
        if account.role == "leaf":
            lines.append(_line("SPIFFE ID", account.spiffe_id or "none"))
        lines += [_line(label, text) for label, text in account.fields]
        lines += [_line("BROKEN RULE", fault) for fault in account.faults] or [_line("rules", "all kept")]
        lines.append("")
    return "\n".join(lines)


def as_json(reports: Sequence[Report]) -> str:
    """The same for programs: a list of inputs, each with its certificates."""
    documents = [
        {
            "source": report.source,
            "certificates": [{**asdict(account), "fields": dict(account.fields)} for account in report.accounts],
        }
        for report in reports
    ]
    return json.dumps(documents, indent=2)


def describe_span(span: timedelta) -> str:
    """A span of time as people say it, rounded down: ``43 min``, ``2 h``, ``10 years``."""
    seconds = int(span.total_seconds())
    for unit, size, least in (("years", 365 * 86400, 2), ("days", 86400, 2), ("h", 3600, 2), ("min", 60, 1)):
        if seconds >= least * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _read_pem(data: bytes) -> list[x509.Certificate]:
    blocks = _pem_blocks(data)
    labels = [label for label, _ in blocks]
    wanted = [block for label, block in blocks if label in _CERTIFICATE_LABELS]
    if not wanted and any(label.endswith(b"PRIVATE KEY") for label in labels):
        raise UsageError("a private key, not a certificate; it is not shown, and should be shown to nobody")
    if not wanted:
        kinds = ", ".join(sorted({label.decode() for label in labels}))
        raise UsageError(f"no certificate in it, only {kinds}")
    if len(wanted) > MAX_CERTIFICATES:
        raise UsageError(f"{len(wanted)} certificates in it; at most {MAX_CERTIFICATES} are read")
    certificates = []
    for number, block in enumerate(wanted, 1):
        try:
            certificates.append(x509.load_pem_x509_certificate(block))
        except Exception as error:  # as in read()
            raise UsageError(f"certificate {number} of {len(wanted)} in it is damaged, or not one") from error
    return certificates


def _pem_blocks(data: bytes) -> list[tuple[bytes, bytes]]:
    """(label, block) of each. From marker to marker, so that the time it takes grows with the size and no faster."""
    markers = list(_MARKER.finditer(data))
    blocks = []
    for begin, end in zip_longest(markers[0::2], markers[1::2]):
        if end is None or (begin[1], end[1], begin[2]) != (b"BEGIN", b"END", end[2]):
            raise UsageError("cut off or damaged: a PEM block does not begin, or does not end")
        blocks.append((begin[2], data[begin.start() : end.end()]))
    return blocks


def _is_der_key(data: bytes) -> bool:
    try:
        load_der_private_key(data, password=None)
    except TypeError:
        return True  # an encrypted one
    except Exception:  # as in read()
        return False
    return True


def _line(label: str, text: str) -> str:
    return f"  {label + ':':18} {text}"


def _role(certificate: x509.Certificate) -> str:
    """A CA certificate is one that says so, unless it also names a workload: then it is a leaf that breaks a rule."""
    try:
        constraints = _find(certificate.extensions, x509.BasicConstraints)
        is_ca = constraints is not None and constraints.value.ca
        return "CA" if is_ca and not any("/" in uri.partition("://")[2] for uri in _uris(certificate)) else "leaf"
    except Exception:  # unreadable: judged by the stricter rules, which will say what is wrong with it
        return "leaf"


def _uris(certificate: x509.Certificate) -> list[str]:
    names = _find(certificate.extensions, x509.SubjectAlternativeName)
    return [] if names is None else names.value.get_values_for_type(x509.UniformResourceIdentifier)


def _spiffe_id(certificate: x509.Certificate) -> str | None:
    try:
        (uri,) = _uris(certificate)
        return str(parse_spiffe_id(uri))
    except Exception:  # none, several, outside the grammar, unreadable: svid_faults() says which
        return None


def _link(certificates: Sequence[x509.Certificate], at: int) -> tuple[str, list[str]]:
    """Who signed certificate ``at``, and what is wrong with that where the input is a chain: a leaf, then its issuers."""
    certificate, is_chain = certificates[at], _role(certificates[0]) == "leaf"
    if is_signed_by(certificate, certificate):
        return "itself", ["it is self-signed, so no CA vouches for it"] if _role(certificate) == "leaf" else []
    following = (*range(at + 1, len(certificates)), *range(at))
    signer = next((other for other in following if is_signed_by(certificate, certificates[other])), None)
    faults = []
    if signer is None:
        text = "a certificate that is not in here"
        if at + 1 < len(certificates):
            faults.append(f"it is not signed by certificate {at + 2}, which follows it in the chain")
    else:
        text = f"certificate {signer + 1}"
        if signer != at + 1:
            faults.append(f"the chain is out of order: certificate {signer + 1} signed it and does not follow it")
        elif signer - 1 > (limit := _path_length(certificates[signer])):
            faults.append(f"CAs below certificate {signer + 1}: {signer - 1}; its path length allows {limit}")
    return text, faults if is_chain else []


def _path_length(certificate: x509.Certificate) -> int:
    """RFC 5280 4.2.1.9: how many CAs may stand between this one and the leaf."""
    constraints = _find(certificate.extensions, x509.BasicConstraints)
    limit = None if constraints is None else constraints.value.path_length
    return MAX_CERTIFICATES if limit is None else limit


def _lifetime_faults(certificate: x509.Certificate) -> list[str]:
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    if lifetime <= DEFAULT_MAX_LEAF_TTL:
        return []
    return [
        f"it is valid for {describe_span(lifetime)}, and a leaf for at most {describe_span(DEFAULT_MAX_LEAF_TTL)} "
        "(max_leaf_ttl, unless the mesh says otherwise)"
    ]


def _time_faults(certificate: x509.Certificate, now: datetime) -> list[str]:
    if now < certificate.not_valid_before_utc:
        return ["it is not valid yet"]
    return ["it has expired"] if now > certificate.not_valid_after_utc else []


def _read_fields(certificate: x509.Certificate, now: datetime) -> tuple[list[tuple[str, str]], list[str]]:
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
        except Exception as error:  # one field that cannot be read is no reason to hide the others
            fields.append((label, f"cannot be read: {shown(str(error))}"))
            faults.append(f"its {label} cannot be read")
    return fields, faults


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
    names = _find(certificate.extensions, x509.SubjectAlternativeName)
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
    usage = _find(certificate.extensions, x509.KeyUsage)
    if usage is None:
        return "none"
    return _list([name for attribute, name in _USAGES.items() if getattr(usage.value, attribute)]) + _mark(usage)


def _show_extended(certificate: x509.Certificate) -> str:
    usage = _find(certificate.extensions, x509.ExtendedKeyUsage)
    if usage is None:
        return "none"
    return _list([_EKU_NAMES.get(oid, oid.dotted_string) for oid in usage.value]) + _mark(usage)


def _show_basic(certificate: x509.Certificate) -> str:
    constraints = _find(certificate.extensions, x509.BasicConstraints)
    if constraints is None:
        return "none"
    limit = constraints.value.path_length
    length = "" if not constraints.value.ca else f", path length {'not limited' if limit is None else limit}"
    return f"cA={str(constraints.value.ca).lower()}{length}{_mark(constraints)}"


def _show_limits(certificate: x509.Certificate) -> str:
    limits = _find(certificate.extensions, x509.NameConstraints)
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


def _find(extensions: x509.Extensions, kind: type[_E]) -> x509.Extension[_E] | None:
    try:
        return extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None
