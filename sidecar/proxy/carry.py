"""What both directions do once a connection is let in: relay its bytes, record how it ended, close both sides as it says."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from sidecar.config.wiring import Inbound, Outbound
from sidecar.identity.reasons import Reason
from sidecar.observe.record import ConnectionRecord
from sidecar.proxy.node import Node
from sidecar.relay.duplex import Duplex, How
from sidecar.transport import sockets
from sidecar.transport.tls import TlsChannel

UPLOAD_SECONDS = 30.0
"""How long a peer may go on sending to an app that has answered and closed early, before its connection is closed."""


async def carry(
    node: Node,
    options: Inbound | Outbound,
    channel: TlsChannel,
    net: socket.socket,
    app: socket.socket,
    record: ConnectionRecord,
    words: Mapping[How, Reason],
) -> None:
    """Carries a connection to its end, and closes both sockets; ``words`` are this direction's names of the endings."""
    duplex = Duplex(channel, node.relay.buffers, tolerate_missing_close_notify=options.tolerate_missing_close_notify)
    try:
        outcome = await node.relay.carry(duplex, net, app, idle_timeout=options.idle_timeout, max_age=options.max_age)
    finally:
        record.bytes_to_app, record.bytes_from_app = duplex.to_app, duplex.from_app
    if isinstance(outcome, Reason):
        record.end(outcome)
        # Cut by us: neither side may take it for the clean end of a stream.
        sockets.hard_close(app)
        sockets.hard_close(net)
        return
    record.end(words[outcome.how], outcome.detail)
    record.peer_reason = outcome.alert
    await _close(app, outcome.reset_app, linger=False)
    await _close(net, outcome.reset_net, linger=outcome.how is not How.OK)


async def _close(sock: socket.socket, by_reset: bool, *, linger: bool) -> None:
    if by_reset:
        await sockets.reset(sock)
    elif linger:
        await sockets.linger(sock, UPLOAD_SECONDS)
    else:
        sock.close()
