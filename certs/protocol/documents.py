"""The two signed documents of a mesh: the trust bundle and the revocation list. Pure; fails closed.

**Envelope.** Both are a JSON object of at most 1 MiB, written in UTF-8:

* ``type``: ``mesh-bundle/2`` or ``mesh-revocations/2``. The number is the version of the format.
* ``payload``: base64 of the payload's bytes, a JSON object.
* ``signatures``: 1 to 8 objects. ``certificate``: the signer's certificate in PEM. ``signature``: base64 of an ECDSA P-256
  signature (DER) with SHA-256 over the pre-authentication encoding of DSSE (https://github.com/secure-systems-lab/dsse):
  ``DSSEv1 LEN(type) type LEN(payload) payload``, separated by single spaces, with lengths in decimal and the payload as
  bytes. It covers the type, so neither document can be used as the other. One valid signature is enough. Only
  :func:`read_kept_bundle` reads the payload before.

**Payload of a bundle.** ``trust_domain``; ``version``; ``roots``: 1 to 8 certificates in PEM; ``active``: SHA-256 of the
root under which new certificates are issued; ``distrusted``: SHA-256 digests of the public keys (SubjectPublicKeyInfo) of
CAs and delegates that are no longer trusted, at most 1000. Digests are hexadecimal.

**Payload of a revocation list.** ``trust_domain``; ``version``; ``issued_at``: when it was signed; ``identities``: an object
from SPIFFE ID to the time before which its certificates are revoked; ``serials``: pairs of the issuer's name (DER, base64)
and the serial number (hexadecimal), at most 100 000; ``bundle``: the newest trust bundle, by its ``version`` and the
``sha256`` of its payload's bytes; ``distrusted``: as in that bundle. Times are Unix seconds.

**Unknown fields.** What is signed and unknown is refused; what is not signed and unknown is ignored. So a payload has
exactly the fields above, each once: a reader that skipped a field would enforce less than the CA says. A new field is
therefore a new type. Other fields of the envelope mean nothing, whoever added them.

**Versions.** ``version`` is an integer from 1 to 2^53 - 1. It only rises, separately for each document
(:func:`next_version`). It is at least the time: a bundle's in seconds, a list's in microseconds, since no CA revokes a
million times a second. So it is never far ahead of the time, and a reader refuses one that is. Readers do not go back to an
older version. A list that names no bundle has 0 there.

**Signers.** A bundle must be signed by *a root that its reader already trusts*. So the issuing key alone cannot add a root,
and a reader that missed a rotation follows the old root's signature to the new root. A revocation list must be signed by a
trusted root, or by the delegate of one (:func:`certs.protocol.x509_profile.delegate`), because it is signed again each
minute and a root's key may be kept offline. The list names the bundle, so that whoever relays genuine lists cannot hold the
bundle back unnoticed. What readers do about that: :mod:`sidecar.agent.trust`.
"""

from __future__ import annotations

import binascii
import json
import warnings
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
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
from sidecar.identity.keys import certificate_digest, key_digest
from sidecar.identity.spiffe import SpiffeId, parse_spiffe_id, shown

BUNDLE, REVOCATIONS = "mesh-bundle/2", "mesh-revocations/2"
MAX_BYTES = 1 << 20
MAX_ROOTS = 8
MAX_SIGNATURES = 8
MAX_DISTRUSTED = 1000
LISTS_A_SECOND = 1_000_000
"""As many versions has a list of revocations in a second."""


class UntrustedError(ValueError):
    """The document is not accepted; the message gives the reason, for people."""


@dataclass(frozen=True, slots=True)
class BundleName:
    """Which bundle: its version, and SHA-256 of its payload. Version 0 names none."""

    version: int = 0
    sha256: bytes = b""


@dataclass(frozen=True, slots=True)
class Signer:
    """Who signed: the digest of the key, and of the trusted root that it belongs to, which may be the root's own."""

    key: bytes
    root: bytes


@dataclass(frozen=True, slots=True)
class Bundle:
    """The roots that a mesh trusts. ``active``: the digest of the root under which new certificates are issued; a sidecar
    with a certificate under another root renews. ``distrusted``: digests of keys, of CAs and of delegates, that are never
    trusted, whatever signed their certificates. ``sha256``: the digest of the payload that it was read from."""

    trust_domain: str
    version: int
    roots: tuple[x509.Certificate, ...]
    active: bytes
    distrusted: frozenset[bytes] = frozenset()
    sha256: bytes = field(default=b"", compare=False)

    @property
    def name(self) -> BundleName:
        """How a revocation list names it."""
        return BundleName(self.version, self.sha256)

    @property
    def anchors(self) -> frozenset[bytes]:
        """The digests of the roots."""
        return frozenset(map(certificate_digest, self.roots))


