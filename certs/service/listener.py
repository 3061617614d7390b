"""The CA's listener: accepting, the TLS handshake, then one request after the other. Fails closed.

How this works. An accepted socket waits in a :class:`~sidecar.transport.lobby.Lobby` until its caller has spoken. Then it is
a connection, one task, :meth:`_Connection.serve`: handshake, requests, close.

* A caller without a certificate is accepted too, because it may enrol. The handlers of :mod:`certs.service.api` check what
  it may request. A certificate that is presented must verify, or the handshake fails.
* A caller whose certificate verifies, but is revoked or of a distrusted issuer, is *anonymous*, as if it had presented none.
  So it can hear that it is revoked, and enrol anew. This is judged again at each request, by the state then in force: a
  connection whose peer was revoked meanwhile is anonymous from that request on.
* Every host that reaches the port can open anonymous connections. They have a budget of their own
  (:mod:`sidecar.transport.strangers`): when it is full, or file descriptors run out, one of them makes room, but none whose
  request is being answered. Each has :data:`ANONYMOUS_SECONDS` until its first, and each next, complete request. Their
  requests pass the gate, as handshakes do.
* A connection of a sidecar with a certificate is never closed for room. One identity has at most
  :data:`MAX_OF_ONE_IDENTITY`; further ones are refused.
* Nothing escapes from a connection's task: a bug in one is logged and does not end the others.
"""

from __future__ import annotations

import contextlib
import math
import resource
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial

import trio

from certs.protocol import wire
from certs.service.api import CaApi
from sidecar.host.deadline import Deadline
from sidecar.identity.reasons import Reason, Refused
from sidecar.identity.spiffe import SpiffeId
from sidecar.observe.folding import Listener, is_about_certificate
from sidecar.observe.logs import Log
from sidecar.observe.summaries import Summaries
from sidecar.relay.strand import run
from sidecar.transport import sockets
from sidecar.transport.accepting import Room, accept_all
from sidecar.transport.gate import Gate
from sidecar.transport.handshake import shake_hands
from sidecar.transport.http1 import Closing, Handler, Peer, Request, Response, Routes, converse
from sidecar.transport.lobby import SPOKEN, Left, Lobby
from sidecar.transport.strangers import Stranger, address_key
from sidecar.transport.stream import BrokenStreamError, SecureStream
from sidecar.transport.tls import Context, TlsChannel

HANDSHAKE_SECONDS = 5.0
DRAIN_SECONDS = 5.0
ANONYMOUS_SECONDS = 10.0
"""How long an anonymous connection may be without a complete request, the handshake included."""

MAX_CONNECTIONS = 4096
"""Of sidecars with a certificate. At this number, new connections are refused."""

MAX_STRANGERS = 512
"""Anonymous connections. No more than a quarter of the descriptors either: the others are kept for sidecars with a
certificate, and for the CA's own files and store."""

MAX_OF_ONE_IDENTITY = 256
"""As many replicas as a service's followers may be. A sidecar keeps one connection, and for a moment a second."""

_HERE = Listener("inbound", "https")


