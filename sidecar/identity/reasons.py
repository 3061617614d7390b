"""How a connection can end: one vocabulary for the access log, metrics and ``explain``.

Pure. ``Reason`` values are a fixed point that users' dashboards rely on: never rename one.
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why a connection was refused, or how one that was let in ended."""

    # Refused: by this end before anything was let in ...
    PLAINTEXT_REFUSED = "plaintext_refused"
    NO_CERTIFICATE = "no_certificate"
    UNKNOWN_CA = "unknown_ca"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    BAD_IDENTITY = "bad_identity"
    WRONG_TRUST_DOMAIN = "wrong_trust_domain"
    UNEXPECTED_PEER = "unexpected_peer"
    REVOKED = "revoked"  # also ends a live connection
    POLICY_DENIED = "policy_denied"
    TLS_VERSION = "tls_version"
    HANDSHAKE_FAILED = "handshake_failed"
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    CONNECT_FAILED = "connect_failed"
    PEER_REFUSED = "peer_refused"
    OVERLOADED = "overloaded"
    # A fault of ours, not of any peer: kept apart from `handshake_failed`, so that nobody hunts an attacker for our bug.
    INTERNAL_ERROR = "internal_error"
    # Nothing is known against this peer, but our list of revocations is too old to know. Its own word, because "revoked"
    # would accuse an honest peer, and no other says what to mend: our way to the CA.
    REVOCATIONS_STALE = "revocations_stale"

    # ... or let in, and ended so:
    OK = "ok"
    CLIENT_RESET = "client_reset"
    APP_RESET = "app_reset"
    TRUNCATED = "truncated"
    IDLE_TIMEOUT = "idle_timeout"
    MAX_AGE = "max_age"
    DRAINED = "drained"
    POLICY_CHANGED = "policy_changed"
    TRUST_CHANGED = "trust_changed"


MITM_SUSPECTS = frozenset(
    {
        Reason.PLAINTEXT_REFUSED,
        Reason.NO_CERTIFICATE,
        Reason.UNKNOWN_CA,
        Reason.BAD_IDENTITY,
        Reason.WRONG_TRUST_DOMAIN,
        Reason.UNEXPECTED_PEER,
        Reason.REVOKED,
        Reason.TLS_VERSION,
    }
)
"""Met on the way *out*, these may mean that somebody is in the middle: an alarm besides the refusal."""


class Refused(Exception):  # noqa: N818 (a verdict, not an error of the program)
    """A connection that may not be. ``detail`` is for people and goes on after our service's name ("met …", "may not …");
    ``peer_reason`` is what the other end called it."""

    def __init__(self, reason: Reason, detail: str, *, peer_reason: str | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.peer_reason = peer_reason


class UsageError(Exception):
    """A mistake in a file, an option or the environment: printed as it is, exit code 2, never a traceback."""
