"""Who calls whom, and how much: what each edge of the mesh has carried, as this sidecar saw it. Pure.

How this works. An *edge* is a caller, a callee's port, and the rule that decided. A connection is counted as opened when it
is let in, and as ended with its record; one that was never let in is counted as refused. So what was opened and has not
ended is live. Bytes count while they flow: a pool's connection may live for days.

Bounded, whatever peers do: only names that a verified certificate or our own configuration has make an edge. Beyond
:data:`MAX_EDGES`, further peers share one edge for each port, as :data:`OTHERS`.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple, Protocol

from sidecar.identity.reasons import Reason

MAX_EDGES = 256
OTHERS = "others"
"""A service of this name is counted with them."""

PLAINTEXT = "plaintext"
"""As a peer: every caller without TLS. No service has this name."""


class Edge(NamedTuple):
    """``peer``: the service of the verified identity (inbound; the path of one that is no service's), or the target's
    (outbound); empty if it is unknown. ``port``: our own port's name, or ``service:port``. ``rule``: the one that decided,
    or empty."""

    direction: str
    peer: str
    port: str
    rule: str


class Carried(Protocol):
    """What a connection carries: :class:`sidecar.relay.duplex.Duplex`."""

    to_app: int
    from_app: int


class Traffic:
    """``opened``: connections that were let in, and ``ended`` those of them that are over, by their outcome. ``refused``:
    those that were never let in. ``streams``: of ``opened``, those on channels that are kept, and ``reused`` those that
    needed no handshake. ``opening``: seconds that it took to let them in, together."""

    __slots__ = ("_from_app", "_present", "_to_app", "ended", "opened", "opening", "refused", "reused", "streams")

    def __init__(self) -> None:
        self.opened = 0
        self.opening = 0.0
        self.streams = 0
        self.reused = 0
        self.ended: Counter[Reason] = Counter()
        self.refused: Counter[Reason] = Counter()
        self._to_app = 0
        self._from_app = 0
        self._present: set[Carried] = set()

    @property
    def live(self) -> int:
        """Connections that were let in and have not ended."""
        return self.opened - self.ended.total()

    @property
    def to_app(self) -> int:
        """Bytes to the app until now, those of live connections too."""
        return self._to_app + sum(one.to_app for one in self._present)

    @property
    def from_app(self) -> int:
        """Bytes from the app until now, those of live connections too."""
        return self._from_app + sum(one.from_app for one in self._present)

    def begin(self, carried: Carried) -> None:
        """A connection carries bytes from now on, until :meth:`finish`."""
        self._present.add(carried)

    def finish(self, carried: Carried) -> None:
        """A connection carries no more bytes."""
        self._present.remove(carried)
        self._to_app += carried.to_app
        self._from_app += carried.from_app


class Edges(dict[Edge, Traffic]):
    """The traffic by edge. ``edges[edge]`` makes an entry if there is none, within the bound."""

    def __missing__(self, edge: Edge) -> Traffic:
        if len(self) >= MAX_EDGES:
            edge = Edge(edge.direction, OTHERS, edge.port, "")
        return self.setdefault(edge, Traffic())