class CaListener:
    """The connections of one CA, at all its listening sockets. ``context``: the current TLS context. ``report``: logs a
    fault once (topic, fault or None)."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        api: CaApi,
        context: Callable[[], Context],
        gate: Gate,
        log: Log,
        clock: Callable[[], datetime],
        report: Callable[[str, str | None], object],
    ) -> None:
        self._listeners = listeners
        self.api = api
        self.routes = api.routes()
        self.context = context
        self.gate = gate
        self.log = log
        self.clock = clock
        self.report = report
        self.closing = Closing()
        self.room = Room(_strangers_limit())
        self.lobby = Lobby(HANDSHAKE_SECONDS)
        self.members: Counter[SpiffeId] = Counter()  # connections with a certificate, by identity
        self._summaries = Summaries(wire.CA_SERVICE, log, clock)
        self._denials = Summaries(wire.CA_SERVICE, log, clock, "requests")
        api.fold = partial(self._denials.fold_refusal, _HERE)

    async def run(self, stop: trio.Event) -> None:
        """Serves until ``stop``; then closes the listeners, and drains its connections for :data:`DRAIN_SECONDS`."""
        try:
            async with trio.open_nursery() as reporting:
                for summaries in (self._summaries, self._denials):
                    reporting.start_soon(summaries.run)
                await self._serve(stop)
                reporting.cancel_scope.cancel()
        finally:
            for summaries in (self._summaries, self._denials):
                summaries.write_all()

    async def _serve(self, stop: trio.Event) -> None:
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(self.lobby.run)
                for listener in self._listeners:
                    accepting.start_soon(self._accept, listener, connections)
                await stop.wait()
                accepting.cancel_scope.cancel()
            for listener in self._listeners:
                listener.close()
            self.closing.begin()
            connections.cancel_scope.deadline = trio.current_time() + DRAIN_SECONDS

    async def _accept(self, listener: socket.socket, connections: trio.Nursery) -> None:
        await accept_all(
            listener,
            lambda sock: self._admit(connections, sock),
            lambda fault: self.report("accepting", fault),
            self.room.cut_one,
            self.room,
        )

    def _admit(self, connections: trio.Nursery, sock: socket.socket) -> None:
        if self.members.total() > MAX_CONNECTIONS:
            sockets.hard_close(sock)
            self.api.metrics.refused("overloaded")
        else:
            _Connection(self, sock, connections)

    def log_refusal(self, refusal: Refused, channel: TlsChannel | None, address: str | None) -> None:
        """Writes the line of a refused handshake, unless it was a probe, or a summary counts it. ``channel``: None if the
        caller has not spoken."""
        unverified, connection_id = ({}, None) if channel is None else (channel.presented, channel.connection_id)
        reason = str(refusal.reason)
        if refusal.reason is Reason.PROBE:
            return  # may come every few seconds
        if not is_about_certificate(unverified, refusal.peer_reason, connection_id) and self._summaries.fold_refusal(
            _HERE, reason, address
        ):
            return
        self.log.warning(
            "refused",
            reason=reason,
            message=f"refused: the CA {refusal.detail}",
            peer_address=address,
            unverified=unverified,
        )


class _Connection:
    """One accepted socket, until it is closed. It waits in the lobby first, then it has a task in ``connections``. ``peer``:
    who it is. ``_stranger``: its part of the budget while it is anonymous, which it is from its start; else None, and it
    counts in ``members``."""

    def __init__(self, listener: CaListener, sock: socket.socket, connections: trio.Nursery) -> None:
        self._listener = listener
        self._sock = sock
        self._connections = connections
        self._began = trio.current_time()
        self._scope = trio.CancelScope(deadline=self._began + ANONYMOUS_SECONDS)
        self._address = ""
        self.peer = Peer("", None, ())
        with contextlib.suppress(OSError):  # reset already
            self._address = sockets.text(sock.getpeername())
        self._stranger: Stranger | None = (stranger := listener.room.enter(sock, self._make_room))
        goes_first = listener.gate.is_proved(stranger.address)
        self._guest = listener.lobby.enter(sock, self._leave_lobby, goes_first=goes_first)

    def _make_room(self) -> None:
        self._listener.api.metrics.refused("overloaded")
        self._scope.cancel()
        if self._listener.lobby.expel(self._guest):
            self._leave()
            sockets.hard_close(self._sock)

    def _leave_lobby(self, left: Left) -> None:
        here = self._listener
        if left in SPOKEN:
            self._connections.start_soon(self.serve)
            return
        self._leave()
        sockets.hard_close(self._sock)
        if left is Left.LATE:
            here.api.metrics.refused("handshake_timeout")
        elif left is not Left.CANCELLED:
            reason = Reason.PROBE if left is Left.UNUSED else Reason.HANDSHAKE_FAILED
            refusal = Refused(reason, "saw the peer close the connection before the handshake was done")
            here.api.metrics.refused(str(reason))
            try:
                here.log_refusal(refusal, None, self._address or None)
            except Exception as error:  # a bug in the line of one socket must not end the lobby, and all with it
                here.log.bug("internal_error", error, peer_address=self._address)

    async def serve(self) -> None:
        """Serves the connection. No exception escapes."""
        with self._scope:
            try:
                await self._serve()
            except Exception as error:  # one connection's bug must not end the others
                self._listener.log.bug("internal_error", error, peer_address=self._address)
            finally:
                self._leave()

    async def _serve(self) -> None:
        here, sock = self._listener, self._sock
        channel = here.context().server((wire.ALPN,), here.clock)
        try:
            sockets.prepare(sock)
            with Deadline(self._began + HANDSHAKE_SECONDS):
                await run(shake_hands(sock, channel, here.gate, self._key, self._greeted))
            stream = SecureStream(sock, channel)
            try:
                if self._is_admitted(Peer(self._address, channel.svid, channel.path)):
                    await converse(
                        stream, self.peer, self._routes(), here.api.metrics.answered, here.closing, self._pace
                    )
            finally:
                if self._stranger is not None and self._stranger.is_cut:
                    stream.abandon()
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                    await self._pace()  # many strangers that leave at once are not ended in one turn of the loop
                    await stream.close()
        except Refused as refusal:
            here.api.metrics.refused(str(refusal.reason))
            here.log_refusal(refusal, channel, self._address or None)
            await sockets.linger(sock)
        except trio.TooSlowError:
            here.api.metrics.refused("handshake_timeout")
        except (BrokenStreamError, OSError):
            pass  # the caller disconnected; it retries
        finally:
            sockets.hard_close(sock)
            channel.free()

    # -- anonymous or not ----------------------------------------------------------------------------------------------

    def _is_admitted(self, proved: Peer) -> bool:
        """Takes the peer that the handshake proved. False if its identity has too many connections."""
        here = self._listener
        self.peer = here.api.in_good_standing(proved)
        if self.peer.svid is None:
            return True
        identity = self.peer.svid.id
        if here.members[identity] >= MAX_OF_ONE_IDENTITY:
            here.api.metrics.refused("overloaded")
            here.report(_many(identity), f"{identity} has {MAX_OF_ONE_IDENTITY} connections; no more are accepted")
            return False
        self._leave()
        here.gate.prove(self._key)
        here.members[identity] += 1
        self._scope.deadline = math.inf
        return True

    def _leave(self) -> None:
        """Gives its place back, whichever it has."""
        here = self._listener
        if self._stranger is not None:
            here.room.leave(self._stranger)
            self._stranger = None
        elif self.peer.svid is not None:
            identity = self.peer.svid.id
            here.members[identity] -= 1
            if here.members[identity] <= MAX_OF_ONE_IDENTITY // 2:
                here.report(_many(identity), None)
            if not here.members[identity]:
                del here.members[identity]

    def _judge_again(self) -> None:
        """Makes the connection anonymous if its peer was revoked meanwhile. It does not become a member again."""
        standing = self._listener.api.in_good_standing(self.peer)
        if self.peer.svid is not None and standing.svid is None:
            self._leave()
            self._stranger = self._listener.room.enter(self._sock, self._make_room)
            self.peer = standing

    # -- requests ------------------------------------------------------------------------------------------------------

    @property
    def _key(self) -> str:
        return address_key(self._address.rpartition(":")[0].strip("[]"))

    def _greeted(self) -> None:
        if self._stranger is not None:
            self._listener.room.known(self._stranger)

    async def _pace(self) -> None:
        if self._stranger is not None:
            await self._listener.gate.turn(self._key)
        else:
            await trio.lowlevel.checkpoint()

    def _routes(self) -> Routes:
        return {
            path: {method: partial(self._answer, handler) for method, handler in methods.items()}
            for path, methods in self._listener.routes.items()
        }

    async def _answer(self, handler: Handler, request: Request) -> Response:
        """Answers a complete request, in which time the connection is not cut, whoever it is."""
        self._judge_again()
        if self._stranger is not None:
            self._listener.room.busy(self._stranger)
            self._scope.deadline = math.inf
        try:
            return await handler(replace(request, peer=self.peer))
        finally:
            if self._stranger is not None:
                self._listener.room.known(self._stranger)
                self._scope.deadline = trio.current_time() + ANONYMOUS_SECONDS


def _many(identity: SpiffeId) -> str:
    """The topic of reports on an identity with too many connections."""
    return f"connections of {identity}"


def _strangers_limit() -> int:
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if descriptors == resource.RLIM_INFINITY:
        descriptors = MAX_CONNECTIONS
    return max(1, min(MAX_STRANGERS, MAX_CONNECTIONS // 4, descriptors // 4))
