"""What the connections of one sidecar share: the current snapshot of identity and policy, relay, log, metrics, room."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import InitVar, dataclass, field, replace
from datetime import date, datetime

import trio

from sidecar.config.sidecar_yaml import Config
from sidecar.host import process
from sidecar.host.clock import utc_now
from sidecar.identity.judge import Presented, judge, revoked
from sidecar.identity.reasons import Reason, Refused
from sidecar.identity.spiffe import SpiffeId
from sidecar.observe.alarm_log import AlarmLog
from sidecar.observe.announced import Announced
from sidecar.observe.logs import Log
from sidecar.observe.metrics import Metrics
from sidecar.observe.plaintext import PlaintextCallers
from sidecar.observe.recurrence import Alternation, Recurrence
from sidecar.policy.decide import Decision, decide
from sidecar.policy.mesh import Mesh
from sidecar.policy.names import Caller
from sidecar.proxy.live import Admission, BareAdmission, Judged, Live, Registry
from sidecar.relay.relay import Relay
from sidecar.transport.accepting import Room
from sidecar.transport.dial import Resolver
from sidecar.transport.gate import Gate
from sidecar.transport.tls import ALPN_PREFIXES, Context
from sidecar.transport.tls_data import make_buffer

MAX_DECISIONS = 1_000
"""How many answers of the policy are kept: one for each caller of each port, and for each call."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a reload replaces as one: our identity, the policy, and the TLS context (certificate, roots, revocations)."""

    id: SpiffeId
    mesh: Mesh
    context: Context

    def check_trust(self, admission: Admission) -> Reason | None:
        """The reason why the peer of a verified connection is not trusted any more; None if it still is."""
        if admission.anchor not in self.context.anchors:
            return Reason.TRUST_CHANGED
        if revoked(admission.peer, admission.path, self.context.params.revocations) is not None:
            return Reason.REVOKED
        return None

    def judge_again(self, admission: Admission, expected: SpiffeId | None, now: datetime) -> datetime:
        """Judges a verified peer for one more stream, as its handshake did. Returns until when that holds under this
        snapshot. Raises :class:`~sidecar.identity.reasons.Refused`."""
        params = replace(self.context.params, expected=expected)
        if admission.anchor not in self.context.anchors:
            raise Refused(Reason.TRUST_CHANGED, f"trusts the root of {admission.peer.id} no longer")
        svid = judge(Presented(admission.path[:1], admission.path), params, now)
        ends = [svid.not_after]
        if params.revocations.fresh_until is not None:
            ends.append(params.revocations.fresh_until)
        return min(ends)


@dataclass(slots=True)
class Node:
    """One sidecar. Several can run in one process, each with its own identity; they share a relay and a gate.

    ``callers``: those without TLS, of its permissive ports.
    ``altered``, ``neighbours``, ``returns``, ``places_of_peers``: where suspects were met (:mod:`sidecar.proxy.suspects`).
    ``sharing``: how many sidecars share the process's descriptors. ``alarms``: where alarms go, if others share it.
    ``room``: for strangers. ``places``: for connections of judged peers and of our own app, ``limits.connections`` of them
    if there are enough descriptors."""

    config: Config
    current: Snapshot
    log: Log
    clock: Callable[[], datetime] = utc_now
    relay: Relay = field(default_factory=lambda: Relay(make_buffer))
    gate: Gate = field(default_factory=Gate)
    resolver: Resolver = field(default_factory=Resolver)
    registry: Registry = field(default_factory=Registry)
    metrics: Metrics = field(default_factory=Metrics)
    announced: Announced = field(default_factory=Announced)
    callers: PlaintextCallers = field(default_factory=PlaintextCallers)
    sharing: int = 1
    draining: bool = False
    alarms: InitVar[AlarmLog | None] = None
    alarm_log: AlarmLog = field(init=False)
    altered: Recurrence[tuple[str, str, str]] = field(default_factory=Recurrence)
    neighbours: Recurrence[tuple[str, str]] = field(default_factory=Recurrence)
    returns: Recurrence[str] = field(default_factory=Recurrence)
    places_of_peers: Alternation = field(default_factory=Alternation)
    room: Room = field(init=False)
    places: int = field(init=False)
    _decisions: dict[tuple[Caller, str, str], Decision] = field(default_factory=dict)
    _decided_by: tuple[Mesh, date] | None = None

    def __post_init__(self, alarms: AlarmLog | None) -> None:
        self.alarm_log = alarms or AlarmLog(self.log, self.clock)
        capacity = process.capacity(self.config.limits.connections, process.descriptor_limit() // self.sharing)
        self.room, self.places = Room(capacity.strangers), capacity.connections

    def admit(self, live: Live, *, proved: bool = True) -> None:
        """Gives a connection a place: its peer was judged, or it is our own app's. It is no stranger any more. ``proved``:
        its peer has proved an identity. Raises :class:`~sidecar.identity.reasons.Refused` if all places are taken."""
        self.registry.take_place(live, self.places, proved=proved)
        if live.stranger is not None:
            if proved:
                self.gate.prove(live.stranger.address)
            self.room.leave(live.stranger)

    def protocols(self, port: str) -> list[str]:
        """What is offered to a peer, or accepted of it, for this port: the preferred one first."""
        return [prefix + port for prefix in (ALPN_PREFIXES if self.config.keep else ALPN_PREFIXES[1:])]

    def decide(self, source: Caller, service: str, port: str) -> Decision:
        """What the policy in force says. An answer is kept until the policy or the day (UTC) is another one."""
        by = self.current.mesh, self.clock().date()
        if self._decided_by is None or self._decided_by[0] is not by[0] or self._decided_by[1] != by[1]:
            self._decided_by = by
            self._decisions.clear()
        key = source, service, port
        if (decision := self._decisions.get(key)) is None:
            if len(self._decisions) >= MAX_DECISIONS:
                self._decisions.clear()
            decision = self._decisions[key] = decide(by[0], source, service, port, self.clock())
        return decision

    def time(self) -> float:
        """Seconds on the monotonic clock, for durations."""
        return trio.current_time()

    def recheck(self, admission: Judged) -> Reason | None:
        """The reason to cut a connection that was let in before; None if trust and policy still allow it."""
        if isinstance(admission, BareAdmission):
            if not admission.entry.takes_plaintext(self.clock()):
                return Reason.POLICY_CHANGED
        elif (changed := self.current.check_trust(admission)) is not None:
            return changed
        elif admission.peer.id.person is not None and self.clock() >= admission.peer.not_after:
            return Reason.EXPIRED  # a service renews its certificate; a person's pass ends
        if not self.decide(admission.source, admission.service, admission.port).allowed:
            return Reason.POLICY_CHANGED
        return None
