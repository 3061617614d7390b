"""Faults of a handshake in our words: OpenSSL's error numbers, the peer's alerts, and peers that speak no TLS. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sidecar.identity.judge import ChainFault
from sidecar.identity.reasons import Reason, Refused

# X509_V_ERR_* of OpenSSL's x509_vfy.h that mean the same at any depth. Any other error concerns the leaf at depth 0
# (bad_identity) and the chain above it (unknown_ca): every error has a reason, and all of them refuse.
_CHAIN_REASONS = {
    9: Reason.NOT_YET_VALID,
    10: Reason.EXPIRED,
    23: Reason.REVOKED,
    47: Reason.WRONG_TRUST_DOMAIN,  # the name constraint of the issuing CA permits our trust domain only
    **dict.fromkeys((2, 7, 18, 19, 20, 21, 22, 24, 25, 27, 79), Reason.UNKNOWN_CA),
}
_VERIFY_ERRORS = {Reason.EXPIRED: 10, Reason.REVOKED: 23, Reason.UNKNOWN_CA: 20}
"""The opposite direction: the error that OpenSSL is given for a reason; it decides the alert for the peer (RFC 8446 6.2)."""
_REJECTED = 28  # X509_V_ERR_CERT_REJECTED: bad_certificate

_ALERTS = {  # RFC 8446 6.2; as one of our reasons where one means the same
    20: "bad_record_mac",
    40: "handshake_failure",
    42: "bad_certificate",
    43: "unsupported_certificate",
    44: Reason.REVOKED.value,
    45: Reason.EXPIRED.value,
    46: "certificate_unknown",
    47: "illegal_parameter",
    48: Reason.UNKNOWN_CA.value,
    49: Reason.POLICY_DENIED.value,
    50: "decode_error",
    51: "decrypt_error",
    70: Reason.TLS_VERSION.value,
    80: "internal_error",
    90: "user_canceled",
    109: "missing_extension",
    116: Reason.NO_CERTIFICATE.value,
    120: "no_application_protocol",
}

_ABOUT_CERTIFICATES = (42, 43, 44, 45, 46, 48, 49, 113, 114, 116)
CERTIFICATE_ALERTS = frozenset(str(_ALERTS.get(alert, f"alert {alert}")) for alert in _ABOUT_CERTIFICATES)
"""The names of the alerts by which a peer judges the certificate that it was shown, or misses one."""


# ERR_LIB_* of OpenSSL's err.h. Each library counts its reasons from 100, so a code means something in its library only.
_TLS = 20
_CERTIFICATES = frozenset({11, 13})  # X509, ASN1

ALTERED_ALERTS = frozenset({str(_ALERTS[20]), str(_ALERTS[51])})
"""By which a peer says that what it received is not what was sent: a record, or a handshake's signature or Finished."""

# ERR_GET_REASON values of OpenSSL's sslerr.h.
_ALTERED_REASONS = frozenset({123, 149, 281})  # bad signature, digest check failed, bad record mac
_NO_CERTIFICATE = 199
_VERSION_REASONS = frozenset({258, 266, 267, 292, 396})  # unsupported protocol, wrong version, version too low …
_ALERT_BASE = 1000  # SSL_AD_REASON_OFFSET: 1000 + the number of the alert that the peer sent, one byte
_LAST_ALERT = _ALERT_BASE + 255  # codes that all libraries share (ERR_R_…) are larger


class LibraryError(NamedTuple):
    """One entry of OpenSSL's error queue."""

    library: int
    reason: int
    text: str


