"""Metrics: counts of the connections that ended, and the last refusals. Pure.

Bounded: labels are the ports of our own configuration and the words of ``Reason``, never text from a peer.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import asdict, dataclass, field

from sidecar.identity.reasons import Reason
from sidecar.observe.record import ConnectionRecord, Direction

LAST_REFUSALS = 50


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refused connection, as in its log line. ``at``: the date and time (UTC) as text."""

    at: str
    direction: Direction
    port: str
    upstream: str | None
    peer_address: str | None
    peer_id: str | None
    client_address: str | None
    reason: Reason
    peer_reason: str | None
    rule: str | None
    message: str | None

    def to_dict(self) -> dict[str, str | None]:
        """As plain values. Empty fields are left out, except ``message``."""
        values = {name: None if value is None else str(value) for name, value in asdict(self).items()}
        return {name: value for name, value in values.items() if value or name == "message"}


@dataclass(slots=True)
class Metrics:
    """``ended``: connections by (direction, port or upstream, decision, reason). ``to_app``, ``from_app``: bytes
    by (direction, port or upstream). ``refusals``: the newest last."""

    ended: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    to_app: Counter[tuple[str, str]] = field(default_factory=Counter)
    from_app: Counter[tuple[str, str]] = field(default_factory=Counter)
    refusals: deque[Refusal] = field(default_factory=lambda: deque(maxlen=LAST_REFUSALS))

    def add(self, record: ConnectionRecord, at: str) -> None:
        """Counts a connection that has ended."""
        # Inbound, the label is our own port, since `upstream` is the app's address.
        label = record.port if record.direction == "inbound" else str(record.upstream)
        self.ended[record.direction, label, record.decision, str(record.outcome)] += 1
        self.to_app[record.direction, label] += record.bytes_to_app
        self.from_app[record.direction, label] += record.bytes_from_app
        if record.decision == "deny":
            self.refusals.append(
                Refusal(
                    at=at,
                    direction=record.direction,
                    port=record.port,
                    upstream=record.upstream,
                    peer_address=record.peer_address,
                    peer_id=record.peer_id,
                    client_address=record.client_address,
                    reason=record.outcome,
                    peer_reason=record.peer_reason,
                    rule=record.rule,
                    message=record.message,
                )
            )
