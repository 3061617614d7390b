"""Outbound: our app's plaintext in, mutual TLS out to the one service it means. One connection, top to bottom."""

from __future__ import annotations

import socket
from typing import Any

import trio

from sidecar.config.wiring import Outbound
from sidecar.identity.reasons import MITM_SUSPECTS, Reason, Refused
from sidecar.identity.spiffe import SpiffeId, Svid, claims
from sidecar.observe.record import ConnectionRecord
from sidecar.policy.decide import decide
from sidecar.proxy import carry
from sidecar.proxy.live import Admission, Live
from sidecar.proxy.node import Node, Snapshot
from sidecar.relay.duplex import How
from sidecar.transport import dial, sockets
from sidecar.transport.handshake import hear, shake_hands
from sidecar.transport.tls import ALPN_PREFIX, TlsChannel
from sidecar.transport.verdict import RETRY_ELSEWHERE

_WORDS = {
    How.OK: Reason.OK,
    How.APP_RESET: Reason.CLIENT_RESET,
    How.PEER_RESET: Reason.APP_RESET,
    How.PEER_ALERT: Reason.PEER_REFUSED,
    How.TRUNCATED: Reason.TRUNCATED,
}

_OF_A_PEER: dict[str, Any] = {
    "peer_address": None,
    "peer_id": None,
    "unverified": {},
    "handshake_ms": None,
    "tls_group": None,
    "resumed": False,
    "connection_id": None,
}
"""What a record knows of one peer, and what it says while nothing is known."""


async def serve(
    node: Node, route: Outbound, upstream: dial.Upstream, sock: socket.socket, record: ConnectionRecord, live: Live
) -> None:
    """Carries one accepted connection. Raises :class:`Refused`; then ``sock`` is still open, and all else is closed."""
    now = node.current

    # May this process call, and may our service? The callee's sidecar decides once more, and its answer counts too.
    client = sockets.plain_ip((record.client_address or "").rpartition(":")[0].strip("[]"))
    if route.allow_from and not any(client in network for network in route.allow_from):
        networks = ", ".join(map(str, route.allow_from))
        raise Refused(Reason.POLICY_DENIED, f"takes calls to {record.upstream} from {networks} only, not from {client}")
    decision = decide(now.mesh, now.id, route.service, route.port, node.clock())
    record.rule, record.dry_run = decision.rule, decision.dry_run
    if not decision.allowed:
        raise Refused(Reason.POLICY_DENIED, decision.predicate)
    record.decision = "allow"

    # A peer that proves to be the one we mean, and lets us in. Our app's first bytes wait in its socket until then.
    net, channel, peer, endpoint = await _find(node, now, route, upstream, record)
    try:
        # (Judged again by what is in force now: a reload since the first judgement must not be missed.)
        live.claim = Admission(now.id, route.service, route.port, peer, channel.path, channel.anchor)
        if (changed := node.standing(live.claim)) is not None:
            raise Refused(changed, f"does not use {endpoint}: policy or trust changed during the handshake")
        with upstream.using(endpoint):
            await carry.carry(node, route, channel, net, sock, record, _WORDS)
    finally:
        sockets.hard_close(net)


async def _find(
    node: Node, now: Snapshot, route: Outbound, upstream: dial.Upstream, record: ConnectionRecord
) -> tuple[socket.socket, TlsChannel, Svid, dial.Endpoint]:
    """Tries one peer after the other until one gave a verdict. Whoever is not the one we mean raises the alarm, and what
    is logged in the end is the gravest that was met."""
    seconds = node.config.timeouts.connect
    met: list[tuple[Refused, dict[str, Any]]] = []
    endpoints: list[dial.Endpoint] = []
    with trio.move_on_after(seconds):
        endpoints = await upstream.endpoints()
    for endpoint in endpoints:
        _note(record, {"peer_address": str(endpoint)})
        try:
            found = await _approach(node, now, route, endpoint, record)
        except Refused as refusal:
            met.append((refusal, {name: getattr(record, name) for name in _OF_A_PEER}))
            verdict = refusal.peer_reason if refusal.reason is Reason.PEER_REFUSED else None
            if verdict is not None and verdict not in RETRY_ELSEWHERE:
                endpoint.answered()
                break
            endpoint.failed()
        else:
            endpoint.answered()
            return *found, endpoint
    if not met:
        raise Refused(Reason.CONNECT_FAILED, f"cannot find {upstream.what}: no answer within {seconds:g} s")
    gravest, known = next((one for one in met if one[0].reason in MITM_SUSPECTS), met[-1])
    _note(record, known)
    raise gravest


