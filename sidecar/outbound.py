"""Outbound: our app's plaintext in, mutual TLS out to the one service it means. One connection, top to bottom."""

from __future__ import annotations

import socket
from typing import Any

import trio

from sidecar import dial, session, sockets
from sidecar.config import Outbound
from sidecar.duplex import How
from sidecar.handshake import hear, shake_hands
from sidecar.identity import SpiffeId, Svid, claims
from sidecar.node import Generation, Node
from sidecar.policy import decide
from sidecar.reasons import MITM_SUSPECTS, Reason, Refused
from sidecar.record import ConnectionRecord
from sidecar.registry import Claim, Live
from sidecar.tls import ALPN_PREFIX, Endpoint
from sidecar.verdict import RETRY_ELSEWHERE

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
    net, endpoint, peer, place = await _find(node, now, route, upstream, record)
    try:
        # (Judged again by what is in force now: a reload since the first judgement must not be missed.)
        live.claim = Claim(now.id, route.service, route.port, peer, endpoint.path, endpoint.anchor)
        if (changed := node.standing(live.claim)) is not None:
            raise Refused(changed, f"does not use {place}: policy or trust changed during the handshake")
        with upstream.using(place):
            await session.relay(node, route, endpoint, net, sock, record, _WORDS)
    finally:
        sockets.hard_close(net)


async def _find(
    node: Node, now: Generation, route: Outbound, upstream: dial.Upstream, record: ConnectionRecord
) -> tuple[socket.socket, Endpoint, Svid, dial.Place]:
    """Tries one peer after the other until one gave a verdict. Whoever is not the one we mean raises the alarm, and what
    is logged in the end is the gravest that was met."""
    seconds = node.config.timeouts.connect
    met: list[tuple[Refused, dict[str, Any]]] = []
    places: list[dial.Place] = []
    with trio.move_on_after(seconds):
        places = await upstream.places()
    for place in places:
        _note(record, {"peer_address": str(place)})
        try:
            found = await _approach(node, now, route, place, record)
        except Refused as refusal:
            met.append((refusal, {name: getattr(record, name) for name in _OF_A_PEER}))
            verdict = refusal.peer_reason if refusal.reason is Reason.PEER_REFUSED else None
            if verdict is not None and verdict not in RETRY_ELSEWHERE:
                place.answered()
                break
            place.failed()
        else:
            place.answered()
            return *found, place
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
    node: Node, now: Generation, route: Outbound, place: dial.Place, record: ConnectionRecord
) -> tuple[socket.socket, Endpoint, Svid]:
    """One peer: connect, handshake with the one identity that is right, its verdict; each with a deadline."""
    timeouts, what = node.config.timeouts, f"{route.target}'s sidecar"
    expected = now.mesh.identity(route.service)
    net = await dial.connect(place, what, timeouts.connect, node.listening)
    endpoint = now.context.client(ALPN_PREFIX + route.port, expected, node.clock)
    began = node.time()
    try:
        try:
            with trio.fail_after(timeouts.handshake):
                await shake_hands(net, endpoint, node.gate)
        finally:
            record.handshake_ms = (node.time() - began) * 1000
            record.connection_id = endpoint.connection_id
        if endpoint.svid is None:
            raise Refused(Reason.NO_CERTIFICATE, "met a peer that was not judged")
        if route.require_alpn and not endpoint.speaks_mesh:
            raise Refused(Reason.HANDSHAKE_FAILED, f"requires the ALPN protocol {ALPN_PREFIX}{route.port}")
        record.peer_id, record.tls_group, record.resumed = str(endpoint.svid.id), endpoint.group, endpoint.resumed
        # The callee connects to its app before it answers.
        with trio.fail_after(timeouts.connect + timeouts.handshake):
            await hear(net, endpoint)
    except trio.TooSlowError as error:
        sockets.hard_close(net)
        raise Refused(Reason.HANDSHAKE_TIMEOUT, f"heard no answer in time from {what} at {place}") from error
    except Refused as refusal:
        refused = _told(node, refusal, endpoint, expected, place, record)
        await sockets.linger(net)
        raise refused from refusal
    except BaseException:
        sockets.hard_close(net)
        raise
    return net, endpoint, endpoint.svid


def _told(
    node: Node, refusal: Refused, endpoint: Endpoint, expected: SpiffeId, place: dial.Place, record: ConnectionRecord
) -> Refused:
    """The refusal with its address and, where somebody may be in the middle, its alarm."""
    met = claims(endpoint.leaf) if endpoint.leaf is not None else {}
    if endpoint.svid is None:
        record.unverified = met
    if refusal.reason in MITM_SUSPECTS:
        detail = f"expected {expected} at {place} but {refusal.detail}: something answers in {expected.service}'s place"
        node.log.alarm(
            f"refused: {record.service} {detail}",
            service=record.service,
            upstream=record.upstream,
            reason=str(refusal.reason),
            peer_address=str(place),
            expected=str(expected),
            presented=met,
            connection_id=record.connection_id,
            next=f"find out who has the address {place}; nothing was sent to it",
        )
    else:
        detail = f"{refusal.detail} (at {place})"
    return Refused(refusal.reason, detail, peer_reason=refusal.peer_reason)
