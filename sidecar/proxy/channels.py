"""Kept channels to peers: which idle one carries the next connection of our app, and how long one is kept.

How it works. After a stream has ended cleanly, the caller puts its channel here (:meth:`Channels.put`), and takes it out for
the next connection to the same endpoint (:meth:`Channels.take`): the one that was used last, so that those too many grow old
and go. So as many are kept as were in use at once lately, within ``keep`` of the configuration. A channel is taken only if

* it is silent: an unread byte, a FIN or an error means that the callee is done with it,
* our certificate is the one that it was made with, it is younger than the route's ``max_age``, and no direction has used up
  the records that one key may encrypt (:data:`MAX_RECORDS`),
* the policy, the roots and the revocations in force now accept its peer, and neither certificate has ended:
  :meth:`PeerChannel.judge`, which the callee asks as well, for each stream.

While it is idle it is a connection of the registry, with an admission: what a change of policy or trust refuses is ended at
once. If our app needs the place, it goes. Each second, those go that are idle for too long, that their peer has ended, or
whose address the target has no longer.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from datetime import datetime

import trio

from sidecar.config.sidecar_yaml import MeshPort, Outbound
from sidecar.identity.reasons import Reason, Refused
from sidecar.observe.record import ConnectionRecord
from sidecar.proxy.live import Admission, Live
from sidecar.proxy.node import Node, Snapshot
from sidecar.proxy.peer import VerifiedPeer
from sidecar.relay.frames import FramedChannel, Open
from sidecar.transport import dial, sockets
from sidecar.transport.streams import retire
from sidecar.transport.tls import TlsChannel

CALLER_IDLE_SECONDS = 15.0
CALLEE_IDLE_SECONDS = 60.0
"""How long a channel is kept without a stream. Longer at the callee, so that the caller rarely takes one that has just ended
(RFC 9112 9.5 has the same race)."""

LOOK_SECONDS = 1.0

MAX_RECORDS = 2**24
"""TLS records that one key encrypts before its channel is retired: RFC 8446 5.5 allows AES-GCM 2**24.5 full ones. A stream
that runs on beyond that is not cut: it would be after 256 GiB, and the binding can send no KeyUpdate."""


@dataclass(slots=True, eq=False)
class PeerChannel:
    """A channel to a peer that was judged: streams follow one another on it if it has ``frames``, and otherwise it is one
    connection. ``id``: the same at both ends. ``endpoint``: at the caller. ``own``: our certificate that it was made with.
    ``snapshot`` has judged the peer last, and that holds until ``good_until``. ``opening``: at the callee, the present
    stream's."""

    sock: socket.socket
    channel: TlsChannel
    frames: FramedChannel | None
    peer: VerifiedPeer
    id: str
    made_at: float
    own: tuple[bytes, datetime] | None
    endpoint: dial.Endpoint | None = None
    snapshot: Snapshot | None = None
    good_until: datetime | None = None
    idle_since: float = 0.0
    opening: Open | None = None
    peer_id: str = field(init=False)
    group: str | None = field(init=False)

    def __post_init__(self) -> None:
        self.peer_id, self.group = str(self.peer.id), self.channel.group

    @property
    def carrier(self) -> TlsChannel | FramedChannel:
        """What carries the present stream."""
        return self.channel if self.frames is None else self.frames

    def describe(self, record: ConnectionRecord) -> None:
        """Sets the record's fields about the peer and its channel."""
        record.peer_id, record.tls_group, record.channel_id = self.peer_id, self.group, self.id
        record.connection_id = self.id
        if self.frames is not None:
            record.connection_id, record.reused = f"{self.id}-{self.frames.number}", self.frames.number > 1

    def end(self) -> None:
        """Ends it at once, with a reset. It can be ended already."""
        sockets.hard_close(self.sock)
        self.channel.free()

    def judge(self, node: Node, admission: Admission, expected: str | None = None) -> None:
        """Judges the peer for one more stream by what is in force now. Raises :class:`Refused`."""
        now = node.clock()
        if self.snapshot is not node.current or self.good_until is None or now >= self.good_until:
            pinned = None if expected is None else node.current.mesh.identity(expected)
            self.good_until = node.current.judge_again(admission, pinned, now)
            self.snapshot = node.current

    def is_trusted(self, node: Node, admission: Admission, expected: str | None = None) -> bool:
        """Whether :meth:`judge` passes. If not, the channel ends: the handshake of a new one says why, or passes with the
        certificates of now."""
        try:
            self.judge(node, admission, expected)
        except Refused:
            return False
        return True

    def is_retired(self, node: Node, options: MeshPort | Outbound) -> bool:
        """Whether no further stream is to begin on it, although its peer may be as good as ever."""
        own, frames = node.current.context.own, self.frames
        assert own is not None  # noqa: S101 (a sidecar has a certificate)
        assert frames is not None  # noqa: S101 (see the class)
        return (
            own != self.own
            or node.clock() >= own[1]
            or node.time() - self.made_at >= options.max_age
            or max(frames.sent, frames.received) >= MAX_RECORDS
        )


