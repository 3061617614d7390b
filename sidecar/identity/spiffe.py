"""SPIFFE IDs and X.509-SVIDs: the identity in a certificate. Pure; fails closed.

References: the SPIFFE-ID and X509-SVID standards, RFC 5280 (certificates). Everything is read from the parsed DER of the
certificate and must match as a whole. Nothing is stripped, decoded, case-folded or normalised: each of these steps has
caused vulnerabilities in other software.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

MAX_ID_BYTES = 2048
MAX_TRUST_DOMAIN_BYTES = 255
MAX_CLAIMS_BYTES = 4096
"""Of a certificate that nobody has verified. One of ours has about 700, one with an RSA-4096 key about 1,500. To read 28 KB
of names took 25 ms, and all connections wait for it; the time grows with the size."""
DEFAULT_MAX_LEAF_TTL = timedelta(hours=25)

PEOPLE = "user"
"""The first path segment of a person's identity. The second is the person's name."""

_E = TypeVar("_E", bound=x509.ExtensionType)

_SCHEME = "spiffe://"
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")


class InvalidIdentityError(ValueError):
    """The text is not a SPIFFE ID, or the certificate is not an X.509-SVID; the message names the broken rule."""


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """``spiffe://<trust_domain>/<segment>/…``. Two are equal only if they are equal byte for byte."""

    trust_domain: str
    segments: tuple[str, ...]

    def __str__(self) -> str:
        return _SCHEME + "/".join((self.trust_domain, *self.segments))

    @property
    def service(self) -> str | None:
        """The service's name, if this is the identity of a service (it has exactly one path segment)."""
        return self.segments[0] if len(self.segments) == 1 else None

    @property
    def person(self) -> str | None:
        """The person's name, if this is the identity of a person: ``spiffe://<trust domain>/user/<name>``."""
        return self.segments[1] if len(self.segments) == 2 and self.segments[0] == PEOPLE else None


def is_trust_domain(text: str) -> bool:
    """Whether ``text`` may name a trust domain (SPIFFE-ID section 2.1)."""
    return _TRUST_DOMAIN.fullmatch(text) is not None


def is_segment(text: str) -> bool:
    """Whether ``text`` may be one path segment of a SPIFFE ID (section 2.2), and so a service's name."""
    return _SEGMENT.fullmatch(text) is not None and text not in {".", ".."}


