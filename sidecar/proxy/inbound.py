"""Inbound: a peer's mutual TLS in, plaintext out to our app. One connection, top to bottom."""

from __future__ import annotations

import socket

import trio

from sidecar.config.sidecar_yaml import Inbound
from sidecar.identity.reasons import Reason, Refused
from sidecar.observe.record import ConnectionRecord
from sidecar.policy.decide import decide
from sidecar.proxy import carry
from sidecar.proxy.carry import Ends
from sidecar.proxy.live import Admission, Live
from sidecar.proxy.node import Node
from sidecar.proxy.peer import establish
from sidecar.relay.duplex import How
from sidecar.transport import dial, sockets
from sidecar.transport.handshake import tell
from sidecar.transport.tls import ALPN_PREFIX

_WORDS = {
    How.OK: Reason.OK,
    How.APP_RESET: Reason.APP_RESET,
    How.PEER_RESET: Reason.CLIENT_RESET,
    How.PEER_ALERT: Reason.PEER_REFUSED,
    How.TRUNCATED: Reason.TRUNCATED,
}


async def serve(
    node: Node, port: Inbound, app: dial.Upstream, sock: socket.socket, record: ConnectionRecord, live: Live
) -> Ends:
    """Carries one accepted connection; its ends are the caller's to close. Raises :class:`Refused`; whatever it raises,
    ``sock`` is still open, and all else is closed."""
    timeouts = node.config.timeouts

    # Who is it? The judgement of its certificate is part of the handshake.
    channel = node.current.context.server(ALPN_PREFIX + port.port, node.clock)
    peer = await establish(node, sock, channel, record, record.started)
    caller = peer.id

    try:
        # May it? By the name of the port that both ends agreed on.
        if port.require_alpn and not channel.speaks_mesh:
            raise Refused(
                Reason.HANDSHAKE_FAILED, f"requires the ALPN protocol {ALPN_PREFIX}{port.port}; {caller} offers none"
            )
        # (By what is in force now, not what was at the handshake's start: a reload in between must not be missed.)
        live.admission = Admission(caller, node.config.service, port.port, peer.svid, peer.path, peer.anchor)
        decision = decide(node.current.mesh, caller, node.config.service, port.port, node.clock())
        record.rule, record.dry_run = decision.rule, decision.dry_run
        if not decision.allowed:
            raise Refused(Reason.POLICY_DENIED, f"does not let {caller} in: {decision.why}")
        if (changed := node.current.distrust(live.admission)) is not None:
            raise Refused(changed, f"does not let {caller} in: what it trusts changed meanwhile")
        record.decision = "allow"
        # Is our app there?
        app_socket, endpoint = await _reach(app, timeouts.connect)
    except Refused as refusal:
        await tell(sock, channel, refusal.reason, timeouts.handshake)
        raise

    # It hears yes, and bytes flow until their end.
    try:
        record.upstream = str(endpoint)
        await tell(sock, channel, Reason.OK, timeouts.handshake)
        with app.using(endpoint):
            return await carry.carry(node, port, channel, sock, app_socket, record, _WORDS)
    except BaseException:
        sockets.hard_close(app_socket)
        raise


async def _reach(app: dial.Upstream, seconds: float) -> tuple[socket.socket, dial.Endpoint]:
    """Connects to the first of our app's places that answers."""
    refusal = Refused(Reason.CONNECT_FAILED, f"cannot find {app.what}: no answer within {seconds:g} s")
    endpoints: list[dial.Endpoint] = []
    with trio.move_on_after(seconds):
        endpoints = await app.endpoints()
    for endpoint in endpoints:
        try:
            sock = await app.connect(endpoint, seconds)
        except Refused as failure:
            refusal = failure
        else:
            endpoint.answered()
            return sock, endpoint
    raise refusal