class Channels:
    """The idle channels of one sidecar to its peers."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._idle: dict[dial.Endpoint, list[tuple[PeerChannel, Live]]] = {}
        self._count = 0

    def take(self, route: Outbound, endpoint: dial.Endpoint) -> PeerChannel | None:
        """An idle channel to this endpoint that may carry a stream of this route now."""
        waiting = self._idle.get(endpoint)
        while waiting:
            kept, live = waiting[-1]
            self._forget(kept, live)
            if self._may_go_on(route, kept, live):
                return kept
            retire(kept.sock, kept.channel)
        return None

    def _may_go_on(self, route: Outbound, kept: PeerChannel, live: Live) -> bool:
        if kept.is_retired(self._node, route) or not _is_silent(kept.sock):
            return False
        assert isinstance(live.admission, Admission)  # noqa: S101 (`put` sets it)
        return kept.is_trusted(self._node, live.admission, route.service)

    def put(self, kept: PeerChannel, admission: Admission) -> None:
        """Takes a channel whose stream has ended; ends it if it cannot be kept."""
        node = self._node
        live = Live(lambda: self._drop(kept, live))
        if self._count >= node.config.keep:
            retire(kept.sock, kept.channel)
            return
        try:
            node.registry.take_place(live, node.places)
        except Refused:
            retire(kept.sock, kept.channel)
            return
        live.admission = admission
        kept.idle_since = node.time()
        assert kept.endpoint is not None  # noqa: S101 (a caller's channel has one)
        self._idle.setdefault(kept.endpoint, []).append((kept, live))
        self._count += 1
        node.registry.enter(live)
        node.registry.set_idle(live, idle=True)
        if node.recheck(admission) is not None:  # a change while the stream ran
            live.cut(Reason.POLICY_CHANGED)

    def _forget(self, kept: PeerChannel, live: Live) -> None:
        assert kept.endpoint is not None  # noqa: S101 (see `put`)
        waiting = self._idle[kept.endpoint]
        waiting.remove((kept, live))
        if not waiting:
            del self._idle[kept.endpoint]
        self._count -= 1
        self._node.registry.leave(live)

    def _drop(self, kept: PeerChannel, live: Live) -> None:
        self._forget(kept, live)
        retire(kept.sock, kept.channel)

    async def run(self) -> None:
        """Ends channels that are of no use any more, until cancelled; then all."""
        try:
            while True:
                await trio.sleep(LOOK_SECONDS)
                before = self._node.time() - CALLER_IDLE_SECONDS
                for endpoint, waiting in list(self._idle.items()):
                    for kept, live in list(waiting):
                        if kept.idle_since <= before or not _is_silent(kept.sock) or endpoint.gone:
                            live.cut(Reason.IDLE_TIMEOUT)
                    await trio.lowlevel.checkpoint()
        finally:
            for waiting in list(self._idle.values()):
                for kept, live in list(waiting):
                    self._drop(kept, live)


def _is_silent(sock: socket.socket) -> bool:
    """Whether an idle channel is as it should be: open, and nothing has come."""
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