def handshake_refusal(errors: Sequence[LibraryError]) -> Refused:
    """The refusal for what OpenSSL reported when a handshake failed: the oldest is the cause, the TLS library's is the
    effect."""
    code, text = _last_of_tls(errors)
    if code == _NO_CERTIFICATE:
        return Refused(Reason.NO_CERTIFICATE, "met a peer without a certificate; every peer needs one")
    if code in _VERSION_REASONS:
        return Refused(Reason.TLS_VERSION, f"met a peer that does not speak TLS 1.3 ({text})")
    if _ALERT_BASE <= code <= _LAST_ALERT:
        return alert_refusal(code - _ALERT_BASE)
    detail = f"could not finish the handshake: {errors[0].text if errors else text}"
    altered = any(error.library == _TLS and error.reason in _ALTERED_REASONS for error in errors)
    return Refused(Reason.HANDSHAKE_FAILED, detail, altered=altered)


def unreadable_certificate(errors: Sequence[LibraryError]) -> str:
    """Why a certificate that the peer presented in a failed handshake cannot be read; empty if none was the fault."""
    return next((error.text for error in errors if error.library in _CERTIFICATES), "")


def record_fault(errors: Sequence[LibraryError]) -> tuple[str, str | None]:
    """A message for what OpenSSL reported when a record was refused, and the peer's alert if it was one."""
    code, text = _last_of_tls(errors)
    if _ALERT_BASE <= code <= _LAST_ALERT:
        alert = alert_name(code - _ALERT_BASE)
        return f"the peer ended the connection with the TLS alert {alert}", alert
    return f"a TLS record was refused: {text}", None


def _last_of_tls(errors: Sequence[LibraryError]) -> tuple[int, str]:
    """The last entry of the TLS library, since earlier ones may be left by another call. Without one, no code is known."""
    found = next((error for error in reversed(errors) if error.library == _TLS), None)
    return (found.reason, found.text) if found is not None else (0, "protocol error")


def chain_fault(error: int, depth: int, text: str) -> ChainFault:
    """OpenSSL's error on the certificate ``depth`` steps above the leaf, with OpenSSL's ``text`` for it."""
    reason = _CHAIN_REASONS.get(error, Reason.BAD_IDENTITY if depth == 0 else Reason.UNKNOWN_CA)
    where = "" if depth == 0 else f", {depth} above it"
    detail = f"met a certificate that does not verify against our trust bundle: {text} (OpenSSL {error}{where})"
    return ChainFault(reason, detail)


def verify_error(reason: Reason) -> int:
    """The X509_V_ERR_* whose alert is nearest to a reason. No alert means "denied by policy": the verdict frame does."""
    return _VERIFY_ERRORS.get(reason, _REJECTED)


def alert_name(alert: int) -> str:
    """The name of an alert: one of our reasons where one means the same."""
    return _ALERTS.get(alert, f"alert {alert}")


def alert_refusal(alert: int) -> Refused:
    """The peer's fatal alert, as a refusal that quotes the peer's reason."""
    reason = alert_name(alert)
    if reason == Reason.TLS_VERSION:
        return Refused(Reason.TLS_VERSION, "met a peer that does not speak TLS 1.3", peer_reason=reason)
    return Refused(Reason.PEER_REFUSED, f"was refused by the peer in the handshake: {reason}", peer_reason=reason)


def talker(first: bytes) -> str:
    """The protocol that plaintext seems to be. Nothing of it is quoted: its first bytes may be a password."""
    for prefix, name in (
        (b"GET ", "plain HTTP"), (b"POST", "plain HTTP"), (b"HEAD", "plain HTTP"), (b"PUT ", "plain HTTP"),
        (b"HTTP", "plain HTTP"), (b"PRI ", "plain HTTP/2"), (b"OPTI", "plain HTTP"), (b"DELE", "plain HTTP"),
        (b"SSH-", "SSH"), (b"PROX", "the PROXY protocol"), (b"\r\n\r\n", "the PROXY protocol"),
        (b"*", "plaintext (Redis, it seems)"), (b"\x00\x00\x00", "plaintext (PostgreSQL, it seems)"),
        (b"220", "plaintext (SMTP or FTP, it seems)"),
    ):  # fmt: skip
        if first.startswith(prefix):
            return name
    return f"plaintext (first byte 0x{first[0]:02x})"
