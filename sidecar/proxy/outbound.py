"""Outbound: one connection from our app (plaintext) to the service of its route (mutual TLS), from policy to end.

How it works. Our own policy decides first. If an idle channel to the peer is kept (:mod:`sidecar.proxy.channels`), the
connection is its next stream. Otherwise the peers of the route are tried in order: each is dialled, must prove the route's
one identity in the handshake, and sends its verdict if it speaks ``mesh/2`` or ``mesh/1``. The app's bytes are not read
before that. The first peer that lets us in is used. The reason that a peer gives for a refusal is final, unless it concerns
that peer alone (``RETRY_ELSEWHERE``); after any other failure the next peer is tried. A peer with a wrong identity raises
the alarm at once; if no peer lets us in, it is what the access log reports. The record describes one peer only.

A kept channel that its callee is done with costs one more try, on a new one: no byte of the app has left by then.
"""

from __future__ import annotations

import ipaddress
import math
import socket
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import trio

from sidecar.config.sidecar_yaml import Outbound
from sidecar.host.deadline import Deadline
from sidecar.identity.reasons import MITM_SUSPECTS, Reason, Refused
from sidecar.observe.record import ConnectionRecord
from sidecar.policy.decide import remedy
from sidecar.proxy import carry
from sidecar.proxy.channels import Channels, PeerChannel
from sidecar.proxy.live import Admission, Live
from sidecar.proxy.loops import LoopGuard
from sidecar.proxy.node import Node, Snapshot
from sidecar.proxy.peer import establish
from sidecar.proxy.suspects import is_neighbour, located
from sidecar.relay.duplex import How
from sidecar.relay.frames import Attribute, FramedChannel
from sidecar.relay.strand import Steps, run
from sidecar.transport import dial, sockets
from sidecar.transport.handshake import receive_verdict
from sidecar.transport.streams import LostChannelError, ask
from sidecar.transport.tls import ALPN_PREFIXES
from sidecar.transport.verdict import RETRY_ELSEWHERE

_ENDINGS = {
    How.OK: Reason.OK,
    How.APP_RESET: Reason.CLIENT_RESET,
    How.PEER_RESET: Reason.APP_RESET,
    How.PEER_ALERT: Reason.PEER_REFUSED,
    How.TRUNCATED: Reason.TRUNCATED,
}

CONFIRM_SECONDS = 1.0
"""How long a callee may take to confirm that it has read *open* on a kept channel. It does so at once, before it asks its
app: one that does not is gone, or its host is."""

_PEER_FIELDS: dict[str, Any] = {
    "peer_address": None,
    "peer_id": None,
    "unverified": {},
    "handshake_ms": None,
    "tls_group": None,
    "resumed": False,
    "connection_id": None,
    "channel_id": None,
    "reused": False,
}
"""The record's fields about one peer, and their values before anything is known."""


def serve(
    node: Node,
    route: Outbound,
    upstream: dial.Upstream,
    channels: Channels,
    loops: LoopGuard,
    sock: socket.socket,
    record: ConnectionRecord,
    live: Live,
) -> Steps[None]:
    """Serves one accepted connection until it ends, and is closed. Raises :class:`Refused`; after any exception ``sock`` is
    still open, and everything else is closed."""
    snapshot = node.current

    # Authorization: of the calling process, then of our service. The callee's sidecar decides again, and may refuse.
    client = (record.client_address or "").rpartition(":")[0].strip("[]")
    if route.allow_from and not any(_ip(client) in network for network in route.allow_from):
        networks = ", ".join(map(str, route.allow_from))
        raise Refused(
            Reason.POLICY_DENIED,
            f"takes calls to {record.upstream} from {networks} only, as its allow_from says, not from {_ip(client)}",
        )
    if route.ambiguous_with:
        raise Refused(
            Reason.POLICY_DENIED,
            f"cannot tell whether {route.shown} is meant: these share an address, since no such call was foreseen; allow "
            "the one that is meant in mesh.yaml, and run `sidecar inject` again",
        )
    decision = node.decide(snapshot.id, route.service, route.port)
    record.rule, record.dry_run = decision.rule, decision.dry_run
    if not decision.allowed:
        raise Refused(Reason.POLICY_DENIED, decision.predicate + remedy(snapshot.mesh, snapshot.id, decision))
    node.registry.count(live, ("outbound", route.shown, route.listen), route.limits.connections)
    record.decision = "allow"

    if loops.suspects:
        yield partial(loops.before_dialling, sock)

    # Find a peer that proves its identity and lets us in. Until then the app's first bytes stay in its socket.
    def check_caller() -> None:
        loops.check(sock)

    found = yield from _reuse(node, route, upstream, channels, record, check_caller)
    if found is None:
        found = yield partial(find_peer, node, snapshot, route, upstream, record, check_caller)
    try:
        # Judge again by the snapshot in force now: a reload may have come since the first judgement.
        peer, endpoint = found.peer, found.endpoint
        assert endpoint is not None  # noqa: S101 (a caller's channel has one)
        live.admission = Admission(snapshot.id, route.service, route.port, peer.svid, peer.path, peer.anchor)
        if (changed := node.recheck(live.admission)) is not None:
            raise Refused(changed, f"does not use {endpoint}: policy or trust changed during the handshake")
        with upstream.using(endpoint):
            ends = yield from carry.carry(node, route, found.carrier, found.sock, sock, record, live, _ENDINGS)
        yield from ends.close()
    except BaseException:
        found.end()
        raise
    if ends.kept:
        channels.put(found, live.admission)
    else:
        found.channel.free()


