"""Which rules a certificate breaks, and whether certificates form a chain: :func:`examine`, then :func:`as_text`. Pure.

The certificates are untrusted: no content of theirs raises, all of it is escaped (:mod:`certs.protocol.fields`), and a field
that cannot be read is a fault.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from cryptography import x509

from certs.protocol.fields import describe_span, find, read_fields
from sidecar.identity.spiffe import DEFAULT_MAX_LEAF_TTL, parse_spiffe_id, shown, svid_faults

_UNLIMITED = 1 << 31


@dataclass(frozen=True, slots=True)
class Account:
    """One certificate as text that is safe to print. ``fields``: (label, text). ``faults``: the rules that it breaks."""

    role: str  # "leaf" or "CA"
    spiffe_id: str | None
    fields: tuple[tuple[str, str], ...]
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """The certificates of one input, in its order."""

    source: str
    accounts: tuple[Account, ...]

    @property
    def is_clean(self) -> bool:
        return not any(account.faults for account in self.accounts)


def examine(certificates: Sequence[x509.Certificate], now: datetime, source: str = "-") -> Report:
    """Reads each certificate, checks every rule at the time ``now``, and checks that the next certificate signed it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        accounts = []
        for at, certificate in enumerate(certificates):
            role = _role(certificate)
            link, link_faults = _link(certificates, at)
            fields, field_faults = read_fields(certificate, now)
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
    except Exception as error:  # malformed: the parsers raise many classes
        return [f"its extensions cannot be read: {shown(str(error))}"]
    faults = []
    constraints = find(extensions, x509.BasicConstraints)
    if constraints is None or not constraints.value.ca:
        faults.append("it is not a CA certificate (cA is not true)")
    elif not constraints.critical:
        faults.append("its BasicConstraints are not critical")
    usage = find(extensions, x509.KeyUsage)
    if usage is None:
        faults.append("it has no KeyUsage")
    else:
        if not usage.critical:
            faults.append("its KeyUsage is not critical")
        if not usage.value.key_cert_sign:
            faults.append("its KeyUsage lacks keyCertSign")
    limits = find(extensions, x509.NameConstraints)
    if limits is not None and not limits.critical:
        faults.append("its NameConstraints are not critical")
    return faults


def is_signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether ``issuer`` has the issuer's name and the key that signed the certificate. Does not check that ``issuer`` is a
    CA. False in every case of doubt."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except Exception:  # InvalidSignature, another name, an unknown key type or algorithm
        return False
    return True


def as_text(report: Report) -> str:
    """The report for people, in aligned lines; all text out of a certificate is ASCII."""
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
    """The reports for programs: a list of inputs, each with its certificates."""
    documents = [
        {
            "source": report.source,
            "certificates": [{**asdict(account), "fields": dict(account.fields)} for account in report.accounts],
        }
        for report in reports
    ]
    return json.dumps(documents, indent=2)


def _line(label: str, text: str) -> str:
    return f"  {label + ':':18} {text}"


def _role(certificate: x509.Certificate) -> str:
    """``CA`` if cA is true, unless the certificate also names a workload: then it is a leaf that breaks a rule."""
    try:
        constraints = find(certificate.extensions, x509.BasicConstraints)
        is_ca = constraints is not None and constraints.value.ca
        return "CA" if is_ca and not any("/" in uri.partition("://")[2] for uri in _uris(certificate)) else "leaf"
    except Exception:  # unreadable: the leaf's rules are stricter, and report the fault
        return "leaf"


def _uris(certificate: x509.Certificate) -> list[str]:
    names = find(certificate.extensions, x509.SubjectAlternativeName)
    return [] if names is None else names.value.get_values_for_type(x509.UniformResourceIdentifier)


def _spiffe_id(certificate: x509.Certificate) -> str | None:
    try:
        (uri,) = _uris(certificate)
        return str(parse_spiffe_id(uri))
    except Exception:  # none, several, outside the grammar, unreadable: svid_faults() reports which
        return None


def _link(certificates: Sequence[x509.Certificate], at: int) -> tuple[str, list[str]]:
    """What signed certificate ``at``; and the faults of that, if the input is a chain: a leaf, then its issuers."""
    certificate, is_chain = certificates[at], _role(certificates[0]) == "leaf"
    if is_signed_by(certificate, certificate):
        return "itself", ["it is self-signed, so no CA vouches for it"] if _role(certificate) == "leaf" else []
    following = (*range(at + 1, len(certificates)), *range(at))
    signer = next((other for other in following if is_signed_by(certificate, certificates[other])), None)
    faults = []
    if signer is None:
        text = "a certificate that is not in this input"
        if at + 1 < len(certificates):
            faults.append(f"it is not signed by certificate {at + 2}, which follows it in the chain")
    else:
        text = f"certificate {signer + 1}"
        if signer != at + 1:
            faults.append(f"the chain is out of order: certificate {signer + 1} signed it and does not follow it")
        elif _role(certificates[signer]) != "CA":
            faults.append(f"certificate {signer + 1} signed it and is not a CA")
        elif signer - 1 > (limit := _path_length(certificates[signer])):
            faults.append(f"CAs below certificate {signer + 1}: {signer - 1}; its path length allows {limit}")
    return text, faults if is_chain else []


def _path_length(ca: x509.Certificate) -> int:
    """RFC 5280 4.2.1.9: how many CAs may be between this one and the leaf."""
    limit = ca.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
    return _UNLIMITED if limit is None else limit


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
