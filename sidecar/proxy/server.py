"""The listeners of one sidecar: accept, guard each connection, log it exactly once, drain."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

import trio

from sidecar.config.sidecar_yaml import Inbound, Outbound
from sidecar.host.follow import ReportOnce
from sidecar.identity.reasons import Reason, Refused
from sidecar.observe.record import ConnectionRecord, Direction
from sidecar.proxy import inbound, outbound
from sidecar.proxy.carry import Ends
from sidecar.proxy.live import Live
from sidecar.proxy.node import Node
from sidecar.transport import dial, sockets
from sidecar.transport.accepting import accept_all
from sidecar.transport.dial import SocketAddress

Handler = Callable[[socket.socket, ConnectionRecord, Live], Awaitable[Ends]]


@dataclass(frozen=True, slots=True)
class Listener:
    """An open listening socket and who serves what it accepts. ``upstream`` is where that is carried to, for the log."""

    sock: socket.socket
    direction: Direction
    port: str
    upstream: str | None
    handler: Handler

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens, with the port that the system chose if 0 was asked for."""
        host, port = self.sock.getsockname()[:2]
        return host, port


class Server:
    """Listeners of one sidecar: those that its configuration says, unless ``ports`` and ``routes`` are given.

    Opening them is what can fail, at once and with :class:`UsageError`; serving cannot. The server owns every socket that it
    accepts: it alone closes it, and with it the other end of a connection that was carried.
    """

    def __init__(
        self, node: Node, ports: Iterable[Inbound] | None = None, routes: Iterable[Outbound] | None = None
    ) -> None:
        self.node = node
        self.listeners: list[Listener] = []
        self.listening: list[SocketAddress] = []
        try:
            self._open(
                node.config.inbound if ports is None else ports, node.config.outbound if routes is None else routes
            )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stops accepting; connections that were accepted go on."""
        for listener in self.listeners:
            listener.sock.close()

    async def serve(self, stop: trio.Event) -> None:
        """Serves until ``stop``, then drains: accepts no more, lets connections finish within the drain time, cuts the
        rest. Expects the node's relay, gate and resolver to be running."""
        drain = self.node.config.timeouts.drain
        try:
            async with trio.open_nursery() as connections:
                async with trio.open_nursery() as accepting:
                    for listener in self.listeners:
                        accepting.start_soon(self._accept, listener, connections)
                    await stop.wait()
                    accepting.cancel_scope.cancel()
                self.close()
                connections.cancel_scope.deadline = trio.current_time() + drain
        finally:
            self.close()

    # -- opening -------------------------------------------------------------------------------------------------------

    def _open(self, ports: Iterable[Inbound], routes: Iterable[Outbound]) -> None:
        node, config = self.node, self.node.config
        for index, port in enumerate(ports):
            sock = sockets.listen(f"{config.path}: inbound[{index}].listen", port.listen.host, port.listen.port)
            app = dial.Upstream(f"{config.service}'s app", port.apps, node.resolver, self.listening)
            self._add(Listener(sock, "inbound", port.port, None, _inbound(node, port, app)))
        for index, route in enumerate(routes):
            where = f"{config.path}: outbound[{index}].listen"
            sock = sockets.listen(where, route.listen.host, route.listen.port, route.device)
            peers = dial.Upstream(f"{route.target}'s sidecar", route.peers, node.resolver, self.listening)
            self._add(Listener(sock, "outbound", route.port, str(route.target), _outbound(node, route, peers)))

    def _add(self, listener: Listener) -> None:
        self.listeners.append(listener)
        self.listening.append(listener.address)

    # -- accepting -----------------------------------------------------------------------------------------------------

    async def _accept(self, listener: Listener, connections: trio.Nursery) -> None:
        log, service = self.node.log, self.node.config.service
        faults = ReportOnce[str](lambda event, fault: log.warning(event, service=service, message=fault))
        await accept_all(
            listener.sock,
            lambda sock: connections.start_soon(self._connection, listener, sock),
            lambda fault: faults.report("accept_paused", fault),
        )

    async def _connection(self, listener: Listener, sock: socket.socket) -> None:
        """One accepted socket, from its record's beginning to its close. Nothing that happens in it escapes."""
        try:
            refused = await self._recorded(listener, sock)
            if refused and listener.direction == "inbound":
                await sockets.linger(sock)  # or the alert, or the verdict, would be lost
        finally:
            # Does nothing to one that is closed. A plaintext caller sees a refusal as a reset.
            sockets.hard_close(sock)

    async def _recorded(self, listener: Listener, sock: socket.socket) -> bool:
        """Serves it and writes its one line, whatever happens. Returns whether it was refused."""
        node = self.node
        record = ConnectionRecord(
            listener.direction, node.config.service, listener.port, started=node.time(), upstream=listener.upstream
        )
        try:
            with node.registry.enter() as live:
                _greet(sock, record)
                if len(node.registry) > node.config.limits.connections:
                    raise Refused(Reason.OVERLOADED, f"has {node.config.limits.connections} connections, its limit")
                ends = await listener.handler(sock, record, live)
                await ends.close()
            if live.reason is not None:
                record.end(
                    live.reason, f"cut: {live.admission} may not go on after a change" if live.admission else None
                )
        except Refused as refusal:
            record.refuse(refusal)
            return True
        except trio.Cancelled:
            record.end(Reason.DRAINED, "cut when the drain time was over")
            raise
        except Exception as error:  # one connection's bug must not end the others
            record.end(Reason.INTERNAL_ERROR, f"a bug in this program ended it: {type(error).__name__}")
            node.log.bug("internal_error", error, service=node.config.service, connection_id=record.connection_id)
        finally:
            node.log.connection(record.finish(node.time()))
            node.metrics.add(record, f"{node.clock():%FT%TZ}")
        return False


def _greet(sock: socket.socket, record: ConnectionRecord) -> None:
    """Notes who calls. Raises :class:`Refused` if that one has gone again already."""
    try:
        caller = sockets.text(sock.getpeername())
        sockets.prepare(sock)
    except OSError as error:
        raise Refused(Reason.CLIENT_RESET, f"lost its caller as soon as it came: {error.strerror or error}") from error
    if record.direction == "inbound":
        record.peer_address = caller
    else:
        record.client_address = caller


def _inbound(node: Node, port: Inbound, app: dial.Upstream) -> Handler:
    async def handle(sock: socket.socket, record: ConnectionRecord, live: Live) -> Ends:
        return await inbound.serve(node, port, app, sock, record, live)

    return handle


def _outbound(node: Node, route: Outbound, peers: dial.Upstream) -> Handler:
    async def handle(sock: socket.socket, record: ConnectionRecord, live: Live) -> Ends:
        return await outbound.serve(node, route, peers, sock, record, live)

    return handle
