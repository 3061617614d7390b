"""Outbound: one connection from our app (plaintext) to the service of its route (mutual TLS), from policy to end.

How it works. Our own policy decides first. Then the peers of the route are tried in order: each is dialled, must prove the
route's one identity in the handshake, and sends its verdict if it speaks ``mesh/1``. The app's bytes are not read before
that. The first peer that lets us in is used. The reason that a peer gives for a refusal is final, unless it concerns that
peer alone (``RETRY_ELSEWHERE``); after any other failure the next peer is tried. A peer with a wrong identity raises the
alarm at once; if no peer lets us in, it is what the access log reports. The record describes one peer only.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import trio

from sidecar.config.sidecar_yaml import Outbound
from sidecar.identity.reasons import MITM_SUSPECTS, Reason, Refused
from sidecar.identity.spiffe import SpiffeId
from sidecar.observe.record import ConnectionRecord
from sidecar.policy.decide import decide, remedy, rule_for
from sidecar.proxy import carry
from sidecar.proxy.carry import Ends
from sidecar.proxy.live import Admission, Live
from sidecar.proxy.loops import LoopGuard
from sidecar.proxy.node import Node, Snapshot
from sidecar.proxy.peer import VerifiedPeer, establish
from sidecar.relay.duplex import How
from sidecar.transport import dial, sockets
from sidecar.transport.handshake import receive_verdict
from sidecar.transport.tls import ALPN_PREFIX, TlsChannel
from sidecar.transport.verdict import RETRY_ELSEWHERE

_ENDINGS = {
    How.OK: Reason.OK,
    How.APP_RESET: Reason.CLIENT_RESET,
    How.PEER_RESET: Reason.APP_RESET,
    How.PEER_ALERT: Reason.PEER_REFUSED,
    How.TRUNCATED: Reason.TRUNCATED,
}

_PEER_FIELDS: dict[str, Any] = {
    "peer_address": None,
    "peer_id": None,
    "unverified": {},
    "handshake_ms": None,
    "tls_group": None,
    "resumed": False,
    "connection_id": None,
}
"""The record's fields about one peer, and their values before anything is known."""


async def serve(
    node: Node,
    route: Outbound,
    upstream: dial.Upstream,
    loops: LoopGuard,
    sock: socket.socket,
    record: ConnectionRecord,
    live: Live,
) -> Ends:
    """Serves one accepted connection until it ends. Returns both sockets, open: the caller closes them. Raises
    :class:`Refused`; after any exception ``sock`` is still open, and everything else is closed."""
    snapshot = node.current

    # Authorization: of the calling process, then of our service. The callee's sidecar decides again, and may refuse.
    client = sockets.plain_ip((record.client_address or "").rpartition(":")[0].strip("[]"))
    if route.allow_from and not any(client in network for network in route.allow_from):
        networks = ", ".join(map(str, route.allow_from))
        raise Refused(Reason.POLICY_DENIED, f"takes calls to {record.upstream} from {networks} only, not from {client}")
    if route.ambiguous_with:
        raise Refused(
            Reason.POLICY_DENIED,
            f"cannot tell whether {route.shown} is meant: these share an address, since no such call was foreseen; allow "
            "the one that is meant in mesh.yaml, and run `sidecar inject` again",
        )
    decision = decide(snapshot.mesh, snapshot.id, route.service, route.port, node.clock())
    record.rule, record.dry_run = decision.rule, decision.dry_run
    if not decision.allowed:
        raise Refused(Reason.POLICY_DENIED, decision.predicate + remedy(snapshot.mesh, snapshot.id, decision))
    record.decision = "allow"

    await loops.before_dialling(sock)

    # Find a peer that proves its identity and lets us in. Until then the app's first bytes stay in its socket.
    net, channel, peer, endpoint = await find_peer(node, snapshot, route, upstream, record, lambda: loops.check(sock))
    try:
        # Judge again by the snapshot in force now: a reload may have come since the first judgement.
        live.admission = Admission(snapshot.id, route.service, route.port, peer.svid, peer.path, peer.anchor)
        if (changed := node.recheck(live.admission)) is not None:
            raise Refused(changed, f"does not use {endpoint}: policy or trust changed during the handshake")
        with upstream.using(endpoint):
            return await carry.carry(node, route, channel, net, sock, record, live, _ENDINGS)
    except BaseException:
        sockets.hard_close(net)
        raise
    finally:
        channel.free()