def _note(record: ConnectionRecord, known: dict[str, Any]) -> None:
    """Makes the record tell of one peer alone: what was known of another one is forgotten."""
    for name, nothing in _OF_A_PEER.items():
        setattr(record, name, known.get(name, nothing))


async def _approach(
    node: Node, now: Snapshot, route: Outbound, endpoint: dial.Endpoint, record: ConnectionRecord
) -> tuple[socket.socket, TlsChannel, Svid]:
    """One peer: connect, handshake with the one identity that is right, its verdict; each with a deadline."""
    timeouts, what = node.config.timeouts, f"{route.target}'s sidecar"
    expected = now.mesh.identity(route.service)
    net = await dial.connect(endpoint, what, timeouts.connect, node.listening)
    channel = now.context.client(ALPN_PREFIX + route.port, expected, node.clock)
    began = node.time()
    try:
        try:
            with trio.fail_after(timeouts.handshake):
                await shake_hands(net, channel, node.gate)
        finally:
            record.handshake_ms = (node.time() - began) * 1000
            record.connection_id = channel.connection_id
        if channel.svid is None:
            raise Refused(Reason.NO_CERTIFICATE, "met a peer that was not judged")
        if route.require_alpn and not channel.speaks_mesh:
            raise Refused(Reason.HANDSHAKE_FAILED, f"requires the ALPN protocol {ALPN_PREFIX}{route.port}")
        record.peer_id, record.tls_group, record.resumed = str(channel.svid.id), channel.group, channel.resumed
        # The callee connects to its app before it answers.
        with trio.fail_after(timeouts.connect + timeouts.handshake):
            await hear(net, channel)
    except trio.TooSlowError as error:
        sockets.hard_close(net)
        raise Refused(Reason.HANDSHAKE_TIMEOUT, f"heard no answer in time from {what} at {endpoint}") from error
    except Refused as refusal:
        refused = _told(node, refusal, channel, expected, endpoint, record)
        await sockets.linger(net)
        raise refused from refusal
    except BaseException:
        sockets.hard_close(net)
        raise
    return net, channel, channel.svid


def _told(
    node: Node,
    refusal: Refused,
    channel: TlsChannel,
    expected: SpiffeId,
    endpoint: dial.Endpoint,
    record: ConnectionRecord,
) -> Refused:
    """The refusal with its address and, where somebody may be in the middle, its alarm."""
    met = claims(channel.leaf) if channel.leaf is not None else {}
    if channel.svid is None:
        record.unverified = met
    if refusal.reason in MITM_SUSPECTS:
        detail = (
            f"expected {expected} at {endpoint} but {refusal.detail}: something answers in {expected.service}'s place"
        )
        node.log.alarm(
            f"refused: {record.service} {detail}",
            service=record.service,
            upstream=record.upstream,
            reason=str(refusal.reason),
            peer_address=str(endpoint),
            expected=str(expected),
            presented=met,
            connection_id=record.connection_id,
            next=f"find out who has the address {endpoint}; nothing was sent to it",
        )
    else:
        detail = f"{refusal.detail} (at {endpoint})"
    return Refused(refusal.reason, detail, peer_reason=refusal.peer_reason)
