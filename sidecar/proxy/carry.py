"""The part that both directions share after a connection is let in: relay, record the ending, close both sockets."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from sidecar.config.sidecar_yaml import MeshPort, Outbound
from sidecar.identity.reasons import Reason
from sidecar.observe.record import ConnectionRecord
from sidecar.proxy.live import Admission, Live
from sidecar.proxy.node import Node
from sidecar.relay.bare import BareChannel
from sidecar.relay.duplex import Duplex, How
from sidecar.relay.frames import FramedChannel
from sidecar.relay.strand import Carry, Steps
from sidecar.transport import sockets
from sidecar.transport.sockets import Closing
from sidecar.transport.tls import TlsChannel

UPLOAD_SECONDS = 30.0
"""How long a peer may still send after the app has answered and closed early. Then its connection is closed."""


@dataclass(frozen=True, slots=True)
class Ends:
    """The two open sockets of a connection that has ended, and how to close each. ``kept``: ``net`` is not to be closed, as
    its channel is ready for the next stream."""

    app: socket.socket
    app_closing: Closing
    net: socket.socket
    net_closing: Closing
    kept: bool = False

    def close(self) -> Steps[None]:
        """Closes both sockets, the app's first: a peer may still send for a while. If stopped, resets what is left."""
        try:
            yield from _close(self.app, self.app_closing)
            if not self.kept:
                yield from _close(self.net, self.net_closing)
        finally:
            sockets.hard_close(self.app)
            if not self.kept:
                sockets.hard_close(self.net)


def _close(sock: socket.socket, how: Closing) -> Steps[None]:
    if how is Closing.CLEAN:
        sock.close()
    elif how is Closing.CUT:
        sockets.hard_close(sock)
    elif how is Closing.LINGER:
        yield from sockets.lingering(sock, UPLOAD_SECONDS)
    else:
        yield partial(sockets.reset, sock)


def carry(
    node: Node,
    options: MeshPort | Outbound,
    channel: TlsChannel | FramedChannel | BareChannel,
    net: socket.socket,
    app: socket.socket,
    record: ConnectionRecord,
    live: Live,
    endings: Mapping[How, Reason],
    make_duplex: Callable[..., Duplex] = Duplex,
) -> Steps[Ends]:
    """Relays a connection that is let in until it ends, and records how. ``endings``: the reason word of each ending in this
    direction. ``make_duplex``: what carries it (:func:`sidecar.proxy.introduce.duplex_for`). Leaves both sockets open, for
    :meth:`Ends.close`."""
    frames = channel if isinstance(channel, FramedChannel) else None
    bare = isinstance(channel, BareChannel)  # its streams end with a FIN, as there is nothing else
    tolerant = bare or (options.tolerate_missing_close_notify and frames is None)
    duplex = make_duplex(channel, node.relay.buffers, tolerate_missing_close_notify=tolerant)
    traffic = node.metrics.let_in(record, node.time(), stream=frames is not None)
    # What the poller reports at once need not be tried. An app that calls has mostly spoken, all others answer.
    duplex.net_r = False
    duplex.app_r = record.direction == "outbound"
    traffic.begin(duplex)
    live.carried = duplex
    try:
        longest = _longest(node, options, live)
        outcome = yield Carry(duplex, net, app, options.idle_timeout, longest)
    finally:
        live.carried = None
        traffic.finish(duplex)
        record.bytes_to_app, record.bytes_from_app = duplex.to_app, duplex.from_app
    if isinstance(outcome, Reason):
        if outcome is Reason.MAX_AGE and longest < options.max_age:
            record.end(Reason.EXPIRED, f"cut: the pass of {record.peer_id} has ended, and is not renewed")
        else:
            record.end(outcome, _limit_reached(outcome, options))
        # Cut by this sidecar: neither side may mistake it for the clean end of a stream.
        return Ends(app, Closing.CUT, net, Closing.CUT)
    record.end(endings[outcome.how], outcome.detail)
    record.peer_reason, record.altered = outcome.alert, outcome.altered
    app_closing = Closing.RESET if outcome.reset_app else Closing.CLEAN
    net_closing = Closing.CLEAN if outcome.how is How.OK else Closing.LINGER
    kept = frames is not None and outcome.how is How.OK and frames.is_idle and not duplex.lost
    return Ends(app, app_closing, net, Closing.RESET if outcome.reset_net else net_closing, kept)


def _longest(node: Node, options: MeshPort | Outbound, live: Live) -> float:
    """How long a connection may be open, in seconds. That of a person ends with the pass. A service renews its certificate,
    and its connections outlive the one that they began with."""
    if not isinstance(live.admission, Admission) or live.admission.peer.id.person is None:
        return options.max_age
    return min(options.max_age, (live.admission.peer.not_after - node.clock()).total_seconds())


def _limit_reached(reason: Reason, options: MeshPort | Outbound) -> str | None:
    """Which limit of the file ended a connection, as a sentence; None if it was none of these."""
    if reason is Reason.IDLE_TIMEOUT and options.idle_timeout is not None:
        return f"no byte came for {options.idle_timeout:g} s (idle_timeout)"
    return f"it was open for {options.max_age:g} s (max_age)" if reason is Reason.MAX_AGE else None
