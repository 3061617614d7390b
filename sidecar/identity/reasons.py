"""Why a connection is refused or ends: one vocabulary for the access log, the metrics and ``sidecar status``. Pure.

``Reason`` values are a public format, on which users' dashboards rely: never rename one.
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why a connection was refused, or how an accepted one ended."""

    # The connection was refused:
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
    # The peer closed the socket before its first byte: a port check, as balancers and monitoring make them. Not a fault.
    # Or a stream of `sidecar verify`, let in, which ends before the app as it was announced.
    PROBE = "probe"
    CONNECT_FAILED = "connect_failed"
    PEER_REFUSED = "peer_refused"
    OVERLOADED = "overloaded"
    # A bug of this program. Separate from `handshake_failed`, so that a bug is not investigated as an attack.
    INTERNAL_ERROR = "internal_error"
    # The peer's certificate is valid, but our list of revocations is too old to rely on. `revoked` would blame an honest
    # peer; this reason shows what to repair: our connection to the CA.
    REVOCATIONS_STALE = "revocations_stale"

    # The connection was accepted, and ended:
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
"""On an outbound connection these reasons can be the sign of an attacker in the middle. They raise an alarm besides the
refusal."""


class Refused(Exception):  # noqa: N818 (a verdict, not an error of the program)
    """A refused connection. ``detail`` is a message for people that follows our service's name ("met …", "may not …").
    ``peer_reason`` is the reason that the other end reported. ``altered``: what was received was altered on the way, or the
    peer is broken."""

    def __init__(self, reason: Reason, detail: str, *, peer_reason: str | None = None, altered: bool = False) -> None:
        super().__init__(f"{reason}: {detail}")
        self.altered = altered
        self.reason = reason
        self.detail = detail
        self.peer_reason = peer_reason


class UsageError(Exception):
    """A mistake in a file, an option or the environment. It is printed as it is, with exit code 2 and no traceback."""
