"""Which calls of this sidecar are refused soon, since the last rule that allows them runs out: for log, status and metric.

How it works. Only calls that were made count: the edges with a connection that was let in. They are looked at once a minute
while a rule ends within a week, a call at a time, so that a policy of thousands of rules keeps nobody waiting. A line is
logged when the calls change.
"""

from __future__ import annotations

from collections.abc import Iterator

import trio

from sidecar.host.follow import ReportOnce
from sidecar.identity.spiffe import SpiffeId, is_segment
from sidecar.observe.traffic import OTHERS, Edge
from sidecar.observe.traffic import PLAINTEXT as PLAINTEXT_PEER
from sidecar.policy.ending import Ending, ending_rules, endings
from sidecar.policy.names import PLAINTEXT, Caller, Target
from sidecar.proxy.node import Node

LOOK_SECONDS = 60.0
MAX_SHOWN = 8


class EndingWatch:
    """Of one sidecar. ``calls``: those that are refused soon, as they were found last."""

    def __init__(self, node: Node) -> None:
        self.calls: tuple[Ending, ...] = ()
        self._node = node
        self._told = ReportOnce[str](self._tell, exact=True)

    async def run(self) -> None:
        """Looks again and again, until cancelled."""
        while True:
            await self.look()
            await trio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Looks once."""
        node, found = self._node, list[Ending]()
        mesh, now = node.current.mesh, node.clock()
        if ending_rules(mesh, now):
            seen = calls_of(list(node.metrics.edges), mesh.identity(node.config.service))
            opened = [call for call, edge in seen if (traffic := node.metrics.edges.get(edge)) and traffic.opened]
            for one in endings(mesh, dict.fromkeys(opened), now):
                await trio.lowlevel.checkpoint()
                if one is not None:
                    found.append(one)
        self.calls = tuple(sorted(found, key=lambda one: (one.until, str(one))))
        self._told.report("ending", told(self.calls))

    def _tell(self, _topic: str, message: str) -> None:
        self._node.log.warning("rule_ends_soon", service=self._node.config.service, message=message)


def calls_of(edges: list[Edge], own: SpiffeId) -> Iterator[tuple[tuple[Caller, Target], Edge]]:
    """The call that each edge stands for. Edges that do not say which are left out."""
    for edge in edges:
        if edge.direction == "outbound":
            service, _, port = edge.port.partition(":")
            if is_segment(service) and is_segment(port):
                yield (own, Target(service, port)), edge
        elif edge.peer == PLAINTEXT_PEER:
            yield (PLAINTEXT, Target(str(own.service), edge.port)), edge
        elif edge.peer != OTHERS and all(map(is_segment, segments := tuple(edge.peer.split("/")))):
            yield (SpiffeId(own.trust_domain, segments), Target(str(own.service), edge.port)), edge


def told(calls: tuple[Ending, ...]) -> str | None:
    """The line of the log; None if nothing ends."""
    if not calls:
        return None
    shown = ", ".join(f"{one} (rule '{one.rule}', until {one.until})" for one in calls[:MAX_SHOWN])
    more = f" and {len(calls) - MAX_SHOWN} more" if len(calls) > MAX_SHOWN else ""
    return f"refused soon, when the last rule that allows it runs out: {shown}{more}; `sidecar policy learn` adds rules"
