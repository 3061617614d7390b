"""Outbound: our app's plaintext in, mutual TLS out to the one service it means. One connection, top to bottom."""

from __future__ import annotations

import socket
from typing import Any

import trio

from sidecar.config.sidecar_yaml import Outbound
from sidecar.identity.reasons import MITM_SUSPECTS, Reason, Refused
from sidecar.identity.spiffe import SpiffeId
from sidecar.observe.record import ConnectionRecord
from sidecar.policy.decide import decide
from sidecar.proxy import carry
from sidecar.proxy.carry import Ends
from sidecar.proxy.live import Admission, Live
from sidecar.proxy.node import Node, Snapshot
from sidecar.proxy.peer import VerifiedPeer, establish
from sidecar.relay.duplex import How
from sidecar.transport import dial, sockets
from sidecar.transport.handshake import hear
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
) -> Ends:
    """Carries one accepted connection; its ends are the caller's to close. Raises :class:`Refused`; whatever it raises,
    ``sock`` is still open, and all else is closed."""
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
        live.admission = Admission(now.id, route.service, route.port, peer.svid, peer.path, peer.anchor)
        if (changed := node.objection(live.admission)) is not None:
            raise Refused(changed, f"does not use {endpoint}: policy or trust changed during the handshake")
        with upstream.using(endpoint):
            return await carry.carry(node, route, channel, net, sock, record, _WORDS)
    except BaseException:
        sockets.hard_close(net)
        raise


async def _find(
    node: Node, now: Snapshot, route: Outbound, upstream: dial.Upstream, record: ConnectionRecord
) -> tuple[socket.socket, TlsChannel, VerifiedPeer, dial.Endpoint]:
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
            found = await _approach(node, now, route, upstream, endpoint, record)
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
    node: Node,
    now: Snapshot,
    route: Outbound,
    upstream: dial.Upstream,
    endpoint: dial.Endpoint,
    record: ConnectionRecord,
) -> tuple[socket.socket, TlsChannel, VerifiedPeer]:
    """One peer: connect, handshake with the one identity that is right, its verdict; each with a deadline."""
    timeouts, expected = node.config.timeouts, now.mesh.identity(route.service)
    net = await upstream.connect(endpoint, timeouts.connect)
    channel = now.context.client(ALPN_PREFIX + route.port, expected, node.clock)
    try:
        peer = await establish(node, net, channel, record, began=node.time())
        if route.require_alpn and not channel.speaks_mesh:
            raise Refused(Reason.HANDSHAKE_FAILED, f"requires the ALPN protocol {ALPN_PREFIX}{route.port}")
        # The callee connects to its app before it answers.
        with trio.fail_after(timeouts.connect + timeouts.handshake):
            await hear(net, channel)
    except trio.TooSlowError as error:
        sockets.hard_close(net)
        raise Refused(
            Reason.HANDSHAKE_TIMEOUT, f"heard no verdict in time from {upstream.what} at {endpoint}"
        ) from error
    except Refused as refusal:
        located = _located(node, refusal, expected, endpoint, record)
        if refusal.reason is Reason.HANDSHAKE_TIMEOUT:
            sockets.hard_close(net)  # what does not answer does not read either
        else:
            await sockets.linger(net)
        raise located from refusal
    except BaseException:
        sockets.hard_close(net)
        raise
    return net, channel, peer


def _located(
    node: Node, refusal: Refused, expected: SpiffeId, endpoint: dial.Endpoint, record: ConnectionRecord
) -> Refused:
    """The refusal with its address and, where somebody may be in the middle, its alarm."""
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
            presented=record.unverified,
            connection_id=record.connection_id,
            next=f"find out who has the address {endpoint}; nothing was sent to it",
        )
    else:
        detail = f"{refusal.detail} (at {endpoint})"
    return Refused(refusal.reason, detail, peer_reason=refusal.peer_reason)
