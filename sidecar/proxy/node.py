"""What the connections of one sidecar share: the current snapshot of identity and policy, relay, log, metrics, room."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

import trio

from sidecar.config.sidecar_yaml import Config
from sidecar.host import process
from sidecar.host.clock import utc_now
from sidecar.identity.judge import revoked
from sidecar.identity.reasons import Reason
from sidecar.identity.spiffe import SpiffeId
from sidecar.observe.logs import Log
from sidecar.observe.metrics import Metrics
from sidecar.policy.decide import decide
from sidecar.policy.mesh import Mesh
from sidecar.proxy.live import Admission, Live, Registry
from sidecar.relay.relay import Relay
from sidecar.transport.accepting import Room
from sidecar.transport.dial import Resolver
from sidecar.transport.gate import Gate
from sidecar.transport.tls import Context
from sidecar.transport.tls_data import make_buffer


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

    def recheck(self, admission: Admission, now: datetime) -> Reason | None:
        """The reason to cut a connection that was let in before; None if trust and policy still allow it."""
        if (changed := self.check_trust(admission)) is not None:
            return changed
        if not decide(self.mesh, admission.source, admission.service, admission.port, now).allowed:
            return Reason.POLICY_CHANGED
        return None


@dataclass(slots=True)
class Node:
    """One sidecar. Several can run in one process, each with its own identity; they share a relay and a gate.

    ``sharing``: how many sidecars share the process's descriptors. ``room``: for strangers. ``places``: for connections of
    judged peers and of our own app, ``limits.connections`` of them if there are enough descriptors."""

    config: Config
    current: Snapshot
    log: Log
    clock: Callable[[], datetime] = utc_now
    relay: Relay = field(default_factory=lambda: Relay(make_buffer))
    gate: Gate = field(default_factory=Gate)
    resolver: Resolver = field(default_factory=Resolver)
    registry: Registry = field(default_factory=Registry)
    metrics: Metrics = field(default_factory=Metrics)
    sharing: int = 1
    draining: bool = False
    room: Room = field(init=False)
    places: int = field(init=False)

    def __post_init__(self) -> None:
        capacity = process.capacity(self.config.limits.connections, process.descriptor_limit() // self.sharing)
        self.room, self.places = Room(capacity.strangers), capacity.connections

    def admit(self, live: Live) -> None:
        """Gives a connection a place: its peer was judged, or it is our own app's. It is no stranger any more. Raises
        :class:`~sidecar.identity.reasons.Refused` if all places are taken."""
        self.registry.take_place(live, self.places)
        if live.stranger is not None:
            self.gate.prove(live.stranger.address)
            self.room.leave(live.stranger)

    def time(self) -> float:
        """Seconds on the monotonic clock, for durations."""
        return trio.current_time()

    def recheck(self, admission: Admission) -> Reason | None:
        """:meth:`Snapshot.recheck` of the current snapshot, at the current time."""
        return self.current.recheck(admission, self.clock())
