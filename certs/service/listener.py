"""The CA's listener: accepting, the TLS handshake, then one request after the other. Fails closed.

How this works. Each accepted connection is one task, :meth:`CaListener._serve_one`: handshake, requests, close.

* A caller without a certificate is accepted too, because it may enrol. The handlers of :mod:`certs.service.api` check what
  it may request. A certificate that is presented must verify, or the handshake fails.
* So every host that reaches the port can open connections. A connection that has not proved a certificate is *anonymous*.
  At :data:`MAX_CONNECTIONS`, or when file descriptors run out, the oldest anonymous connection is closed to make room. A
  connection of a sidecar with a certificate is never closed for that.
* ``_anonymous`` contains each connection from its start until it proves a certificate or ends, in order of arrival.
* A refused handshake is logged; strangers beyond a few a minute are folded into summaries (``sidecar.observe.folding``).
* Nothing escapes from a connection's task: a bug in one is logged and does not end the others.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from datetime import datetime

import trio

from certs.protocol import wire
from certs.service.api import CaApi
from sidecar.identity.reasons import Reason, Refused
from sidecar.identity.spiffe import claims
from sidecar.observe.folding import Listener, is_about_certificate
from sidecar.observe.logs import Log
from sidecar.observe.summaries import Summaries
from sidecar.transport import sockets
from sidecar.transport.accepting import accept_all
from sidecar.transport.gate import Gate
from sidecar.transport.handshake import shake_hands
from sidecar.transport.http1 import Closing, Peer, converse
from sidecar.transport.stream import BrokenStreamError, SecureStream
from sidecar.transport.tls import Context, TlsChannel

HANDSHAKE_SECONDS = 5.0
DRAIN_SECONDS = 5.0
MAX_CONNECTIONS = 4096
"""At this number, a new connection replaces the oldest anonymous one, so that thousands of idle connections do not keep a
sidecar from renewing."""

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
        self._api = api
        self._routes = api.routes()
        self._context = context
        self._gate = gate
        self._log = log
        self._clock = clock
        self._report = report
        self._closing = Closing()
        self._summaries = Summaries(wire.CA_SERVICE, log, clock)
        self._anonymous: dict[trio.CancelScope, None] = {}  # in order of arrival

    async def run(self, stop: trio.Event) -> None:
        """Serves until ``stop``; then closes the listeners, and drains its connections for :data:`DRAIN_SECONDS`."""
        try:
            async with trio.open_nursery() as reporting:
                reporting.start_soon(self._summaries.run)
                await self._serve(stop)
                reporting.cancel_scope.cancel()
        finally:
            self._summaries.write_all()

    async def _serve(self, stop: trio.Event) -> None:
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                for listener in self._listeners:
                    accepting.start_soon(self._accept, listener, connections)
                await stop.wait()
                accepting.cancel_scope.cancel()
            for listener in self._listeners:
                listener.close()
            self._closing.begin()
            connections.cancel_scope.deadline = trio.current_time() + DRAIN_SECONDS

    async def _accept(self, listener: socket.socket, connections: trio.Nursery) -> None:
        await accept_all(
            listener,
            lambda sock: self._admit(connections, sock),
            lambda fault: self._report("accepting", fault),
            self._close_oldest_anonymous,
        )

    def _admit(self, connections: trio.Nursery, sock: socket.socket) -> None:
        if len(connections.child_tasks) > MAX_CONNECTIONS and not self._close_oldest_anonymous():
            sock.close()
            self._api.metrics.refused("overloaded")
        else:
            connections.start_soon(self._connection, sock)

    def _close_oldest_anonymous(self) -> bool:
        """Makes room; returns whether there was an anonymous connection to close."""
        oldest = next(iter(self._anonymous), None)
        if oldest is None:
            return False
        del self._anonymous[oldest]
        self._api.metrics.refused("overloaded")
        oldest.cancel()
        return True

    async def _connection(self, sock: socket.socket) -> None:
        with trio.CancelScope() as scope:
            self._anonymous[scope] = None
            try:
                await self._serve_one(sock, scope)
            finally:
                self._anonymous.pop(scope, None)

    async def _serve_one(self, sock: socket.socket, scope: trio.CancelScope) -> None:
        """Serves one connection. No exception escapes."""
        address, channel = "", self._context().server(wire.ALPN, self._clock)
        try:
            address = sockets.text(sock.getpeername())
            sockets.prepare(sock)
            with trio.fail_after(HANDSHAKE_SECONDS):
                await shake_hands(sock, channel, self._gate)
            if channel.svid is not None:
                self._anonymous.pop(scope, None)
            stream = SecureStream(sock, channel)
            try:
                peer = Peer(address, channel.svid, channel.path)
                await converse(stream, peer, self._routes, self._api.metrics.answered, self._closing)
            finally:
                grace = 0 if scope.cancel_called else 1
                with trio.CancelScope(shield=True, deadline=trio.current_time() + grace):
                    await stream.close()
        except Refused as refusal:
            self._api.metrics.refused(str(refusal.reason))
            self._log_refusal(refusal, channel, address)
            await sockets.linger(sock)
        except trio.TooSlowError:
            self._api.metrics.refused("handshake_timeout")
        except (BrokenStreamError, OSError):
            pass  # the caller disconnected; it retries
        except Exception as error:  # one connection's bug must not end the others
            self._log.bug("internal_error", error, peer_address=address)
        finally:
            sockets.hard_close(sock)

    def _log_refusal(self, refusal: Refused, channel: TlsChannel, address: str) -> None:
        """Writes the line of a refused handshake, unless it was a probe, or a summary counts it."""
        unverified = {} if channel.leaf is None else claims(channel.leaf)
        reason = str(refusal.reason)
        if refusal.reason is Reason.PROBE:
            return  # may come every few seconds
        if not is_about_certificate(
            unverified, refusal.peer_reason, channel.connection_id
        ) and self._summaries.fold_refusal(_HERE, reason, address):
            return
        self._log.warning(
            "refused",
            reason=reason,
            message=f"refused: the CA {refusal.detail}",
            peer_address=address,
            unverified=unverified,
        )
