"""Inbound on a permissive port: one connection from a caller without TLS to our app, from its first byte to its end.

The caller proves nothing. It is a stranger until the policy has judged it, as *plaintext*, and has no identity afterwards
either: none in its record, none in what our app is told. So it is let in only if a rule says ``from: plaintext`` and the
port's last day is not over, by the wall clock, which is looked at for each connection. Both hold while it lasts: when one of
them ends, :meth:`Node.recheck` cuts it.

Fails closed. Which callers come here was decided by their first byte, or its absence (:mod:`sidecar.transport.lobby`).
Nothing that fails in a handshake is tried again as plaintext.
"""

from __future__ import annotations

import socket
from datetime import datetime
from functools import partial

from sidecar.config.sidecar_yaml import Inbound
from sidecar.identity.reasons import Reason, Refused
from sidecar.observe.record import ConnectionRecord
from sidecar.policy.decide import remedy
from sidecar.policy.names import PLAINTEXT
from sidecar.proxy import carry
from sidecar.proxy.inbound import App, connect
from sidecar.proxy.introduce import duplex_for, introduce
from sidecar.proxy.live import BareAdmission, Live
from sidecar.proxy.node import Node
from sidecar.relay.bare import BareChannel
from sidecar.relay.duplex import How
from sidecar.relay.strand import Steps
from sidecar.transport import dial, sockets

_ENDINGS = {
    How.OK: Reason.OK,
    How.APP_RESET: Reason.APP_RESET,
    How.PEER_RESET: Reason.CLIENT_RESET,
    How.PEER_ALERT: Reason.CLIENT_RESET,
    How.TRUNCATED: Reason.CLIENT_RESET,
    How.REFUSED: Reason.CLIENT_RESET,
}
"""A stream without TLS that breaks off was reset: nobody can tell a reset by an attacker from the caller's own."""


def may_be_silent(port: Inbound, now: datetime) -> bool:
    """Whether a caller of this permissive port that says nothing is to be taken for one without TLS."""
    return port.server_first and port.takes_plaintext(now)


def serve(
    node: Node, port: Inbound, app: App, sock: socket.socket, record: ConnectionRecord, live: Live
) -> Steps[None]:
    """Serves one accepted connection until it ends, and is closed. Raises :class:`Refused`; after any exception ``sock`` is
    still open, and all else is closed."""
    record.plaintext = True
    app_socket, endpoint = yield from _admit(node, port, app, sock, record, live)
    try:
        record.upstream = str(endpoint)
        channel, make_duplex = BareChannel(partial(_end, sock)), duplex_for(port, node.current.id, None)
        with app.using(endpoint):
            ends = yield from carry.carry(node, port, channel, sock, app_socket, record, live, _ENDINGS, make_duplex)
        yield from ends.close()
    except BaseException:
        sockets.hard_close(app_socket)
        raise
    sock.close()


def _admit(
    node: Node, port: Inbound, app: App, sock: socket.socket, record: ConnectionRecord, live: Live
) -> Steps[tuple[socket.socket, dial.Endpoint]]:
    """Judges the connection by what is in force now, and connects to our app. Raises :class:`Refused`."""
    now = node.clock()
    if not port.takes_plaintext(now):
        node.callers.note(port.port, record.peer_address, now, allowed=False)
        raise Refused(Reason.PLAINTEXT_REFUSED, f"took plaintext until {port.until}, and requires mutual TLS since")
    live.admission = BareAdmission(port, node.config.service)
    decision = node.decide(PLAINTEXT, node.config.service, port.port)
    record.rule, record.dry_run = decision.rule, decision.dry_run
    node.callers.note(port.port, record.peer_address, now, allowed=decision.allowed)
    if not decision.allowed:
        why = decision.why + remedy(node.current.mesh, PLAINTEXT, decision)
        raise Refused(Reason.POLICY_DENIED, f"does not let plaintext in: {why}")
    if node.draining and node.config.has_replicas:
        raise Refused(Reason.DRAINED, "is stopping: the caller is to call another one")
    node.admit(live, proved=False)
    listener, rules = ("inbound", port.port, port.listen), decision.limits or ((decision.rule, None),)
    record.rule = node.registry.count(live, listener, port.limits.connections, rules)
    record.decision = "allow"
    began, seconds = node.time(), node.config.timeouts.connect
    found = yield from connect(app, seconds, _nothing_to_say)
    node.metrics.connects["inbound"].add(node.time() - began)
    yield from introduce(port, None, sock, found[0], began + seconds, _nothing_to_say)
    return found


def _nothing_to_say() -> Steps[None]:
    """A caller without TLS hears nothing before our app speaks."""
    yield from ()


def _end(sock: socket.socket) -> None:
    """Ends our direction of the caller's connection."""
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        return  # it is gone, which the next read tells
