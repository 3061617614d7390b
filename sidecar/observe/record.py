"""One connection's log line. Pure: time is an argument, in seconds of a monotonic clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from sidecar.identity.reasons import Reason, Refused
from sidecar.observe.traffic import OTHERS, PLAINTEXT, Edge, Traffic

Direction = Literal["inbound", "outbound"]

GREETING = 1024
"""The most bytes that an app may say to a trial before it ends, as MySQL and SMTP servers speak first."""


@dataclass(slots=True)
class ConnectionRecord:
    """What is known about a connection so far. It starts as a refusal: only an explicit ``decision = "allow"`` changes that.

    ``peer_address`` and ``peer_id`` belong to the other sidecar. ``peer_id`` holds verified identities only; what an
    unverified peer claims is in ``unverified``. ``upstream`` is the target: the app's address (inbound) or ``service:port``
    (outbound). ``plaintext``: the caller speaks no TLS, and so has no identity (inbound). ``client_address`` is the local
    caller's (outbound). ``reused``: it is a further stream on the kept channel ``channel_id``. That and ``connection_id``
    are the same at both ends. ``traffic``: where it is counted, once it was let in. ``probe``: it is one of `sidecar
    verify`'s, as we were told beforehand (:mod:`sidecar.observe.announced`). ``trial``: our policy allows it, and its caller
    says that none of its apps calls (:mod:`sidecar.proxy.waiting`); its line is a probe's. ``altered``: what came from the
    peer was altered on the way.
    """

    direction: Direction
    service: str
    port: str
    started: float
    peer_address: str | None = None
    client_address: str | None = None
    peer_id: str | None = None
    upstream: str | None = None
    decision: Literal["allow", "deny"] = "deny"
    rule: str | None = None
    dry_run: tuple[str, ...] = ()
    bytes_to_app: int = 0
    bytes_from_app: int = 0
    handshake_ms: float | None = None
    tls_group: str | None = None
    resumed: bool = False
    connection_id: str | None = None
    channel_id: str | None = None
    reused: bool = False
    probe: bool = False
    trial: bool = False
    plaintext: bool = False
    unverified: dict[str, Any] = field(default_factory=dict)
    reason: Reason | None = None
    peer_reason: str | None = None
    message: str | None = None
    traffic: Traffic | None = None
    altered: bool = False
    _finished: bool = False

    def end(self, reason: Reason, message: str | None = None) -> None:
        """Sets the outcome. The first call counts: later ones report consequences, not the cause."""
        if self.reason is None:
            self.reason, self.message = reason, message

    def refuse(self, refusal: Refused) -> None:
        """Sets a refusal as the outcome."""
        if self.reason is None:
            self.peer_reason, self.altered = refusal.peer_reason, refusal.altered
            if self.probe and refusal.reason is Reason.PROBE:  # it was let in, and ends as it was announced
                self.end(refusal.reason, f"{self.service} {refusal.detail}")
            elif refusal.reason is not Reason.CONNECT_FAILED:
                self.decision = "deny"
        self.end(refusal.reason, f"refused: {self.service} {refusal.detail}")

    @property
    def outcome(self) -> Reason:
        """How the connection ended. Without any call of :meth:`end` that is a bug: ``internal_error``."""
        return self.reason or Reason.INTERNAL_ERROR

    @property
    def edge(self) -> Edge:
        """What it is counted under."""
        if self.direction == "inbound":
            peer = (self.peer_id or "").removeprefix("spiffe://").partition("/")[2]
            if peer == PLAINTEXT:
                peer = OTHERS  # an identity of that name, which another CA may give
            if self.plaintext:
                peer = PLAINTEXT
            return Edge("inbound", peer, self.port, self.rule or "")
        target = self.upstream or ""
        service, _, port = target.partition(":")
        return Edge("outbound", "" if " " in port else service, target, self.rule or "")  # "a:1 or b:1": unknown

    def finish(self, now: float) -> dict[str, Any]:
        """The fields of the log line, once. A second call is a bug and raises :class:`RuntimeError`."""
        if self._finished:
            raise RuntimeError("a connection was logged twice")
        self._finished = True
        if self.bytes_to_app:
            # Neither has anything to say to an app: whoever has is a caller as any other.
            self.probe = self.trial = False
        if self.bytes_from_app > GREETING:
            self.trial = False  # it is the caller's word alone, and whoever stays to read is a caller too
        line: dict[str, Any] = {
            "direction": self.direction,
            "service": self.service,
            "port": self.port,
            "peer_address": self.peer_address,
            "peer_id": self.peer_id,
            "upstream": self.upstream,
            "decision": self.decision,
            "rule": self.rule,
            "reason": self.outcome.value,
            "bytes_to_app": self.bytes_to_app,
            "bytes_from_app": self.bytes_from_app,
            "duration_ms": round((now - self.started) * 1000, 1),
            "handshake_ms": None if self.handshake_ms is None else round(self.handshake_ms, 1),
            "tls_group": self.tls_group,
            "resumed": self.resumed,
            "connection_id": self.connection_id,
            "channel_id": self.channel_id,
            "reused": self.reused,
        }
        if self.client_address:
            line["client_address"] = self.client_address
        if self.peer_reason:
            line["peer_reason"] = self.peer_reason
        if self.dry_run:
            line["dry_run"] = list(self.dry_run)
        if self.probe or self.trial:
            line["probe"] = True
        if self.plaintext:
            line["plaintext"] = True
        if self.unverified:
            line["unverified"] = self.unverified
        if self.message:
            line["message"] = self.message
        return line
