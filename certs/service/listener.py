"""Who is let in to ask the CA: accepting, the handshake, one request after the other. Fails closed, and shuts nobody out.

A caller without a certificate gets in too, for it may enrol; what it may ask is :mod:`certs.service.api`'s to say. So
whoever reaches the port could hold it: a connection that has shown no certificate (a *stranger*) gives way when there are
too many.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import datetime

import trio

from certs.protocol import wire
from certs.service.api import CaApi
from sidecar.identity.reasons import Reason, Refused
from sidecar.identity.spiffe import claims
from sidecar.observe.logs import Log
from sidecar.transport import sockets
from sidecar.transport.accepting import accept_all
from sidecar.transport.gate import Gate
from sidecar.transport.handshake import shake_hands
from sidecar.transport.http1 import Closing, Peer, converse
from sidecar.transport.stream import BrokenStreamError, SecureStream
from sidecar.transport.tls import Context

HANDSHAKE_SECONDS = 5.0
DRAIN_SECONDS = 5.0
MAX_CONNECTIONS = 4096
"""When there are as many, a new one takes the place of the oldest stranger: whoever holds thousands open and asks nothing
keeps no sidecar from its renewal."""


class CaListener:
    """The connections of one listener. ``context``: what is in force in TLS now; ``tell``: says once what is wrong."""

    def __init__(
        self,
        listener: socket.socket,
        api: CaApi,
        context: Callable[[], Context],
        gate: Gate,
        log: Log,
        clock: Callable[[], datetime],
        tell: Callable[[str, str | None], object],
    ) -> None:
        self._listener = listener
        self._api = api
        self._routes = api.routes()
        self._context = context
        self._gate = gate
        self._log = log
        self._clock = clock
        self._tell = tell
        self._closing = Closing()
        self._strangers: dict[trio.CancelScope, None] = {}  # in the order in which they came

    async def run(self, stop: trio.Event) -> None:
        """Serves until ``stop``; then closes the listener, and gives what is under way :data:`DRAIN_SECONDS`."""
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(self._accept, connections)
                await stop.wait()
                accepting.cancel_scope.cancel()
            self._listener.close()
            self._closing.begin()
            connections.cancel_scope.deadline = trio.current_time() + DRAIN_SECONDS

    async def _accept(self, connections: trio.Nursery) -> None:
        await accept_all(
            self._listener,
            lambda sock: self._admit(connections, sock),
            lambda fault: self._tell("accepting", fault),
            self._cut_a_stranger,
        )

    def _admit(self, connections: trio.Nursery, sock: socket.socket) -> None:
        if len(connections.child_tasks) > MAX_CONNECTIONS and not self._cut_a_stranger():
            sock.close()
            self._api.metrics.refused("overloaded")
        else:
            connections.start_soon(self._connection, sock)

    def _cut_a_stranger(self) -> bool:
        """Makes room; returns whether there was anybody to cut."""
        oldest = next(iter(self._strangers), None)
        if oldest is None:
            return False
        del self._strangers[oldest]
        self._api.metrics.refused("overloaded")
        oldest.cancel()
        return True

    async def _connection(self, sock: socket.socket) -> None:
        with trio.CancelScope() as scope:
            self._strangers[scope] = None
            try:
                await self._serve_one(sock, scope)
            finally:
                self._strangers.pop(scope, None)

    async def _serve_one(self, sock: socket.socket, scope: trio.CancelScope) -> None:
        """One connection. Nothing that happens in it escapes."""
        address, channel = "", self._context().server(wire.ALPN, self._clock)
        try:
            address = sockets.text(sock.getpeername())
            sockets.prepare(sock)
            with trio.fail_after(HANDSHAKE_SECONDS):
                await shake_hands(sock, channel, self._gate)
            if channel.svid is not None:
                self._strangers.pop(scope, None)
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
            message = f"refused: the CA {refusal.detail}"
            if refusal.reason is Reason.HANDSHAKE_FAILED and channel.connection_id is None:
                return  # it said nothing and went: whoever looks whether the port is open, every few seconds
            self._log.warning(
                "refused",
                reason=str(refusal.reason),
                message=message,
                peer_address=address,
                unverified={} if channel.leaf is None else claims(channel.leaf),
            )
            await sockets.linger(sock)
        except trio.TooSlowError:
            self._api.metrics.refused("handshake_timeout")
        except (BrokenStreamError, OSError):
            pass  # a caller that is gone; it asks again
        except Exception as error:  # one connection's bug must not end the others
            self._log.bug("internal_error", error, peer_address=address)
        finally:
            sockets.hard_close(sock)
