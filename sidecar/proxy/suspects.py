"""What a connection met that may be an attack, as alarms. Whoever is suspected was refused before: this changes nothing.

How this works. A peer that we called and that failed to prove its identity is an alarm (:func:`located`), with one
exception (:func:`is_neighbour`): a *neighbour*. When a container ends, another service's container may get its address
while we still use the old one. Then a valid peer of this mesh answers, and the name that led to it does not lead there any
more. That is a notice, the name's old address is forgotten, and only if it happens again and again it is an alarm.
Whoever stands in the middle cannot hide as a neighbour for long: he must take the address that the name leads to.

A record that was altered on the way is an alarm too if it recurs at one place: :func:`look_at`. No stranger can raise that:
only connections count that this sidecar opened, or whose peer had proved its identity.
"""

from __future__ import annotations

import socket

import trio

from sidecar.identity.reasons import MITM_SUSPECTS, Reason, Refused
from sidecar.identity.spiffe import InvalidIdentityError, SpiffeId, parse_svid
from sidecar.meanings.first_steps import FIND_BETWEEN, WAIT_FOR_MORE, find_who
from sidecar.observe.alarms import MITM_SUSPECTED, Severity
from sidecar.observe.record import ConnectionRecord
from sidecar.observe.recurrence import FEW, SECONDS
from sidecar.policy.decide import rule_for
from sidecar.policy.mesh import Mesh
from sidecar.proxy.node import Node
from sidecar.proxy.peer import VerifiedPeer
from sidecar.transport import dial, sockets
from sidecar.transport.tls import TlsChannel
from sidecar.transport.tls_errors import ALTERED_ALERTS

LOOK_UP_SECONDS = 0.3
"""How long an alarm waits for the answer whether a name still leads to an address. Without one it is raised."""

NEIGHBOUR_MET = "neighbour_met"
TAMPERING_SUSPECTED = "tampering_suspected"


def located(
    node: Node,
    refusal: Refused,
    expected: SpiffeId,
    endpoint: dial.Endpoint,
    record: ConnectionRecord,
    presented: tuple[bytes, ...] = (),
    *,
    neighbour: bool = False,
) -> Refused:
    """The refusal by ``endpoint`` with its address in it. Raises the alarm if the refusal suggests a machine in the middle.
    ``presented``: the peer's certificates. ``neighbour``: it is one."""
    if refusal.reason not in MITM_SUSPECTS:
        detail = f"{refusal.detail} (at {endpoint})"
        if refusal.peer_reason == Reason.POLICY_DENIED:  # we are allowed by ours, or it would not have been asked
            mesh, us = node.current.mesh, node.current.id
            detail += f"; its mesh file is not like ours, in which rule '{record.rule}' allows it. It needs: "
            detail += str(rule_for(mesh, us, str(record.upstream)))
        return Refused(refusal.reason, detail, peer_reason=refusal.peer_reason, altered=refusal.altered)
    met = f"expected {expected} at {endpoint} but {refusal.detail}"
    if neighbour:
        detail = (
            f"{met}: a neighbour that got an old address of {expected.service}, it seems; the name leads there no more"
        )
        event, severity = NEIGHBOUR_MET, Severity.NOTICE
        next_step = WAIT_FOR_MORE
    else:
        detail = f"{met}: something answers in {expected.service}'s place"
        event, severity = MITM_SUSPECTED, Severity.ALARM
        next_step = find_who(str(endpoint))
    node.alarm_log.report(
        f"refused: {record.service} {detail}",
        event=event,
        severity=severity,
        service=record.service,
        upstream=record.upstream,
        reason=str(refusal.reason),
        peer_address=str(endpoint),
        expected=str(expected),
        presented=record.unverified,
        connection_id=record.connection_id,
        next=next_step,
        chain=presented,
    )
    return Refused(refusal.reason, detail, peer_reason=refusal.peer_reason)


async def is_neighbour(
    node: Node, refusal: Refused, channel: TlsChannel, upstream: dial.Upstream, endpoint: dial.Endpoint
) -> bool:
    """Whether a refused peer is another service of this mesh, at an address that the target's name leads to no more, and not
    met there too often. Asks the resolver; without an answer in time the peer is none. A cancellation says so too, so that
    no alarm is lost."""
    if refusal.reason is not Reason.UNEXPECTED_PEER or not _is_of(node.current.mesh, channel.leaf):
        return False
    with trio.CancelScope(shield=True, deadline=trio.current_time() + LOOK_UP_SECONDS):
        if await upstream.has_lost(endpoint):
            return not node.neighbours.met((upstream.what, endpoint.text), node.time())
    return False


def _is_of(mesh: Mesh, leaf: bytes | None) -> bool:
    """Whether a certificate, which was verified, is of a service in the mesh file."""
    try:
        return leaf is not None and parse_svid(leaf).id.service in mesh.services
    except InvalidIdentityError:
        return False


def look_twice(node: Node, peer: VerifiedPeer, sock: socket.socket, record: ConnectionRecord) -> None:
    """Raises the alarm if callers with one certificate come from two addresses in turn, again and again: two sidecars have
    the same key. Each of our own addresses counts apart, since a peer with several uses the nearest for each."""
    if record.peer_address is None:
        return
    host, local = record.peer_address.rpartition(":")[0], sockets.local_host(sock)
    between = node.places_of_peers.met((peer.svid.sha256, local), host)
    if between is None or not node.returns.met(peer.svid.sha256, node.time()):
        return
    serial = f"{peer.svid.serial:x}"
    whose = (
        "pass was not used in both by its owner, it" if peer.id.person else "state directory was not copied by you, it"
    )
    node.alarm_log.report(
        f"{peer.id} is in two places at once: certificate {serial} comes from {host} and from {between} in turn",
        event="identity_elsewhere",
        service=record.service,
        upstream=f"{record.service}:{record.port}",
        reason="two_addresses",
        expected=str(peer.id),
        presented={"serial": serial, "sha256": peer.svid.sha256},
        connection_id=record.connection_id,
        next=f"if its {whose} was stolen: certs revoke {'/'.join(peer.id.segments)}",
    )


def look_at(node: Node, record: ConnectionRecord) -> None:
    """Raises the alarm if the connection's records were altered, and this happens again and again at this place."""
    inbound = record.direction == "inbound"
    told_by_peer = record.peer_reason in ALTERED_ALERTS
    # A stranger may break his own handshake as often as he likes.
    if not (record.altered or told_by_peer) or (inbound and record.peer_id is None) or record.peer_address is None:
        return
    port = record.port if inbound else str(record.upstream)
    host = record.peer_address.rpartition(":")[0]
    if not node.altered.met((record.direction, port, host), node.time()):
        return
    ends = (
        f"{record.service}:{record.port} from {host}" if inbound else f"{record.service} -> {record.upstream} at {host}"
    )
    where = "by the peer" if told_by_peer and not record.altered else "here"
    node.alarm_log.report(
        f"altered records on the way, {ends}: {FEW} connections or more within {SECONDS / 60:g} minutes, found {where}; "
        "each was ended, and no altered byte was delivered",
        event=TAMPERING_SUSPECTED,
        service=record.service,
        upstream=f"{record.service}:{record.port}" if inbound else record.upstream,
        reason=str(record.outcome),
        peer_address=host,
        connection_id=record.connection_id,
        next=FIND_BETWEEN,
    )
