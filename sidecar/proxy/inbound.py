"""Inbound: one connection from a peer (mutual TLS) to our app (plaintext), from handshake to end."""

from __future__ import annotations

import socket

from sidecar.config.sidecar_yaml import Inbound
from sidecar.identity.reasons import Reason, Refused
from sidecar.observe.record import ConnectionRecord
from sidecar.policy.decide import decide, remedy
from sidecar.proxy import carry
from sidecar.proxy.carry import Ends
from sidecar.proxy.live import Admission, Live
from sidecar.proxy.node import Node
from sidecar.proxy.peer import establish
from sidecar.relay.duplex import How
from sidecar.transport import dial, sockets
from sidecar.transport.handshake import send_verdict
from sidecar.transport.tls import ALPN_PREFIX

_ENDINGS = {
    How.OK: Reason.OK,
    How.APP_RESET: Reason.APP_RESET,
    How.PEER_RESET: Reason.CLIENT_RESET,
    How.PEER_ALERT: Reason.PEER_REFUSED,
    How.TRUNCATED: Reason.TRUNCATED,
}


async def serve(
    node: Node, port: Inbound, app: dial.Upstream, sock: socket.socket, record: ConnectionRecord, live: Live
) -> Ends:
    """Serves one accepted connection until it ends. Returns both sockets, open: the caller closes them. Raises
    :class:`Refused`; after any exception ``sock`` is still open, and everything else is closed."""
    timeouts = node.config.timeouts

    # Authentication: the handshake judges the peer's certificate.
    channel = node.current.context.server(ALPN_PREFIX + port.port, node.clock)
    try:
        peer = await establish(node, sock, channel, record, record.started, live.stranger)
        caller = peer.id

        try:
            # A place, as it is no stranger any more. Then authorization, for the port name that ALPN has negotiated.
            node.admit(live)
            if port.require_alpn and not channel.speaks_mesh:
                required = f"{ALPN_PREFIX}{port.port}"
                raise Refused(Reason.HANDSHAKE_FAILED, f"requires the ALPN protocol {required}; {caller} offers none")
            # Uses the snapshot in force now, not the handshake's: a reload may have come in between.
            live.admission = Admission(caller, node.config.service, port.port, peer.svid, peer.path, peer.anchor)
            decision = decide(node.current.mesh, caller, node.config.service, port.port, node.clock())
            record.rule, record.dry_run = decision.rule, decision.dry_run
            if not decision.allowed:
                why = decision.why + remedy(node.current.mesh, caller, decision)
                raise Refused(Reason.POLICY_DENIED, f"does not let {caller} in: {why}")
            if (changed := node.current.check_trust(live.admission)) is not None:
                raise Refused(changed, f"does not let {caller} in: roots or revocations changed during the handshake")
            if node.draining and node.config.has_replicas:
                raise Refused(Reason.DRAINED, f"is stopping: {caller} is to call another one")
            record.decision = "allow"
            # Connect to the app before the peer gets its verdict.
            app_socket, endpoint = await _connect(app, timeouts.connect)
        except Refused as refusal:
            await send_verdict(sock, channel, refusal.reason, timeouts.handshake)
            raise

        # Send the verdict, then relay until the end.
        try:
            record.upstream = str(endpoint)
            await send_verdict(sock, channel, Reason.OK, timeouts.handshake)
            with app.using(endpoint):
                return await carry.carry(node, port, channel, sock, app_socket, record, live, _ENDINGS)
        except BaseException:
            sockets.hard_close(app_socket)
            raise
    finally:
        channel.free()


async def _connect(app: dial.Upstream, seconds: float) -> tuple[socket.socket, dial.Endpoint]:
    """Connects to the first endpoint of our app that answers. ``seconds``: for the look-up and all endpoints together. The
    caller waits for its verdict meanwhile, and longer than this: so it hears why it is refused. Raises :class:`Refused`."""
    failures: dict[dial.Endpoint, Refused] = {}
    try:
        found = await app.reach(seconds, failures)
        if found is None:
            raise list(failures.values())[-1]
    finally:
        failures.clear()  # a refusal's traceback holds this frame, and so the refusals: a cycle
    found[1].answered()
    return found
