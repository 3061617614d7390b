"""Inbound: a peer's mutual TLS in, plaintext out to our app. One connection, top to bottom."""

from __future__ import annotations

import socket

import trio

from sidecar.config.wiring import Inbound
from sidecar.identity.reasons import Reason, Refused
from sidecar.identity.spiffe import claims
from sidecar.observe.record import ConnectionRecord
from sidecar.policy.decide import decide
from sidecar.proxy import carry
from sidecar.proxy.live import Admission, Live
from sidecar.proxy.node import Node
from sidecar.relay.duplex import How
from sidecar.transport import dial, sockets
from sidecar.transport.handshake import shake_hands, tell
from sidecar.transport.tls import ALPN_PREFIX, TlsChannel

_WORDS = {
    How.OK: Reason.OK,
    How.APP_RESET: Reason.APP_RESET,
    How.PEER_RESET: Reason.CLIENT_RESET,
    How.PEER_ALERT: Reason.PEER_REFUSED,
    How.TRUNCATED: Reason.TRUNCATED,
}


async def serve(
    node: Node, port: Inbound, app: dial.Upstream, sock: socket.socket, record: ConnectionRecord, live: Live
) -> None:
    """Carries one accepted connection. Raises :class:`Refused`; then ``sock`` is still open, and all else is closed."""
    timeouts = node.config.timeouts

    # Who is it? The judgement of its certificate is part of the handshake.
    channel = node.current.context.server(ALPN_PREFIX + port.port, node.clock)
    try:
        with trio.fail_after(timeouts.handshake):
            await shake_hands(sock, channel, node.gate)
    except Refused as refusal:
        if channel.established:
            await _tell(node, sock, channel, refusal.reason)
        raise
    except trio.TooSlowError as error:
        detail = f"heard no complete handshake within {timeouts.handshake:g} s"
        raise Refused(Reason.HANDSHAKE_TIMEOUT, detail) from error
    finally:
        record.handshake_ms = (node.time() - record.started) * 1000
        record.connection_id = channel.connection_id
        if channel.svid is None and channel.leaf is not None:
            record.unverified = claims(channel.leaf)
    if channel.svid is None:
        raise Refused(Reason.NO_CERTIFICATE, "has no judged peer after the handshake")
    caller = channel.svid.id
    record.peer_id, record.tls_group, record.resumed = str(caller), channel.group, channel.resumed

    try:
        # May it? By the name of the port that both ends agreed on.
        if port.require_alpn and not channel.speaks_mesh:
            raise Refused(
                Reason.HANDSHAKE_FAILED, f"requires the ALPN protocol {ALPN_PREFIX}{port.port}; {caller} offers none"
            )
        # (By what is in force now, not what was at the handshake's start: a reload in between must not be missed.)
        live.claim = Admission(caller, node.config.service, port.port, channel.svid, channel.path, channel.anchor)
        decision = decide(node.current.mesh, caller, node.config.service, port.port, node.clock())
        record.rule, record.dry_run = decision.rule, decision.dry_run
        if not decision.allowed:
            raise Refused(Reason.POLICY_DENIED, f"does not let {caller} in: {decision.why}")
        if (changed := node.current.distrust(live.claim)) is not None:
            raise Refused(changed, f"does not let {caller} in: what it trusts changed meanwhile")
        record.decision = "allow"
        # Is our app there?
        app_socket, endpoint = await _reach(node, app)
    except Refused as refusal:
        await _tell(node, sock, channel, refusal.reason)
        raise

    # It hears yes, and bytes flow until their end.
    try:
        record.upstream = str(endpoint)
        await _tell(node, sock, channel, Reason.OK)
        with app.using(endpoint):
            await carry.carry(node, port, channel, sock, app_socket, record, _WORDS)
    finally:
        sockets.hard_close(app_socket)


async def _tell(node: Node, sock: socket.socket, channel: TlsChannel, reason: Reason) -> None:
    """Says yes or no, as long as a handshake may take to a peer that does not read."""
    with trio.move_on_after(node.config.timeouts.handshake):
        await tell(sock, channel, reason)


async def _reach(node: Node, app: dial.Upstream) -> tuple[socket.socket, dial.Endpoint]:
    """Connects to the first of our app's places that answers."""
    seconds = node.config.timeouts.connect
    refusal = Refused(Reason.CONNECT_FAILED, f"cannot find {app.what}: no answer within {seconds:g} s")
    endpoints: list[dial.Endpoint] = []
    with trio.move_on_after(seconds):
        endpoints = await app.endpoints()
    for endpoint in endpoints:
        try:
            sock = await dial.connect(endpoint, app.what, seconds, node.listening)
        except Refused as failure:
            refusal = failure
        else:
            endpoint.answered()
            return sock, endpoint
    raise refusal