async def find_peer(
    node: Node,
    snapshot: Snapshot,
    route: Outbound,
    upstream: dial.Upstream,
    record: ConnectionRecord,
    check_caller: Callable[[], object],
) -> tuple[socket.socket, TlsChannel, VerifiedPeer, dial.Endpoint]:
    """Tries the peers in order until one gives a verdict. If none lets us in, raises the gravest refusal: one that suggests
    an attack, else the last. One deadline is over all peers: what a single one may take that uses all of its time.
    ``check_caller`` is called before anything is sent to a peer, and raises :class:`Refused` to end the search."""
    timeouts = node.config.timeouts
    longest = 2 * (timeouts.connect + timeouts.handshake) + sockets.LINGER_SECONDS
    failures: dict[dial.Endpoint, Refused] = {}
    known: dict[dial.Endpoint, dict[str, Any]] = {}
    try:
        with trio.move_on_after(longest):
            while (found := await upstream.reach(timeouts.connect, failures)) is not None:
                net, endpoint = found
                try:
                    check_caller()
                except BaseException:
                    sockets.hard_close(net)
                    raise
                _set_peer(record, {"peer_address": str(endpoint)})
                try:
                    channel, peer = await _try_peer(node, snapshot, route, upstream, net, endpoint, record)
                except Refused as refusal:
                    # Before anything is waited for: the deadline may come.
                    failures[endpoint] = refusal
                    known[endpoint] = {name: getattr(record, name) for name in _PEER_FIELDS}
                    verdict = refusal.peer_reason if refusal.reason is Reason.PEER_REFUSED else None
                    if final := verdict is not None and verdict not in RETRY_ELSEWHERE:
                        endpoint.answered()
                    else:
                        endpoint.failed()
                    if refusal.reason is Reason.HANDSHAKE_TIMEOUT:
                        sockets.hard_close(net)  # a peer that does not answer does not read either
                    else:
                        await sockets.linger(net)
                    if final:
                        break
                except BaseException:
                    sockets.hard_close(net)
                    raise
                else:
                    endpoint.answered()
                    return net, channel, peer, endpoint
        if not failures:
            raise Refused(Reason.HANDSHAKE_TIMEOUT, f"received no verdict from {upstream.what} within {longest:g} s")
        endpoint = next(
            (one for one, refusal in failures.items() if refusal.reason in MITM_SUSPECTS), list(failures)[-1]
        )
        _set_peer(record, known.get(endpoint, {"peer_address": str(endpoint)}))
        raise failures[endpoint]
    finally:
        failures.clear()  # a refusal's traceback holds this frame, and so the refusals: a cycle


def _set_peer(record: ConnectionRecord, known: dict[str, Any]) -> None:
    """Sets the record's fields about the peer; fields that are not in ``known`` are reset."""
    for name, unknown in _PEER_FIELDS.items():
        setattr(record, name, known.get(name, unknown))


async def _try_peer(
    node: Node,
    snapshot: Snapshot,
    route: Outbound,
    upstream: dial.Upstream,
    net: socket.socket,
    endpoint: dial.Endpoint,
    record: ConnectionRecord,
) -> tuple[TlsChannel, VerifiedPeer]:
    """One connected peer: handshake with the expected identity, verdict; each has a deadline. Raises :class:`Refused`.
    Leaves ``net`` open."""
    timeouts, expected = node.config.timeouts, snapshot.mesh.identity(route.service)
    channel = snapshot.context.client(ALPN_PREFIX + route.port, expected, node.clock)
    let_in = False
    try:
        peer = await establish(node, net, channel, record, began=node.time())
        if route.require_alpn and not channel.speaks_mesh:
            raise Refused(Reason.HANDSHAKE_FAILED, f"requires the ALPN protocol {ALPN_PREFIX}{route.port}")
        # The callee connects to its app before it answers, within its own `timeouts.connect`.
        with trio.fail_after(timeouts.connect + timeouts.handshake):
            await receive_verdict(net, channel)
        let_in = True
    except trio.TooSlowError as error:
        raise Refused(
            Reason.HANDSHAKE_TIMEOUT, f"received no verdict in time from {upstream.what} at {endpoint}"
        ) from error
    except Refused as refusal:
        raise _located(node, refusal, expected, endpoint, record) from refusal
    finally:
        if not let_in:
            channel.free()
    return channel, peer


def _located(
    node: Node, refusal: Refused, expected: SpiffeId, endpoint: dial.Endpoint, record: ConnectionRecord
) -> Refused:
    """The refusal with the peer's address in it. Raises the alarm if the refusal suggests a machine in the middle."""
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
        if refusal.peer_reason == Reason.POLICY_DENIED:  # we are allowed by ours, or it would not have been asked
            mesh, us = node.current.mesh, node.current.id
            detail += f"; its mesh file is not like ours, in which rule '{record.rule}' allows it. It needs: "
            detail += str(rule_for(mesh, us, str(record.upstream)))
    return Refused(refusal.reason, detail, peer_reason=refusal.peer_reason)
