"""Metrics: counts of the connections, and the last refusals. Pure.

The last refusals are kept in three places: alarms, other refusals whose lines are never folded, and the rest, so that a
flood of one kind does not hide the others.

Bounded: labels are the ports of our own configuration, the words of ``Reason``, and the edges of
:mod:`~sidecar.observe.traffic`; never what an unverified peer sent.
"""

from __future__ import annotations

import enum
from collections import Counter, deque
from dataclasses import asdict, dataclass, field
from itertools import chain
from operator import itemgetter

from sidecar.identity.reasons import MITM_SUSPECTS, Reason
from sidecar.observe.exposition import Histogram
from sidecar.observe.folding import is_foldable
from sidecar.observe.record import ConnectionRecord, Direction
from sidecar.observe.traffic import Edges, Traffic

LAST_REFUSALS = 50
"""How many are kept in each place."""


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
    connection_id: str | None

    def to_dict(self) -> dict[str, str | None]:
        """As plain values. Empty fields are left out, except ``message``."""
        values = {name: None if value is None else str(value) for name, value in asdict(self).items()}
        return {name: value for name, value in values.items() if value or name == "message"}


class _Kind(enum.Enum):
    """The places of the last refusals."""

    ALARM = enum.auto()
    ATTRIBUTABLE = enum.auto()
    STRANGER = enum.auto()


@dataclass(slots=True)
class Metrics:
    """``ended``: connections by (direction, port or upstream, decision, reason). ``edges``: who called whom, and how much.
    ``folded``: connections without a line of their own in the log. ``handshakes``, ``connects``: how long those that
    succeeded took, by direction. ``lag``: how late a timer of the loop was, each second."""

    ended: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    edges: Edges = field(default_factory=Edges)
    folded: int = 0
    handshakes: dict[Direction, Histogram] = field(
        default_factory=lambda: {"inbound": Histogram(), "outbound": Histogram()}
    )
    connects: dict[Direction, Histogram] = field(
        default_factory=lambda: {"inbound": Histogram(), "outbound": Histogram()}
    )
    lag: Histogram = field(default_factory=Histogram)
    _refusals: dict[_Kind, deque[tuple[int, Refusal]]] = field(
        default_factory=lambda: {kind: deque(maxlen=LAST_REFUSALS) for kind in _Kind}
    )
    _refused: int = 0

    @property
    def refusals(self) -> list[Refusal]:
        """The last refusals of each kind, the newest last."""
        return [refusal for _, refusal in sorted(chain(*self._refusals.values()), key=itemgetter(0))]

    @property
    def streams(self) -> int:
        """Connections on channels that are kept."""
        return sum(traffic.streams for traffic in self.edges.values())

    @property
    def reused(self) -> int:
        """Those that needed no handshake."""
        return sum(traffic.reused for traffic in self.edges.values())

    def let_in(self, record: ConnectionRecord, now: float, *, stream: bool) -> Traffic:
        """Counts a connection that is let in now, where its end will be counted. ``stream``: its channel may be kept."""
        record.traffic = traffic = self.edges[record.edge]
        traffic.opened += 1
        traffic.opening += now - record.started
        if stream:
            traffic.streams += 1
            traffic.reused += record.reused
        return traffic

    def add(self, record: ConnectionRecord, at: str, *, folded: bool = False) -> None:
        """Counts a connection that has ended. ``folded``: it has no line in the log, and so no place among the refusals.
        Probes have none either: a port check is not refused for anything, and `sidecar verify`'s were announced. ``at``: the
        time, if it was refused."""
        # Inbound, the label is our own port, since `upstream` is the app's address.
        label = record.port if record.direction == "inbound" else str(record.upstream)
        self.ended[record.direction, label, record.decision, str(record.outcome)] += 1
        # What `sidecar verify` or a waiting listener tries raises no alert, and is no call that somebody needs.
        reason = Reason.PROBE if record.probe or record.trial else record.outcome
        if record.traffic is None:
            self.edges[record.edge].refused[reason] += 1
        else:
            record.traffic.ended[reason] += 1
        self.folded += folded
        if record.decision == "deny" and record.outcome is not Reason.PROBE and not (folded or record.probe):
            self._refused += 1
            refusal = Refusal(
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
                connection_id=record.connection_id,
            )
            self._refusals[_kind(record)].append((self._refused, refusal))


def _kind(record: ConnectionRecord) -> _Kind:
    if record.direction == "outbound" and record.outcome in MITM_SUSPECTS:
        return _Kind.ALARM
    return _Kind.STRANGER if is_foldable(record) else _Kind.ATTRIBUTABLE
