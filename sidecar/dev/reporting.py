"""What `sidecar dev --dashboard` shows: of each sidecar of this process the report that it would send to a CA. Pure.

The document is what a CA shows of its sidecars (:mod:`certs.service.admin`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any

from sidecar.config.sidecar_yaml import Config, Inbound, Outbound
from sidecar.identity.spiffe import Svid
from sidecar.lifecycle.report import report_of
from sidecar.lifecycle.status import CurrentState, describe
from sidecar.observe.metrics import Metrics
from sidecar.policy.decide import callers
from sidecar.policy.mesh import Mesh


class Callers:
    """:func:`sidecar.policy.decide.callers`, remembered for one policy and day: of many rules it takes its time, and its
    answer is the same until then."""

    def __init__(self) -> None:
        self._of: tuple[str, date] | None = None
        self._known: dict[tuple[str, str], list[str]] = {}

    def __call__(self, mesh: Mesh, service: str, port: str, now: datetime) -> list[str]:
        if self._of != (mesh.version, now.date()):
            self._of, self._known = (mesh.version, now.date()), {}
        if (service, port) not in self._known:
            self._known[service, port] = callers(mesh, service, port, now)
        return self._known[service, port]


@dataclass(frozen=True, slots=True)
class Reporting:
    """One sidecar at one moment. ``planned``: its listeners. ``renews_at``: when it has another certificate. ``waiting`` and
    ``reload_refused``: of :class:`~sidecar.lifecycle.status.CurrentState`."""

    config: Config
    mesh: Mesh
    svid: Svid
    renews_at: datetime
    planned: Sequence[Inbound | Outbound]
    metrics: Metrics
    strangers: int
    idle_channels: int
    callers: Callers
    waiting: Sequence[str] = ()
    reload_refused: Sequence[str] = ()

    def entry(self, now: datetime, started_at: datetime) -> dict[str, Any]:
        config = replace(
            self.config,
            inbound=tuple(one for one in self.planned if isinstance(one, Inbound)),
            outbound=tuple({one.shown: one for one in self.planned if isinstance(one, Outbound)}.values()),
        )
        state = CurrentState(
            config=config,
            mesh=self.mesh,
            svid=self.svid,
            started_at=started_at,
            live=(),
            unwell=[f"its certificate ended at {self.svid.not_after:%FT%TZ}"] if now > self.svid.not_after else [],
            trust={"renews_at": f"{self.renews_at:%FT%TZ}"},
            draining=False,
            strangers=self.strangers,
            max_strangers=0,
            log_lost=0,
            idle_channels=self.idle_channels,
            waiting=self.waiting,
            reload_refused=self.reload_refused,
        )
        at = f"{now:%FT%TZ}"
        return {
            "identity": str(self.svid.id),
            "instance": "0" * 32,
            "address": "127.0.0.1",
            "serial": f"{self.svid.serial:x}",
            "received": now.isoformat(),  # with its fraction: rates are made of it
            "fresh": True,
            "report": report_of(describe(now, state, self.metrics, self.callers), at),
        }


def document(
    mesh: Mesh,
    sidecars: Iterable[Reporting],
    alarms: Sequence[Mapping[str, Any]],
    now: datetime,
    started_at: datetime,
    issuing_until: datetime,
) -> dict[str, Any]:
    """The whole mesh, now."""
    return {
        "now": f"{now:%FT%TZ}",
        "ca": {
            "trust_domain": mesh.trust_domain,
            "services": list(mesh.services),
            "issuing_until": f"{issuing_until:%FT%TZ}",
            "policy": mesh.version,
        },
        "alarms": list(alarms),
        "reports": [one.entry(now, started_at) for one in sidecars],
    }
