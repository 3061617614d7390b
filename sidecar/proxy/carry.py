"""The part that both directions share after a connection is let in: relay, record the ending, close both sockets."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass

from sidecar.config.sidecar_yaml import Inbound, Outbound
from sidecar.identity.reasons import Reason
from sidecar.observe.record import ConnectionRecord
from sidecar.proxy.live import Live
from sidecar.proxy.node import Node
from sidecar.relay.duplex import Duplex, How
from sidecar.transport import sockets
from sidecar.transport.sockets import Closing
from sidecar.transport.tls import TlsChannel

UPLOAD_SECONDS = 30.0
"""How long a peer may still send after the app has answered and closed early. Then its connection is closed."""


@dataclass(frozen=True, slots=True)
class Ends:
    """The two open sockets of a connection that has ended, and how to close each."""

    app: socket.socket
    app_closing: Closing
    net: socket.socket
    net_closing: Closing

    async def close(self) -> None:
        """Closes both sockets, the app's first: a peer may still send for a while. If cancelled, resets what is left."""
        try:
            await sockets.close(self.app, self.app_closing, UPLOAD_SECONDS)
            await sockets.close(self.net, self.net_closing, UPLOAD_SECONDS)
        finally:
            sockets.hard_close(self.app)
            sockets.hard_close(self.net)


async def carry(
    node: Node,
    options: Inbound | Outbound,
    channel: TlsChannel,
    net: socket.socket,
    app: socket.socket,
    record: ConnectionRecord,
    live: Live,
    endings: Mapping[How, Reason],
) -> Ends:
    """Relays a connection until it ends, and records how. ``endings``: the reason word of each ending in this direction.
    Leaves both sockets open, for :meth:`Ends.close`."""
    duplex = Duplex(channel, node.relay.buffers, tolerate_missing_close_notify=options.tolerate_missing_close_notify)
    live.carried = duplex
    try:
        outcome = await node.relay.carry(duplex, net, app, idle_timeout=options.idle_timeout, max_age=options.max_age)
    finally:
        live.carried = None
        record.bytes_to_app, record.bytes_from_app = duplex.to_app, duplex.from_app
    if isinstance(outcome, Reason):
        record.end(outcome)
        # Cut by this sidecar: neither side may mistake it for the clean end of a stream.
        return Ends(app, Closing.CUT, net, Closing.CUT)
    record.end(endings[outcome.how], outcome.detail)
    record.peer_reason = outcome.alert
    app_closing = Closing.RESET if outcome.reset_app else Closing.CLEAN
    net_closing = Closing.CLEAN if outcome.how is How.OK else Closing.LINGER
    return Ends(app, app_closing, net, Closing.RESET if outcome.reset_net else net_closing)