def _reuse(
    node: Node,
    route: Outbound,
    upstream: dial.Upstream,
    channels: Channels,
    record: ConnectionRecord,
    check_caller: Callable[[], object],
) -> Steps[PeerChannel | None]:
    """Opens a stream on a kept channel; None if there is none, or it turns out that the callee is done with it. Raises
    :class:`Refused` as :func:`find_peer` does."""
    if (endpoint := upstream.best()) is None or (found := channels.take(route, endpoint)) is None:
        return None
    frames = found.frames
    assert frames is not None  # noqa: S101 (only such a channel is kept)
    let_in = False
    try:
        check_caller()
        now, longest = node.time(), _verdict_seconds(node)
        frames.open(round(longest * 1000))
        record.peer_address = endpoint.text
        found.describe(record)
        yield from ask(found.sock, found.channel, frames, node.relay.buffers, now + CONFIRM_SECONDS, now + longest)
        let_in = True
        return found
    except LostChannelError:
        _set_peer(record, {})
        return None
    except trio.TooSlowError as error:
        raise Refused(
            Reason.HANDSHAKE_TIMEOUT, f"received no verdict in time from {upstream.what} at {endpoint}"
        ) from error
    except Refused as refusal:
        if refusal.peer_reason in RETRY_ELSEWHERE and upstream.has_another(endpoint):
            endpoint.failed()
            _set_peer(record, {})
            return None
        raise located(node, refusal, found.peer.id, endpoint, record) from refusal
    finally:
        if not let_in:
            found.end()


async def find_peer(
    node: Node,
    snapshot: Snapshot,
    route: Outbound,
    upstream: dial.Upstream,
    record: ConnectionRecord,
    check_caller: Callable[[], object],
    probe: Attribute | None = None,
) -> PeerChannel:
    """Tries the peers in order until one gives a verdict. If none lets us in, raises the gravest refusal: one that suggests
    an attack, else the last. One deadline is over all peers: what a single one may take that uses all of its time.
    ``check_caller`` is called before anything is sent to a peer, and raises :class:`Refused` to end the search. ``probe``:
    what the stream says of itself if it is one."""
    timeouts = node.config.timeouts
    longest = 2 * (timeouts.connect + timeouts.handshake) + sockets.LINGER_SECONDS
    failures: dict[dial.Endpoint, Refused] = {}
    known: dict[dial.Endpoint, dict[str, Any]] = {}
    try:
        with trio.move_on_after(longest):
            while True:
                began = node.time()
                if (found := await upstream.reach(timeouts.connect, failures)) is None:
                    break
                net, endpoint = found
                node.metrics.connects["outbound"].add(node.time() - began)
                try:
                    check_caller()
                except BaseException:
                    sockets.hard_close(net)
                    raise
                _set_peer(record, {"peer_address": str(endpoint)})
                try:
                    found_channel = await _try_peer(node, snapshot, route, upstream, net, endpoint, record, probe)
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
                    return found_channel
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
    probe: Attribute | None,
) -> PeerChannel:
    """One connected peer: handshake with the expected identity, verdict; each has a deadline. Raises :class:`Refused`.
    Leaves ``net`` open."""
    expected = snapshot.mesh.identity(route.service)
    # Only a kept channel's stream can say that it is to end before the app.
    protocols = [ALPN_PREFIXES[0] + route.port] if probe is Attribute.PROBE else node.protocols(route.port)
    channel = snapshot.context.client(protocols, expected, node.clock)
    frames: FramedChannel | None = None
    seconds = _verdict_seconds(node)

    def open_stream() -> None:
        nonlocal frames
        if channel.keeps:
            frames = FramedChannel(channel, accepts=False)
            frames.open(round(seconds * 1000), {} if probe is None else {probe: b""})

    let_in = False
    try:
        peer = await run(establish(node, net, channel, record, began=node.time(), last=open_stream))
        if route.require_alpn and not channel.speaks_mesh:
            raise Refused(Reason.HANDSHAKE_FAILED, f"requires the ALPN protocol {' or '.join(channel.protocols)}")
        found = PeerChannel(
            net, channel, frames, peer, str(record.connection_id), node.time(), snapshot.context.own, endpoint
        )
        found.describe(record)
        # The callee connects to its app before it answers, within its own `timeouts.connect`.
        with Deadline.after(seconds):
            if frames is None:
                await receive_verdict(net, channel)
            else:
                await run(ask(net, channel, frames, node.relay.buffers, math.inf, math.inf))
        let_in = True
    except trio.TooSlowError as error:
        raise Refused(
            Reason.HANDSHAKE_TIMEOUT, f"received no verdict in time from {upstream.what} at {endpoint}"
        ) from error
    except LostChannelError as lost:
        raise located(node, lost.refusal(), expected, endpoint, record) from lost
    except Refused as refusal:
        neighbour = await is_neighbour(node, refusal, channel, upstream, endpoint)
        raise located(node, refusal, expected, endpoint, record, channel.evidence, neighbour=neighbour) from refusal
    finally:
        if not let_in:
            channel.free()
    return found


def _verdict_seconds(node: Node) -> float:
    """How long we wait for a verdict."""
    return node.config.timeouts.connect + node.config.timeouts.handshake


@lru_cache(maxsize=256)
def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return sockets.plain_ip(host)
