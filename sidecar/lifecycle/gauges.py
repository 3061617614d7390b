"""The state of a running sidecar in numbers, for ``/metrics``. It is asked every few seconds, so it looks at nothing that
grows with the policy but the rules themselves."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day

from cryptography.hazmat.backends.openssl import backend

from sidecar import __version__
from sidecar.agent.agent import Agent
from sidecar.lifecycle.ending_watch import EndingWatch
from sidecar.lifecycle.reload import Reloader
from sidecar.observe.catalogue import Numbers
from sidecar.policy.mesh import Mesh
from sidecar.proxy.node import Node
from sidecar.proxy.server import Server


class Gauges:
    """Of one sidecar. ``unwell``: why no new connection can succeed; ``draining``: whether it drains."""

    def __init__(
        self,
        server: Server,
        reloader: Reloader,
        agent: Agent | None,
        endings: EndingWatch,
        unwell: Callable[[], list[str]],
        draining: Callable[[], bool],
    ) -> None:
        self._server, self._reloader, self._agent = server, reloader, agent
        self._endings = endings
        self._unwell, self._draining = unwell, draining
        self._started_at = server.node.clock().timestamp()

    def now(self) -> Numbers:
        node, mesh = self._server.node, self._server.node.current.mesh
        return Numbers(
            release=__version__,
            python=sys.version.split()[0],
            openssl=backend.openssl_version_text().split()[1],
            started_at=self._started_at,
            cpu_seconds=time.process_time(),
            healthy=not self._unwell() and not self._draining(),
            draining=self._draining(),
            waiting=len(self._server.waiting.reasons),
            strangers=len(node.room.strangers),
            idle_channels=node.registry.idle,
            log_lost=node.log.lost,
            alarms=node.alarm_log.counts,
            policy=mesh.version,
            reload_refused=len(self._reloader.refused),
            certificate_end=self._reloader.loaded.svid.not_after.timestamp(),
            allow_all=allow_all(mesh, node.clock()),
            ending=len(self._endings.calls),
            plaintext=plaintext_callers(node),
            permissive={one.port: _end_of(one.until) for one in node.config.inbound if one.until is not None},
            member=None if self._agent is None else self._agent.numbers(),
        )


def allow_all(mesh: Mesh, now: datetime) -> dict[str, float]:
    """When each enforced rule ends that allows every service every port now, in seconds since 1970, by its name."""
    return {
        rule.name: math.inf if rule.until is None else _end_of(rule.until)
        for rule in mesh.rules
        if rule.action == "allow"
        and rule.mode == "enforce"
        and "*" in rule.from_
        and "*" in rule.to
        and not rule.ran_out(now)
    }


def plaintext_callers(node: Node) -> dict[str, int]:
    """How many callers of each permissive port were let in without TLS lately."""
    ports = [port.port for port in node.config.inbound if port.until is not None]
    return {port: len(node.callers.recent(port, node.clock())) for port in ports}


def _end_of(day: date) -> float:
    return datetime.combine(day + timedelta(days=1), time_of_day(), UTC).timestamp()
