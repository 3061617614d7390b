"""The listeners of one sidecar: accept, guard each connection, log it exactly once, drain.

How it works. Each listener is a task that accepts; each connection is a generator without a task
(:class:`~sidecar.relay.strand.Strand`). It has a :class:`~sidecar.observe.record.ConnectionRecord`, or one for each stream
of a kept channel (:class:`~sidecar.proxy.lines.Lines`), enters the registry (before anything is judged, so that a reload
finds it), and goes through the direction's handler, which closes both sockets. A socket that a stranger has opened waits in
the :class:`~sidecar.transport.lobby.Lobby` until the stranger has spoken; only then is it a connection. On a permissive port
its first byte decides whether that is one of :mod:`sidecar.proxy.inbound` or of :mod:`sidecar.proxy.cleartext`.

Invariants. Every stream, and every accepted socket without one, gives exactly one line for the access log (which
``access_log`` may leave out), or counts once in a summary of strangers (:mod:`sidecar.observe.folding`), and counts once in
the metrics: also if it is refused, cut by a reload, stopped at the end of the drain, or ended by a bug. No exception of a
connection reaches another one. The server owns ``sock``: after a refusal it is still open, so that an alert or verdict can
reach the peer before the close.

Strangers. An inbound connection is a stranger from its accept until :meth:`Node.admit`, after its peer was judged; one that
is refused stays a stranger until its socket is closed. If the room for strangers is full, one is displaced: its socket is
reset at once. Judged peers and our own app's connections need a place each (``limits.connections``), and no stranger has
one.

A configured listener is one :class:`Listener` for each address of its host. With ``timeouts.wait`` it is closed at first
(:mod:`sidecar.proxy.waiting`).

Drain. After ``stop``, connections are looked at every :data:`DRAIN_LOOK_SECONDS` (:mod:`sidecar.proxy.draining`): idle ones
are cut. When no connection holds up the drain, or its time is over, the listeners close, and what is left is cancelled.
Until then they accept: to our own app, and to callers of a service without replicas, a closed listener is an outage.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable
from functools import partial

import trio

from sidecar.config.sidecar_yaml import Inbound, MeshPort, Outbound
from sidecar.documents.address import Address
from sidecar.host.follow import ReportOnce
from sidecar.identity.reasons import Reason, Refused
from sidecar.observe.record import ConnectionRecord, Direction
from sidecar.observe.summaries import Summaries
from sidecar.policy.names import ADMIN_PORT
from sidecar.proxy import cleartext, inbound, outbound
from sidecar.proxy.channels import Channels
from sidecar.proxy.draining import Look, Phase
from sidecar.proxy.lines import Lines
from sidecar.proxy.listener import Handler, Listener
from sidecar.proxy.live import Live
from sidecar.proxy.loops import LoopGuard
from sidecar.proxy.node import Node
from sidecar.proxy.own_port import OwnApp
from sidecar.proxy.suspects import look_at
from sidecar.proxy.waiting import Trial, Waiting, ask_app, ask_callee
from sidecar.relay.strand import Steps, Stopped, Strand
from sidecar.transport import dial, sockets
from sidecar.transport.accepting import accept_all
from sidecar.transport.dial import SocketAddress
from sidecar.transport.lobby import SPOKEN, Left, Lobby

LOOK_SECONDS = 1.0
"""How often listeners on a network interface are examined."""

DRAIN_LOOK_SECONDS = 0.05

_DRAINED = "cut at the end of the drain"


class Server:
    """Listeners of one sidecar: those of its configuration, unless ``ports`` and ``routes`` are given.

    The constructor opens them and raises :class:`UsageError`; serving does not fail. The server owns every socket that it
    accepts, and closes it together with the connection's other socket.
    """

    def __init__(
        self, node: Node, ports: Iterable[Inbound] | None = None, routes: Iterable[Outbound] | None = None
    ) -> None:
        self.node = node
        self.listeners: list[Listener] = []
        self.listening: list[SocketAddress] = []
        self.waiting = Waiting(node)
        self._trials: dict[Listener, Trial] = {}
        self.channels = Channels(node)
        self.own_app = OwnApp(node.log)
        self._lobby = Lobby(node.config.timeouts.handshake)
        self._summaries = Summaries(node.config.service, node.log, node.clock)
        self._open_connections: dict[Live, Look] = {}
        try:
            self._open(
                node.config.inbound if ports is None else ports, node.config.outbound if routes is None else routes
            )
        except BaseException:
            self.close()
            raise

    @property
    def faults(self) -> list[str]:
        """The reasons why no connection reaches a listener now, a sentence each."""
        return [listener.fault for listener in self.listeners if listener.fault is not None]

    def close(self) -> None:
        """Closes the listeners. Accepted connections continue."""
        for listener in self.listeners:
            listener.sock.close()

    async def serve(self, stop: trio.Event) -> None:
        """Serves until ``stop``, then drains. The node's relay, gate and resolver must be running."""
        try:
            async with trio.open_nursery() as reporting:
                reporting.start_soon(self._summaries.run)
                reporting.start_soon(self.channels.run)
                async with trio.open_nursery() as connections:
                    connections.start_soon(self._lobby.run)
                    async with trio.open_nursery() as accepting:
                        for listener in self.listeners:
                            accepting.start_soon(self._accept, listener, connections)
                        accepting.start_soon(self._look_after_devices)
                        await stop.wait()
                        await self._drain()
                        accepting.cancel_scope.cancel()
                    self.close()
                    connections.cancel_scope.cancel()
                reporting.cancel_scope.cancel()
        finally:
            self.close()
            for live in list(self._open_connections):
                live.end()
            self._summaries.write_all()

    async def _drain(self) -> None:
        """Returns when no connection is worth waiting for, or the drain time is over."""
        with trio.move_on_after(self.node.config.timeouts.drain):
            while self._is_held_up():  # noqa: ASYNC110  # time alone makes a connection idle
                await trio.sleep(DRAIN_LOOK_SECONDS)

    def _is_held_up(self) -> bool:
        """Whether a connection has something under way. Cuts those that are idle."""
        held = False
        self.node.registry.end_idle()
        for live, look in list(self._open_connections.items()):
            phase = look.again(live.carried, trio.current_time())
            if phase is Phase.IDLE:
                live.cut(Reason.DRAINED)
            held = held or phase in (Phase.IN_FLIGHT, Phase.ANSWERING)
        return held

    # -- opening -------------------------------------------------------------------------------------------------------

    def _open(self, ports: Iterable[Inbound], routes: Iterable[Outbound]) -> None:
        node, config = self.node, self.node.config
        for index, port in enumerate(ports):
            app = dial.Upstream(f"{config.service}'s app", port.apps, node.resolver, self.listening)
            handler = _inbound(node, port, app)
            trial, bare = partial(ask_app, node, port, app), port if port.mode == "permissive" else None
            where = f"inbound[{index}].listen"
            self._add(where, port.listen, port.device, "inbound", port.port, None, handler, trial, bare)
        admin = config.admin
        if admin is not None and admin.mesh_listen is not None:
            own = MeshPort(port=ADMIN_PORT, listen=admin.mesh_listen, require_alpn=True)
            handler = _inbound(node, own, self.own_app)
            self._add("admin.mesh_listen", own.listen, None, "inbound", ADMIN_PORT, None, handler, None)
        for index, route in enumerate(routes):
            peers = dial.Upstream(f"{route.target}'s sidecar", route.peers, node.resolver, self.listening)
            handler, where, target = (
                _outbound(node, route, peers, self.channels),
                f"outbound[{index}].listen",
                route.shown,
            )
            asked = partial(ask_callee, node, route, peers)
            self._add(where, route.listen, route.device, "outbound", route.port, target, handler, asked)

    def _add(
        self,
        entry: str,
        listen: Address,
        device: str | None,
        direction: Direction,
        port: str,
        upstream: str | None,
        handler: Handler,
        trial: Trial | None,
        permissive: Inbound | None = None,
    ) -> None:
        """Opens one entry of the configuration: a listener for each address of its host. With ``timeouts.wait`` they stay
        closed at first, and ``trial`` says how long; None: it opens at once."""
        where = f"{self.node.config.path}: {entry}"
        closed = self.node.config.timeouts.wait is not None and trial is not None
        for sock in sockets.listen_all(where, listen.host, listen.port, device, closed=closed):
            listener = Listener(where, sock, device, direction, port, upstream, handler, closed=closed)
            listener.permissive = permissive
            self.listeners.append(listener)
            if trial is not None:
                self._trials[listener] = trial
            self.listening.append(listener.address)

    # -- accepting -----------------------------------------------------------------------------------------------------

    async def _accept(self, listener: Listener, connections: trio.Nursery) -> None:
        log, service, wait = self.node.log, self.node.config.service, self.node.config.timeouts.wait
        if listener.closed and wait is not None:
            await self.waiting.open(listener, self._trials[listener], wait)
        faults = ReportOnce[str](lambda event, fault: log.warning(event, service=service, message=fault))
        room = self.node.room
        await listener.accept(
            lambda open_socket: accept_all(
                open_socket,
                lambda sock: self._enter(listener, sock, connections),
                lambda fault: faults.report("accept_paused", fault),
                room.cut_one,
                room if listener.direction == "inbound" else None,
            )
        )

    def _enter(self, listener: Listener, sock: socket.socket, connections: trio.Nursery) -> None:
        """Takes an accepted socket: a stranger's waits for its first message."""
        live = Live()
        record = ConnectionRecord(
            listener.direction,
            self.node.config.service,
            listener.port,
            started=self.node.time(),
            upstream=listener.upstream,
        )
        if listener.direction == "outbound":
            self._begin(listener, sock, live, record, connections)
            return
        with contextlib.suppress(OSError):  # reset already
            record.peer_address = sockets.text(sock.getpeername())

        permissive = listener.permissive

        def leave(left: Left) -> None:
            if left in SPOKEN:
                record.plaintext = permissive is not None and left is not Left.SPOKE
                self._begin(listener, sock, live, record, connections)
            else:
                self._part(sock, live, record, left)

        def displace() -> None:
            if self._lobby.expel(guest):
                live.reason = Reason.OVERLOADED
                self._part(sock, live, record, None)
            else:
                live.cut(Reason.OVERLOADED)
                sockets.hard_close(sock)  # at once: its handshake may have a task, which ends later

        live.stranger = self.node.room.enter(sock, displace)
        goes_first = self.node.gate.is_proved(live.stranger.address)
        may_be_silent = permissive is not None and cleartext.may_be_silent(permissive, self.node.clock())
        guest = self._lobby.enter(sock, leave, goes_first=goes_first, may_be_silent=may_be_silent)

    def _begin(
        self,
        listener: Listener,
        sock: socket.socket,
        live: Live,
        record: ConnectionRecord,
        connections: trio.Nursery,
    ) -> None:
        """Serves an accepted socket from here on, without waiting for it."""
        lines = Lines(record, self._report)
        strand = Strand(
            self.node.relay, connections, self._connection(listener, sock, live, lines), partial(self._ended, lines)
        )
        live.end = strand.stop
        strand.start()

    def _part(self, sock: socket.socket, live: Live, record: ConnectionRecord, left: Left | None) -> None:
        """Closes and reports a socket that never became a connection. ``left``: None if it was displaced."""
        record.handshake_ms = (self.node.time() - record.started) * 1000
        if left is None:
            _record_cut(live, record)
            sockets.hard_close(sock)
        elif left is Left.CANCELLED:
            record.end(Reason.DRAINED, _DRAINED)
        else:
            record.refuse(_never_spoke(left, self.node.config.timeouts.handshake))
        sock.close()
        if live.stranger is not None:
            self.node.room.leave(live.stranger)
        self._report(record)

    async def _look_after_devices(self) -> None:
        """Has listeners follow the network interface that they are bound to."""
        log, service = self.node.log, self.node.config.service
        bound = [listener for listener in self.listeners if listener.device is not None]

        def heard_again(listener: Listener) -> None:
            where = f"{listener.where}: listens on {sockets.text(listener.address)} again"
            log.info("listening", service=service, message=f"{where}: its network interface is back")

        faults = ReportOnce[Listener](
            lambda _, fault: log.warning("deaf", service=service, message=fault), heard_again, exact=True
        )
        while bound:
            await trio.sleep(LOOK_SECONDS)
            for listener in bound:
                anew = listener.look()
                if not faults.report(listener, listener.fault) and anew:
                    heard_again(listener)

    def _connection(self, listener: Listener, sock: socket.socket, live: Live, lines: Lines) -> Steps[None]:
        """One connection, until it is closed. Raises nothing but :class:`Stopped`."""
        node = self.node
        self._open_connections[live] = Look(callee_is_app=listener.direction == "inbound")
        node.registry.enter(live)
        try:
            refused = yield from self._serve_and_record(listener, sock, live, lines)
            if refused and listener.direction == "inbound" and not lines.present.plaintext:
                yield from sockets.lingering(sock)  # so that the alert or the verdict is not lost
        finally:
            # No effect if it is closed already. A plaintext caller sees a refusal as a reset.
            sockets.hard_close(sock)
            del self._open_connections[live]
            node.registry.leave(live)
            if live.stranger is not None:
                node.room.leave(live.stranger)
            live.end = _nothing  # a cycle: the strand knows the connection

    def _serve_and_record(self, listener: Listener, sock: socket.socket, live: Live, lines: Lines) -> Steps[bool]:
        """Serves the connection and reports what is open in ``lines``, however it ends. Returns whether it was refused."""
        node = self.node
        try:
            _record_caller(sock, lines.present)
            if listener.direction == "outbound":
                node.admit(live)
            yield from listener.handler(sock, lines, live)
        except Stopped:
            if live.reason is None:
                lines.present.end(Reason.DRAINED, _DRAINED)
            else:
                _record_cut(live, lines.present)
            raise
        except Refused as refusal:
            node.registry.leave(live)
            if live.was_displaced:  # the refusal reports its closed socket, which is the consequence
                _record_cut(live, lines.present)
            else:
                lines.present.refuse(refusal)
                return True
        except Exception as error:  # a bug in one connection must not end the others
            lines.present.end(Reason.INTERNAL_ERROR, f"a bug in this program ended it: {type(error).__name__}")
            node.log.bug(
                "internal_error", error, service=node.config.service, connection_id=lines.present.connection_id
            )
        finally:
            lines.end()
        return False

    def _ended(self, lines: Lines, bug: Exception | None) -> None:
        """A connection has ended; if by a bug of its very end, that is logged, and no other one hears of it."""
        if bug is not None:
            connection_id = lines.present.connection_id
            self.node.log.bug("internal_error", bug, service=self.node.config.service, connection_id=connection_id)

    def _report(self, record: ConnectionRecord) -> None:
        """Counts a connection that has ended, and writes its line; the line of a stranger may be folded into a summary.
        Raises nothing: a bug in the report of one connection must not end the others."""
        node = self.node
        try:
            look_at(node, record)
            line = record.finish(node.time())
            if not (folded := self._summaries.fold(record)):
                node.log.connection(line)
            node.announced.note(record, node.time())
            at = f"{node.clock():%FT%TZ}" if record.decision == "deny" else ""
            node.metrics.add(record, at, folded=folded)
        except Exception as error:
            node.log.bug("internal_error", error, service=node.config.service, connection_id=record.connection_id)


