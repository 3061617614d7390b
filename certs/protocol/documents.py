"""The two documents that a mesh trusts: which roots there are, and what is revoked. Pure; fails closed.

Both are JSON in an envelope of ``{"type", "payload", "signatures": [{"certificate", "signature"}]}``: the payload in base64,
as it was signed, and ECDSA-P256-SHA256 (DER) over the type, a zero byte and the payload, so that neither document can be
taken for the other. Their versions only rise (:func:`next_version`).

* A **bundle** counts if *one of the roots that its reader trusts already* signed it. So whoever holds only the issuing key
  installs no root, and a reader that slept through a rotation follows the signatures of the old root to the new one.
* A **revocation list** counts if a trusted root signed it, or the delegate that a trusted root appointed for it
  (:func:`certs.protocol.x509_profile.delegate`): it is signed anew each minute, and a root's key may be in a safe.
"""

from __future__ import annotations

import binascii
import json
import warnings
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from certs.protocol.fields import find
from certs.protocol.inspection import ca_faults, is_signed_by
from certs.protocol.x509_profile import Issuer
from sidecar.identity.keys import certificate_digest
from sidecar.identity.spiffe import SpiffeId, parse_spiffe_id, shown

BUNDLE, REVOCATIONS = "mesh-bundle/1", "mesh-revocations/1"
MAX_BYTES = 1 << 20
MAX_ROOTS = 8
MAX_SIGNATURES = 8


