"""What the connections of one sidecar share: its identity and policy of the moment, its relay, its log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

import trio

from sidecar.config.sidecar_yaml import Config
from sidecar.host.clock import utc_now
from sidecar.identity.judge import revoked
from sidecar.identity.reasons import Reason
from sidecar.identity.spiffe import SpiffeId
from sidecar.observe.logs import Log
from sidecar.observe.metrics import Metrics
from sidecar.policy.decide import decide
from sidecar.policy.mesh import Mesh
from sidecar.proxy.live import Admission, Registry
from sidecar.relay.relay import Relay
from sidecar.transport.dial import Resolver
from sidecar.transport.gate import Gate
from sidecar.transport.tls import Context, make_buffer


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a reload replaces, all of it at once: who may talk to whom, and who we are."""

    id: SpiffeId
    mesh: Mesh
    context: Context

    def distrust(self, admission: Admission) -> Reason | None:
        """Why the peer of a verified connection is not believed any more; None if it still is."""
        if admission.anchor not in self.context.anchors:
            return Reason.TRUST_CHANGED
        if revoked(admission.peer, admission.path, self.context.params.revocations) is not None:
            return Reason.REVOKED
        return None

    def objection(self, admission: Admission, now: datetime) -> Reason | None:
        """Why a connection that was let in may not go on; None if it may."""
        if (changed := self.distrust(admission)) is not None:
            return changed
        if not decide(self.mesh, admission.source, admission.service, admission.port, now).allowed:
            return Reason.POLICY_CHANGED
        return None


@dataclass(slots=True)
class Node:
    """One sidecar. Several may live in one process, each with its own identity, and share a relay."""

    config: Config
    current: Snapshot
    log: Log
    clock: Callable[[], datetime] = utc_now
    relay: Relay = field(default_factory=lambda: Relay(make_buffer))
    gate: Gate = field(default_factory=Gate)
    resolver: Resolver = field(default_factory=Resolver)
    registry: Registry = field(default_factory=Registry)
    metrics: Metrics = field(default_factory=Metrics)

    def time(self) -> float:
        """Seconds on the clock that durations are measured with."""
        return trio.current_time()

    def objection(self, admission: Admission) -> Reason | None:
        """What is in force now says of a connection that was let in before."""
        return self.current.objection(admission, self.clock())
