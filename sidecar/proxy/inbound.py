"""Inbound: one connection from a peer (mutual TLS) to our app (plaintext), from handshake to end.

How it works. The handshake proves who calls. If the caller speaks ``mesh/2``, the channel is kept, and its app connections
follow one another on it as *streams* (:mod:`sidecar.relay.frames`). Each stream is judged by what is in force when it is
opened: policy, roots, revocations, the ends of both certificates. Each has a connection to our app, a verdict and a line in
the log of its own. A stream that is refused leaves the channel as it is; a peer that is not trusted any more has its channel
ended before its next stream, and at once while it is idle.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol

import trio

from sidecar.config.sidecar_yaml import MeshPort
from sidecar.identity.reasons import Reason, Refused
from sidecar.observe.record import ConnectionRecord
from sidecar.policy.decide import remedy
from sidecar.proxy import carry
from sidecar.proxy.channels import CALLEE_IDLE_SECONDS, PeerChannel
from sidecar.proxy.introduce import duplex_for, introduce
from sidecar.proxy.lines import Lines
from sidecar.proxy.live import Admission, Live
from sidecar.proxy.node import Node
from sidecar.proxy.peer import establish
from sidecar.proxy.suspects import look_twice
from sidecar.relay.duplex import How
from sidecar.relay.frames import Attribute, FramedChannel, Open, claims_of
from sidecar.relay.strand import Steps
from sidecar.transport import dial, sockets
from sidecar.transport.handshake import send_verdict
from sidecar.transport.streams import LostChannelError, answer, receive, send

_ENDINGS = {
    How.OK: Reason.OK,
    How.APP_RESET: Reason.APP_RESET,
    How.PEER_RESET: Reason.CLIENT_RESET,
    How.PEER_ALERT: Reason.PEER_REFUSED,
    How.TRUNCATED: Reason.TRUNCATED,
    How.REFUSED: Reason.CLIENT_RESET,
}


class App(Protocol):
    """Our app, as a port finds it: :class:`sidecar.transport.dial.Upstream`, or :class:`sidecar.proxy.own_port.OwnApp`."""

    def reach_only(
        self, until: float, failures: dict[dial.Endpoint, Refused], waits: Callable[[], Steps[None]]
    ) -> Steps[tuple[socket.socket, dial.Endpoint] | None]: ...

    async def reach(
        self, seconds: float, failures: dict[dial.Endpoint, Refused]
    ) -> tuple[socket.socket, dial.Endpoint] | None: ...

    def using(self, endpoint: dial.Endpoint) -> AbstractContextManager[None]: ...


def serve(node: Node, port: MeshPort, app: App, sock: socket.socket, lines: Lines, live: Live) -> Steps[None]:
    """Serves one accepted connection until it ends, and is closed: the streams of a kept channel, or the one that it is.
    Each has its record in ``lines``. Raises :class:`Refused`; after any exception ``sock`` is still open, and all else is
    closed."""
    timeouts = node.config.timeouts

    # Authentication: the handshake judges the peer's certificate.
    context = node.current.context
    channel = context.server(node.protocols(port.port), node.clock)
    try:
        record = lines.present
        peer = yield from establish(node, sock, channel, record, record.started, live.stranger)
        try:
            node.admit(live)  # a place, as it is no stranger any more
            if port.require_alpn and not channel.speaks_mesh:
                required = " or ".join(channel.protocols)
                raise Refused(Reason.HANDSHAKE_FAILED, f"requires the ALPN protocol {required}; {peer.id} offers none")
        except Refused as refusal:
            yield partial(send_verdict, sock, channel, refusal.reason, timeouts.handshake)
            raise
        frames = FramedChannel(channel, accepts=True) if channel.keeps else None
        here = PeerChannel(sock, channel, frames, peer, str(record.connection_id), record.started, context.own)
        live.admission = Admission(peer.id, node.config.service, port.port, peer.svid, peer.path, peer.anchor)

        # One stream after another; a channel that is not kept is a single one.
        while frames is None or (yield from _next_stream(node, port, here, lines, live)):
            here.describe(lines.present)
            look_twice(node, peer, sock, lines.present)
            try:
                app_socket, endpoint = yield from _admit(node, port, app, here, lines.present, live)
            except Refused as refusal:
                if frames is None:
                    yield partial(send_verdict, sock, channel, refusal.reason, timeouts.handshake)
                    raise
                yield from answer(sock, channel, frames, refusal.reason, node.time() + timeouts.handshake)
                lines.present.refuse(refusal)
                lines.end()
                continue
            try:
                # Send the verdict, then relay until the end.
                lines.present.upstream = str(endpoint)
                if frames is None:
                    yield partial(send_verdict, sock, channel, Reason.OK, timeouts.handshake)
                else:
                    yield from answer(sock, channel, frames, Reason.OK, node.time() + timeouts.handshake)
                make_duplex = duplex_for(port, node.current.id, peer)
                with app.using(endpoint):
                    ends = yield from carry.carry(
                        node, port, here.carrier, sock, app_socket, lines.present, live, _ENDINGS, make_duplex
                    )
                yield from ends.close()
            except BaseException:
                sockets.hard_close(app_socket)
                raise
            lines.end()
            if not ends.kept:
                return
        sock.close()
    except LostChannelError as lost:  # while we had something to say to it
        raise lost.refusal() from lost
    finally:
        channel.free()


def _next_stream(node: Node, port: MeshPort, here: PeerChannel, lines: Lines, live: Live) -> Steps[bool]:
    """Waits for the caller's next *open*, confirms it, and begins its record. Returns whether it has come: if not, the
    channel has ended, or is to end. Raises :class:`Refused` if no stream has come at all."""
    frames, timeouts = here.frames, node.config.timeouts
    assert frames is not None  # noqa: S101 (see `serve`)
    node.registry.uncount(live)  # the stream before
    first = frames.number == 0
    seconds = timeouts.handshake if first else CALLEE_IDLE_SECONDS
    if not first:
        node.registry.set_idle(live, idle=True)
    try:
        if not first and frames.has_more:
            yield trio.lowlevel.checkpoint  # whoever opens streams without waiting for an answer waits for everybody else
        opening = yield from receive(here.sock, frames, node.relay.buffers, node.time() + seconds)
    except LostChannelError as lost:
        if first:
            raise lost.refusal() from lost
        return False
    finally:
        node.registry.set_idle(live, idle=False)
    if opening is None:
        if first:
            raise Refused(Reason.HANDSHAKE_TIMEOUT, f"received no stream from {here.peer.id} within {seconds:g} s")
        return False
    assert isinstance(opening, Open)  # noqa: S101 (a callee's channel takes nothing else)
    if not first:
        assert isinstance(live.admission, Admission)  # noqa: S101 (see `serve`)
        if here.is_retired(node, port) or not here.is_trusted(node, live.admission):
            return False  # before it is confirmed: the caller tries again on a new one
        lines.begin(node.time())
    here.opening = opening
    frames.confirm()
    return True


def _admit(
    node: Node, port: MeshPort, app: App, here: PeerChannel, record: ConnectionRecord, live: Live
) -> Steps[tuple[socket.socket, dial.Endpoint]]:
    """Judges one stream by what is in force now, and connects to our app. Raises :class:`Refused`."""
    caller = here.peer.id
    stops = _take_as_probe(node, here, record)
    decision = node.decide(caller, node.config.service, port.port)
    record.rule, record.dry_run = decision.rule, decision.dry_run
    if not decision.allowed:
        why = decision.why + remedy(node.current.mesh, caller, decision)
        raise Refused(Reason.POLICY_DENIED, f"does not let {caller} in: {why}")
    assert isinstance(live.admission, Admission)  # noqa: S101 (see `serve`)
    here.judge(node, live.admission)
    seconds = node.config.timeouts.connect
    if (opening := here.opening) is not None:
        if opening.strange:
            strange = ", ".join(map(str, opening.strange))
            raise Refused(
                Reason.HANDSHAKE_FAILED, f"does not know what {caller} requires of this stream: attributes {strange}"
            )
        if stops and not record.probe:
            raise Refused(
                Reason.HANDSHAKE_FAILED,
                f"was not told to expect a probe of {caller}: `sidecar verify` announces it at this sidecar's own socket",
            )
        record.trial = Attribute.TRIAL in opening.attributes
        record.unverified = claims_of(opening)
        seconds = min(seconds, opening.milliseconds / 1000)
    if node.draining and node.config.has_replicas:
        raise Refused(Reason.DRAINED, f"is stopping: {caller} is to call another one")
    if not stops:
        listener, rules = ("inbound", port.port, port.listen), decision.limits or ((decision.rule, None),)
        record.rule = node.registry.count(live, listener, port.limits.connections, rules)
    record.decision = "allow"
    if stops:
        raise Refused(Reason.PROBE, f"has let in a probe of {caller}, which ends before the app is reached")
    # Connect to the app before the peer gets its verdict. If that takes time, the peer hears that its *open* was read.
    began = node.time()

    def waits() -> Steps[None]:
        return send(here.sock, here.channel, node.time() + seconds)

    found = yield from connect(app, seconds, waits)
    node.metrics.connects["inbound"].add(node.time() - began)
    yield from introduce(port, here.peer, here.sock, found[0], began + seconds, waits)
    return found


def _take_as_probe(node: Node, here: PeerChannel, record: ConnectionRecord) -> bool:
    """Marks a stream's record as a probe's, if we were told of its certificate. Returns whether the stream is to end before
    the app: its caller says so, and nobody loses by that."""
    if (opening := here.opening) is None:
        return False
    stops = Attribute.PROBE in opening.attributes
    if node.announced.is_open(node.time()):
        fingerprint = hashlib.sha256(here.peer.path[0]).hexdigest()
        claimed = stops or Attribute.PROBE_THROUGH in opening.attributes
        record.probe = node.announced.is_stranger(fingerprint, node.time()) or (
            claimed and node.announced.is_caller(fingerprint, node.time())
        )
    return stops


def connect(app: App, seconds: float, waits: Callable[[], Steps[None]]) -> Steps[tuple[socket.socket, dial.Endpoint]]:
    """Connects to the first endpoint of our app that answers. ``seconds``: for the look-up and all endpoints together. The
    caller waits for its verdict meanwhile, and longer than this: so it hears why it is refused. ``waits`` is run before
    anything is waited for. Raises :class:`Refused`."""
    failures: dict[dial.Endpoint, Refused] = {}
    try:
        found = yield from app.reach_only(trio.current_time() + seconds, failures, waits)
        if found is None:
            yield from waits()
            found = yield partial(app.reach, seconds, failures)
        if found is None:
            raise list(failures.values())[-1]
    finally:
        failures.clear()  # a refusal's traceback holds this frame, and so the refusals: a cycle
    found[1].answered()
    return found