def _record_cut(live: Live, record: ConnectionRecord) -> None:
    """Records that this sidecar has cut a connection, if it has."""
    if live.was_displaced:
        detail = "cut a connection whose peer had not proved an identity yet, to make room: too many of these are open"
        record.refuse(Refused(Reason.OVERLOADED, detail))
    elif live.reason is Reason.DRAINED:
        record.end(live.reason, "idle, and this sidecar is stopping")
    elif live.reason is not None:
        record.end(live.reason, f"cut: {live.admission} is no longer allowed or trusted" if live.admission else None)


def _never_spoke(left: Left, seconds: float) -> Refused:
    """Why a stranger is refused that did not send its first message within ``seconds``."""
    if left is Left.LATE:
        return Refused(Reason.HANDSHAKE_TIMEOUT, f"received no complete handshake within {seconds:g} s")
    reason = Reason.PROBE if left is Left.UNUSED else Reason.HANDSHAKE_FAILED
    return Refused(reason, "saw the peer close the connection before the handshake was done")


def _record_caller(sock: socket.socket, record: ConnectionRecord) -> None:
    """Records the caller's address and sets the socket's options. Raises :class:`Refused` if the caller is gone already: at
    an inbound port as ``probe`` if it sent nothing."""
    try:
        caller = sockets.text(sock.getpeername())
        sock.setblocking(False)  # its other options are its listener's
    except OSError as error:
        reason = Reason.PROBE if record.direction == "inbound" and not _has_data(sock) else Reason.CLIENT_RESET
        raise Refused(reason, f"lost the connection after accepting it: {error.strerror or error}") from error
    if record.direction == "inbound":
        record.peer_address = caller
    else:
        record.client_address = caller


def _has_data(sock: socket.socket) -> bool:
    """Whether a socket that its caller has reset still holds a byte of it."""
    try:
        return bool(sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:
        return False


def _nothing() -> None:
    return


def _inbound(node: Node, port: MeshPort, app: inbound.App) -> Handler:
    def handle(sock: socket.socket, lines: Lines, live: Live) -> Steps[None]:
        if lines.present.plaintext and isinstance(port, Inbound):
            return cleartext.serve(node, port, app, sock, lines.present, live)
        return inbound.serve(node, port, app, sock, lines, live)

    return handle


def _outbound(node: Node, route: Outbound, peers: dial.Upstream, channels: Channels) -> Handler:
    loops = LoopGuard(str(route.target))

    def handle(sock: socket.socket, lines: Lines, live: Live) -> Steps[None]:
        return outbound.serve(node, route, peers, channels, loops, sock, lines.present, live)

    return handle