@dataclass(frozen=True, slots=True)
class RevocationList:
    """What is revoked. ``identities``: certificates of an identity that were issued before the time. ``serials``: single
    certificates, by the issuer's name (DER) and serial number. ``issued_at``: when it was signed; it is signed again every
    minute, with the same version while nothing changes. ``bundle``: the newest bundle; ``distrusted``: as in that.
    ``signer``: whose signature it was read with."""

    trust_domain: str
    version: int
    issued_at: datetime
    identities: Mapping[SpiffeId, datetime] = field(default_factory=dict)
    serials: frozenset[tuple[bytes, int]] = frozenset()
    bundle: BundleName = BundleName()
    distrusted: frozenset[bytes] = frozenset()
    signer: Signer | None = field(default=None, compare=False)


def version_at(time: datetime, per_second: int = 1) -> int:
    """The version that belongs to a time. ``per_second``: of a list :data:`LISTS_A_SECOND`."""
    return int(time.timestamp()) * per_second


def next_version(last: int, now: datetime, per_second: int = 1) -> int:
    """One more than the last version, and at least the one of this time. So a store that was restored from an old copy does
    not reuse a version that readers have already accepted."""
    return max(last + 1, version_at(now, per_second))


# -- writing -----------------------------------------------------------------------------------------------------------


def sign_bundle(bundle: Bundle, signers: Sequence[Issuer]) -> bytes:
    """The document, signed by each of ``signers``: in a rotation the old root and the new one."""
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
            "bundle": {"version": revoked.bundle.version, "sha256": revoked.bundle.sha256.hex()},
            "distrusted": sorted(key.hex() for key in revoked.distrusted),
        },
        [signer],
    )


# -- reading -----------------------------------------------------------------------------------------------------------


def read_bundle(document: bytes, trust_domain: str, anchors: frozenset[bytes], now: datetime) -> Bundle:
    """Reads a bundle. A root in ``anchors`` (digests) must have signed it. Raises :class:`UntrustedError`."""

    def may_sign(signer: x509.Certificate) -> str | None:
        return None if certificate_digest(signer) in anchors else "not by a root that is trusted here"

    payload, body, _ = _open(document, BUNDLE, trust_domain, may_sign, now)
    try:
        _only(payload, "trust_domain", "version", "roots", "active", "distrusted")
        roots = tuple(x509.load_pem_x509_certificate(pem.encode()) for pem in _listed(payload, "roots", str, MAX_ROOTS))
        bundle = Bundle(
            trust_domain,
            _version(payload),
            roots,
            bytes.fromhex(payload["active"]),
            _distrusted(payload),
            sha256(body).digest(),
        )
    except Exception as error:  # the parsers raise many classes
        raise UntrustedError(f"the bundle cannot be read: {shown(str(error))}") from error
    if not roots:
        raise UntrustedError("the bundle has no roots, so no certificate could be verified")
    for root in roots:
        for fault in [*ca_faults(root), *([] if is_signed_by(root, root) else ["it did not sign itself"])]:
            raise UntrustedError(f"the bundle contains a certificate that is not a root: {fault}")
    if bundle.active not in bundle.anchors:
        raise UntrustedError("the bundle names an active root that is not in it")
    return bundle


def read_kept_bundle(document: bytes, trust_domain: str, now: datetime) -> Bundle:
    """Reads a bundle that was accepted before and kept in a place that only the owner writes to. It is checked for damage
    only: one of its own roots must have signed it, as in every bundle. Raises :class:`UntrustedError`."""
    try:
        payload = json.loads(b64decode(json.loads(document)["payload"], validate=True))
        anchors = frozenset(
            certificate_digest(x509.load_pem_x509_certificate(pem.encode())) for pem in payload["roots"]
        )
    except Exception as error:  # the parsers raise many classes
        raise UntrustedError("it is not a trust bundle, or it is damaged") from error
    return read_bundle(document, trust_domain, anchors, now)


def read_revocations(document: bytes, bundle: Bundle, now: datetime | None) -> RevocationList:
    """Reads a revocation list. A root of the bundle, or a root's delegate, must have signed it, and not with a distrusted
    key. ``now`` None: a list that was accepted before and kept; the signer's certificate may have ended since. Raises
    :class:`UntrustedError`."""
    signers: dict[bytes, Signer] = {}

    def may_sign(signer: x509.Certificate) -> str | None:
        digest, key = certificate_digest(signer), key_digest(signer)
        root = next((one for one in bundle.roots if certificate_digest(one) == digest), None)
        if root is None:
            root = next((one for one in bundle.roots if is_signed_by(signer, one)), None)
            if root is None:
                return "by a certificate that no trusted root issued"
            if not _is_delegate(signer):
                return "by a certificate that was not made for that, such as an issuing CA's"
        if key in bundle.distrusted:
            return "with a key that is distrusted"
        signers[digest] = Signer(key, certificate_digest(root))
        return None

    payload, _, by = _open(document, REVOCATIONS, bundle.trust_domain, may_sign, now)
    try:
        _only(payload, "trust_domain", "version", "issued_at", "identities", "serials", "bundle", "distrusted")
        identities = {
            parse_spiffe_id(identity): _time(when) for identity, when in _checked(payload, "identities", dict).items()
        }
        serials = frozenset(
            (b64decode(issuer, validate=True), int(serial, 16))
            for issuer, serial in _listed(payload, "serials", list, 100_000)
        )
        named = _checked(payload, "bundle", dict)
        _only(named, "version", "sha256")
        return RevocationList(
            bundle.trust_domain,
            _version(payload),
            _time(payload["issued_at"]),
            identities,
            serials,
            BundleName(_version(named, least=0), bytes.fromhex(named["sha256"])),
            _distrusted(payload),
            signers[certificate_digest(by)],
        )
    except Exception as error:  # as above
        raise UntrustedError(f"the list of revocations cannot be read: {shown(str(error))}") from error