class UntrustedError(ValueError):
    """The document does not count; the message says why, for people."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """Which roots a mesh trusts. ``active``: the digest of the root under which new certificates are issued; whoever has one
    under another renews. ``distrusted``: keys of CAs that count no longer, whoever signed for them."""

    trust_domain: str
    version: int
    roots: tuple[x509.Certificate, ...]
    active: bytes
    distrusted: frozenset[bytes] = frozenset()

    @property
    def anchors(self) -> frozenset[bytes]:
        """The digests of its roots."""
        return frozenset(map(certificate_digest, self.roots))


@dataclass(frozen=True, slots=True)
class RevocationList:
    """What is revoked: identities by the time before which they were issued, and certificates by issuer's name and serial.
    ``issued_at``: how fresh it is; it is signed again every minute, with the same version while nothing changes."""

    trust_domain: str
    version: int
    issued_at: datetime
    identities: Mapping[SpiffeId, datetime] = field(default_factory=dict)
    serials: frozenset[tuple[bytes, int]] = frozenset()


def next_version(last: int, now: datetime) -> int:
    """One more than the last, and no less than the time in seconds: so a store that was restored from a copy does not
    number its next document with a version that its readers have seen already."""
    return max(last + 1, int(now.timestamp()))


# -- writing -----------------------------------------------------------------------------------------------------------


def sign_bundle(bundle: Bundle, signers: Sequence[Issuer]) -> bytes:
    """The document, signed by each of ``signers``: every root whose key is at hand, the new and the old."""
    return _seal(
        BUNDLE,
        {
            "trust_domain": bundle.trust_domain,
            "version": bundle.version,
            "roots": [_pem(root) for root in bundle.roots],
            "active": bundle.active.hex(),
            "distrusted": sorted(key.hex() for key in bundle.distrusted),
        },
        signers,
    )


def sign_revocations(revoked: RevocationList, signer: Issuer) -> bytes:
    """The document, signed by a root or its delegate."""
    return _seal(
        REVOCATIONS,
        {
            "trust_domain": revoked.trust_domain,
            "version": revoked.version,
            "issued_at": int(revoked.issued_at.timestamp()),
            "identities": {str(identity): int(when.timestamp()) for identity, when in revoked.identities.items()},
            "serials": sorted([b64encode(issuer).decode(), f"{serial:x}"] for issuer, serial in revoked.serials),
        },
        [signer],
    )


# -- reading -----------------------------------------------------------------------------------------------------------


def read_bundle(document: bytes, trust_domain: str, anchors: frozenset[bytes], now: datetime) -> Bundle:
    """The bundle, if a root in ``anchors`` (digests) signed it. Raises :class:`UntrustedError`."""

    def may_sign(signer: x509.Certificate) -> str | None:
        return None if certificate_digest(signer) in anchors else "not by a root that is trusted here"

    said = _open(document, BUNDLE, trust_domain, may_sign, now)
    try:
        roots = tuple(x509.load_pem_x509_certificate(pem.encode()) for pem in _listed(said, "roots", str, MAX_ROOTS))
        bundle = Bundle(
            trust_domain,
            _version(said),
            roots,
            bytes.fromhex(said["active"]),
            frozenset(bytes.fromhex(key) for key in _listed(said, "distrusted", str, 1000)),
        )
    except Exception as error:  # whatever the parsers raise: what a root signed and nobody can read does not count
        raise UntrustedError(f"the bundle cannot be read: {shown(str(error))}") from error
    if not roots:
        raise UntrustedError("the bundle has no roots, so nobody could be trusted")
    for root in roots:
        for fault in [*ca_faults(root), *([] if is_signed_by(root, root) else ["it did not sign itself"])]:
            raise UntrustedError(f"the bundle holds a certificate that is no root: {fault}")
    if bundle.active not in bundle.anchors:
        raise UntrustedError("the bundle names an active root that is not in it")
    return bundle


def read_kept_bundle(document: bytes, trust_domain: str, now: datetime) -> Bundle:
    """A bundle that was accepted once and has been kept in a place that nobody else writes to. It must be whole, which is
    shown by the signature of a root that is in it itself: every bundle has one. Raises :class:`UntrustedError`."""
    try:
        said = json.loads(b64decode(json.loads(document)["payload"], validate=True))
        anchors = frozenset(certificate_digest(x509.load_pem_x509_certificate(pem.encode())) for pem in said["roots"])
    except Exception as error:  # whatever the parsers raise of damaged bytes
        raise UntrustedError("it is no trust bundle, or a damaged one") from error
    return read_bundle(document, trust_domain, anchors, now)


def read_revocations(document: bytes, bundle: Bundle, now: datetime) -> RevocationList:
    """The list, if a root of the bundle, or the delegate of one, signed it. Raises :class:`UntrustedError`."""

    def may_sign(signer: x509.Certificate) -> str | None:
        if certificate_digest(signer) in bundle.anchors:
            return None
        if not any(is_signed_by(signer, root) for root in bundle.roots):
            return "by nobody whom a trusted root appointed"
        return None if _is_delegate(signer) else "by a certificate that was not made for that, such as an issuing CA's"

    said = _open(document, REVOCATIONS, bundle.trust_domain, may_sign, now)
    try:
        identities = {
            parse_spiffe_id(identity): _time(when) for identity, when in _checked(said, "identities", dict).items()
        }
        serials = frozenset(
            (b64decode(issuer, validate=True), int(serial, 16))
            for issuer, serial in _listed(said, "serials", list, 100_000)
        )
        return RevocationList(bundle.trust_domain, _version(said), _time(said["issued_at"]), identities, serials)
    except Exception as error:  # as above
        raise UntrustedError(f"the list of revocations cannot be read: {shown(str(error))}") from error


# -- the envelope ------------------------------------------------------------------------------------------------------


def _seal(kind: str, payload: Mapping[str, Any], signers: Sequence[Issuer]) -> bytes:
    body = json.dumps(payload, separators=(",", ":"), sort_keys=True).encode()
    signatures = [
        {
            "certificate": _pem(signer.certificate),
            "signature": b64encode(signer.key.sign(_signed(kind, body), ec.ECDSA(hashes.SHA256()))).decode(),
        }
        for signer in signers
    ]
    return json.dumps({"type": kind, "payload": b64encode(body).decode(), "signatures": signatures}).encode()


def _open(
    document: bytes,
    kind: str,
    trust_domain: str,
    may_sign: Callable[[x509.Certificate], str | None],
    now: datetime,
) -> dict[str, Any]:
    """The payload, once one signature counts; nothing of it is looked at before. ``may_sign``: why a signer may not."""
    if len(document) > MAX_BYTES:
        raise UntrustedError(f"it is larger than {MAX_BYTES // 1024} KiB")
    try:
        envelope = json.loads(document)
        if envelope["type"] != kind:
            raise UntrustedError(f"it is a document of type {shown(str(envelope['type']))}, where {kind} is expected")
        body = b64decode(_checked(envelope, "payload", str), validate=True)
        signatures = _listed(envelope, "signatures", dict, MAX_SIGNATURES)
    except UntrustedError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise UntrustedError("it is no signed document") from error
    why = ["it is not signed"]
    for entry in signatures:
        fault = _signature_fault(entry, _signed(kind, body), may_sign, now)
        if fault is None:
            break
        why.append(f"it is signed {fault}")
    else:
        raise UntrustedError(why[-1])
    try:
        said = json.loads(body)
        claimed = said["trust_domain"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UntrustedError("what is signed is no document of a mesh") from error
    if claimed != trust_domain:
        raise UntrustedError(f"it is of the trust domain {shown(str(claimed))}, not of {trust_domain}")
    return dict(said)


def _signature_fault(
    entry: Mapping[str, Any], signed: bytes, may_sign: Callable[[x509.Certificate], str | None], now: datetime
) -> str | None:
    """Why this signature does not count; None if it does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            signer = x509.load_pem_x509_certificate(entry["certificate"].encode())
            if (fault := may_sign(signer)) is not None:
                return fault
            key = signer.public_key()
            if not isinstance(key, ec.EllipticCurvePublicKey):
                return "with a key that is none of ours"
            key.verify(b64decode(entry["signature"], validate=True), signed, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return "with a signature that is wrong"
    except Exception:  # a parser's own failure, whatever its class, is no signature
        return "in a way that cannot be read"
    if not signer.not_valid_before_utc <= now <= signer.not_valid_after_utc:
        return (
            f"by a certificate that is good from {signer.not_valid_before_utc:%FT%TZ} "
            f"to {signer.not_valid_after_utc:%FT%TZ}, and it is {now:%FT%TZ}"
        )
    return None


def _is_delegate(certificate: x509.Certificate) -> bool:
    usages = find(certificate.extensions, x509.ExtendedKeyUsage)  # an issuing CA has none at all
    return usages is not None and list(usages.value) == [ExtendedKeyUsageOID.OCSP_SIGNING]


def _signed(kind: str, body: bytes) -> bytes:
    return kind.encode() + b"\0" + body


def _checked(said: Mapping[str, Any], key: str, kind: type) -> Any:
    value = said[key]
    if not isinstance(value, kind):
        raise TypeError(f"{key} is of a wrong kind")
    return value


def _listed(said: Mapping[str, Any], key: str, kind: type, most: int) -> list[Any]:
    values = _checked(said, key, list)
    if len(values) > most or not all(isinstance(value, kind) for value in values):
        raise TypeError(f"{key} is of a wrong kind, or longer than {most}")
    return list(values)


def _version(said: Mapping[str, Any]) -> int:
    version = said["version"]
    if type(version) is not int or not 0 < version < 1 << 53:
        raise TypeError("version is of a wrong kind")
    return version


def _time(seconds: Any) -> datetime:
    if type(seconds) is not int:
        raise TypeError("a time is of a wrong kind")
    return datetime.fromtimestamp(seconds, UTC)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()