def parse_spiffe_id(text: str) -> SpiffeId:
    """Parses a SPIFFE ID with at least one path segment (a bare trust domain names no workload).

    Raises :class:`InvalidIdentityError`. Port, userinfo, query, fragment, percent-encoding, upper-case scheme or domain,
    empty or relative segments and a trailing slash are outside the grammar, so they are refused.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
        raise InvalidIdentityError(f"a SPIFFE ID has at most {MAX_ID_BYTES} bytes, this one more")
    if not text.startswith(_SCHEME):
        raise InvalidIdentityError(f"{shown(text)} does not start with {_SCHEME}")
    trust_domain, *segments = text[len(_SCHEME) :].split("/")
    if not is_trust_domain(trust_domain):
        raise InvalidIdentityError(
            f"{shown(text)}: a trust domain has 1 to {MAX_TRUST_DOMAIN_BYTES} of a-z 0-9 . _ - and nothing else"
        )
    if not segments:
        raise InvalidIdentityError(f"{shown(text)} has no path, so it names no service")
    for segment in segments:
        if not is_segment(segment):
            raise InvalidIdentityError(
                f"{shown(text)}: path segment {shown(segment)} is not of A-Z a-z 0-9 . _ -, or is empty, . or .."
            )
    return SpiffeId(trust_domain, tuple(segments))


def shown(untrusted: str, limit: int = 120) -> str:
    """Untrusted text, made safe to print: quoted, escaped to ASCII, cut at ``limit`` characters."""
    return ascii(untrusted if len(untrusted) <= limit else untrusted[:limit] + "…")


@dataclass(frozen=True, slots=True)
class Svid:
    """The content of an accepted leaf certificate. Times are UTC."""

    id: SpiffeId
    not_before: datetime
    not_after: datetime
    serial: int
    issuer: bytes  # DER of the issuer's name
    sha256: str

    @property
    def lifetime(self) -> timedelta:
        return self.not_after - self.not_before


def svid_faults(certificate: x509.Certificate) -> list[str]:
    """Every rule that this leaf breaks, of the X.509-SVID standard and of our stricter profile, each as one sentence.

    A leaf without basicConstraints breaks no rule: by RFC 5280 4.2.1.9 it is no CA. The lifetime is checked in
    :func:`sidecar.identity.judge.judge`, which has the mesh's ``max_leaf_ttl``.
    """
    try:
        extensions = certificate.extensions
    except Exception as error:  # the class depends on the defect: TypeError for a bad TLSFeature
        return [f"its extensions cannot be read: {shown(str(error))}"]
    faults = []
    constraints = _extension(extensions, x509.BasicConstraints)
    if constraints is not None and constraints.value.ca:
        faults.append("it is a CA certificate (cA=true)")
    usage = _extension(extensions, x509.KeyUsage)
    if usage is None:
        faults.append("it has no KeyUsage")
    else:
        if not usage.critical:
            faults.append("its KeyUsage is not critical")
        if not usage.value.digital_signature:
            faults.append("its KeyUsage lacks digitalSignature")
        if usage.value.key_cert_sign:
            faults.append("its KeyUsage has keyCertSign")
        if usage.value.crl_sign:
            faults.append("its KeyUsage has cRLSign")
    extended = _extension(extensions, x509.ExtendedKeyUsage)
    if extended is None:
        faults.append("it has no ExtendedKeyUsage")
    else:
        for name, oid in (
            ("serverAuth", ExtendedKeyUsageOID.SERVER_AUTH),
            ("clientAuth", ExtendedKeyUsageOID.CLIENT_AUTH),
        ):
            if oid not in extended.value:
                faults.append(f"its ExtendedKeyUsage lacks {name}")
    names = _extension(extensions, x509.SubjectAlternativeName)
    uris = [] if names is None else names.value.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        faults.append(f"it has {len(uris) or 'no'} URI names; an SVID has exactly one")
    else:
        try:
            parse_spiffe_id(uris[0])
        except InvalidIdentityError as error:
            faults.append(str(error))
    return faults


@lru_cache(maxsize=4096)
def parse_svid(der: bytes) -> Svid:
    """Parses a leaf certificate. Raises :class:`InvalidIdentityError`, which names the first rule that it breaks.

    Cached: a leaf is verified twice in each handshake, and peers connect again. The result depends on the bytes alone.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        for fault in svid_faults(certificate):
            raise InvalidIdentityError(fault)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return Svid(
            id=parse_spiffe_id(names.get_values_for_type(x509.UniformResourceIdentifier)[0]),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            serial=certificate.serial_number,
            issuer=certificate.issuer.public_bytes(),
            sha256=certificate.fingerprint(hashes.SHA256()).hex(),
        )
    except InvalidIdentityError:
        raise
    except Exception as error:  # any failure of the parser means a bad certificate, which is refused
        raise InvalidIdentityError(f"the certificate cannot be read: {shown(str(error))}") from error


def _extension(extensions: x509.Extensions, kind: type[_E]) -> x509.Extension[_E] | None:
    try:
        return extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


def claims(der: bytes) -> dict[str, str]:
    """What a certificate *claims*, verified or not, escaped. For people to read; no decision may rest on it.

    Anybody may send one. What is read is bounded by :data:`MAX_CLAIMS_BYTES`, what is returned by :func:`shown`.
    """
    found = {"sha256": sha256(der).hexdigest()}
    if len(der) > MAX_CLAIMS_BYTES:
        found["unreadable"] = f"it has {len(der)} bytes; at most {MAX_CLAIMS_BYTES} are read"
        return found
    try:
        certificate = x509.load_der_x509_certificate(der)
        found["subject"] = shown(certificate.subject.rfc4514_string())
        found["issuer"] = shown(certificate.issuer.rfc4514_string())
        names = _extension(certificate.extensions, x509.SubjectAlternativeName)
        uris = [] if names is None else names.value.get_values_for_type(x509.UniformResourceIdentifier)
        found["uris"] = " ".join(shown(uri) for uri in uris[:4])
    except Exception as error:  # that the certificate cannot be parsed is reported too
        found["unreadable"] = shown(str(error))
    return found