# -- the envelope ------------------------------------------------------------------------------------------------------


def _seal(kind: str, payload: Mapping[str, Any], signers: Sequence[Issuer]) -> bytes:
    body = json.dumps(payload, separators=(",", ":"), sort_keys=True).encode()
    signatures = [
        {
            "certificate": _pem(signer.certificate),
            "signature": b64encode(signer.key.sign(_signing_input(kind, body), ec.ECDSA(hashes.SHA256()))).decode(),
        }
        for signer in signers
    ]
    return json.dumps({"type": kind, "payload": b64encode(body).decode(), "signatures": signatures}).encode()


def _open(
    document: bytes,
    kind: str,
    trust_domain: str,
    may_sign: Callable[[x509.Certificate], str | None],
    now: datetime | None,
) -> tuple[dict[str, Any], bytes, x509.Certificate]:
    """Verifies a signature, then parses the payload; returns it, its bytes, and the signer. ``may_sign``: the reason why a
    certificate may not sign; None if it may. Raises :class:`UntrustedError`."""
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
        raise UntrustedError("it is not a signed document") from error
    why = ["it is not signed"]
    for entry in signatures:
        signer = _signer(entry, _signing_input(kind, body), may_sign, now)
        if not isinstance(signer, str):
            break
        why.append(f"it is signed {signer}")
    else:
        raise UntrustedError(why[-1])
    try:
        payload = json.loads(body, object_pairs_hook=unique)
        claimed = payload["trust_domain"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UntrustedError("its payload is not a document of a mesh") from error
    if claimed != trust_domain:
        raise UntrustedError(f"it is of the trust domain {shown(str(claimed))}, not of {trust_domain}")
    return dict(payload), body, signer


def _signer(
    entry: Mapping[str, Any], signed: bytes, may_sign: Callable[[x509.Certificate], str | None], now: datetime | None
) -> x509.Certificate | str:
    """Whose signature this is; or why it is not valid. ``now`` None: whenever the certificate is valid."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            signer = x509.load_pem_x509_certificate(entry["certificate"].encode())
            if (fault := may_sign(signer)) is not None:
                return fault
            key = signer.public_key()
            if not isinstance(key, ec.EllipticCurvePublicKey):
                return "with a key that is not an elliptic-curve key"
            key.verify(b64decode(entry["signature"], validate=True), signed, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return "with a signature that is wrong"
    except Exception:  # the parsers raise many classes
        return "in a way that cannot be read"
    if now is not None and not signer.not_valid_before_utc <= now <= signer.not_valid_after_utc:
        return (
            f"by a certificate that is valid from {signer.not_valid_before_utc:%FT%TZ} "
            f"to {signer.not_valid_after_utc:%FT%TZ}, and it is {now:%FT%TZ}"
        )
    return signer


def _is_delegate(certificate: x509.Certificate) -> bool:
    usages = find(certificate.extensions, x509.ExtendedKeyUsage)  # an issuing CA has none
    return usages is not None and list(usages.value) == [ExtendedKeyUsageOID.OCSP_SIGNING]


def _signing_input(kind: str, body: bytes) -> bytes:
    """DSSE's pre-authentication encoding."""
    return b"DSSEv1 %d " % len(kind) + kind.encode() + b" %d " % len(body) + body


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which no name occurs twice: of two values, different parsers might use different ones. For
    :func:`json.loads`. Raises :class:`ValueError`."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name occurs twice")
    return fields


def _only(fields: Mapping[str, Any], *names: str) -> None:
    if unknown := set(fields) - set(names):
        raise TypeError(f"{min(unknown)} is no field of this type")


def _distrusted(payload: Mapping[str, Any]) -> frozenset[bytes]:
    return frozenset(bytes.fromhex(key) for key in _listed(payload, "distrusted", str, MAX_DISTRUSTED))


def _checked(payload: Mapping[str, Any], key: str, kind: type) -> Any:
    value = payload[key]
    if not isinstance(value, kind):
        raise TypeError(f"{key} has the wrong type")
    return value


def _listed(payload: Mapping[str, Any], key: str, kind: type, most: int) -> list[Any]:
    values = _checked(payload, key, list)
    if len(values) > most or not all(isinstance(value, kind) for value in values):
        raise TypeError(f"{key} has the wrong type, or is longer than {most}")
    return list(values)


def _version(payload: Mapping[str, Any], least: int = 1) -> int:
    version = payload["version"]
    if type(version) is not int or not least <= version < 1 << 53:
        raise TypeError("version has the wrong type or is out of range")
    return version


def _time(seconds: Any) -> datetime:
    if type(seconds) is not int:
        raise TypeError("a time has the wrong type")
    return datetime.fromtimestamp(seconds, UTC)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()
