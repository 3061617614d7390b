"""One use of a pass: from the opening of the local port to the end of the pass, of the program, or by a signal.

How this works. The port is the one outbound listener of a sidecar that lives only here (:mod:`sidecar.connect.person`), with
one check before its own: whose process it is that connects (:mod:`sidecar.connect.owner`). The certificate is not renewed,
so at its end every connection is cut; the callee's sidecar does so too.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial

import trio

from sidecar.connect import program
from sidecar.connect.owner import Ends, can_tell, find_owner
from sidecar.connect.person import Person
from sidecar.connect.words import ASK, PersonLog
from sidecar.identity.reasons import Reason, Refused
from sidecar.observe.alarm_log import AlarmLog
from sidecar.proxy.lines import Lines
from sidecar.proxy.listener import Handler
from sidecar.proxy.live import Live
from sidecar.proxy.node import Node
from sidecar.proxy.server import Server
from sidecar.relay.strand import Steps

HOST_VARIABLE, PORT_VARIABLE = "MESH_CONNECT_HOST", "MESH_CONNECT_PORT"
"""Where the program finds the port."""

WARNING = timedelta(minutes=1)
"""How long before the end of the pass it is told."""

LOOK_SECONDS = 0.5
ENDED = 1
"""The exit code when the pass has ended."""


class Session:
    """The open port. The constructor opens it. Raises :class:`UsageError`. ``any_user``: whoever connects is let through."""

    def __init__(
        self, person: Person, log: PersonLog, clock: Callable[[], datetime], *, any_user: bool = False
    ) -> None:
        self._person, self._log, self._clock = person, log, clock
        node = Node(person.config, person.snapshot, log, clock, alarms=AlarmLog(log, clock))
        self._server = Server(node)
        if not any_user and can_tell():
            for listener in self._server.listeners:
                listener.handler = own_user_only(listener.handler, os.getuid())
        self._stop = trio.Event()
        self._code = 0

    @property
    def address(self) -> tuple[str, int]:
        return self._server.listeners[0].address

    async def run(
        self, words: Sequence[str], environ: Mapping[str, str], ready: Callable[[], object] = lambda: None
    ) -> int:
        """Serves until the end; returns the exit code. ``words``: the program to start, if there is one; it has ``environ``
        and where the port is. ``ready`` is called when connections are taken. Raises :class:`UsageError`."""
        node, (host, port) = self._server.node, self.address
        process = None
        try:
            with trio.open_signal_receiver(*program.FORWARDED) as signals:
                if words:  # the port is open: what connects before it is served waits
                    told = {HOST_VARIABLE: host, PORT_VARIABLE: str(port)}
                    process = await program.start(words, {**environ, **told})
                async with trio.open_nursery() as machinery:
                    for part in (node.relay, node.gate, node.resolver, node.alarm_log):
                        machinery.start_soon(part.run)
                    async with trio.open_nursery() as nursery:
                        everything = nursery.cancel_scope
                        nursery.start_soon(self._hear, signals, process, everything)
                        nursery.start_soon(self._watch, everything)
                        if process is not None:
                            nursery.start_soon(self._follow, process)
                        ready()
                        await self._server.serve(self._stop)
                        everything.cancel()
                    machinery.cancel_scope.cancel()
        finally:
            self._server.close()
            if process is not None:
                with trio.CancelScope(shield=True):
                    await program.stop(process)
        return self._code

    async def _hear(
        self, signals: AsyncIterator[int], process: trio.Process | None, everything: trio.CancelScope
    ) -> None:
        """Passes signals on; without a program they end us, a second one at once."""
        async for received in signals:
            if process is not None:
                program.forward(process, received)
            elif self._stop.is_set():
                everything.cancel()
            else:
                self._stop.set()

    async def _follow(self, process: trio.Process) -> None:
        """Ends us with the program."""
        self._code = program.exit_code(await process.wait())
        self._stop.set()

    async def _watch(self, everything: trio.CancelScope) -> None:
        """Ends us with the pass, by the wall clock: a machine may have slept."""
        until, warned = self._person.until, self._person.until - self._clock() <= WARNING
        while (left := until - self._clock()) > timedelta():
            if left <= WARNING and not warned:
                warned = True
                self._log.say(f"this pass ends at {until:%T} UTC, in a minute: all its connections are cut then")
            await trio.sleep(LOOK_SECONDS)
        self._log.say(f"this pass has ended at {until:%T} UTC; {ASK} for another")
        self._code = ENDED
        everything.cancel()


def own_user_only(handler: Handler, user: int, find: Callable[[Ends], int | None] = find_owner) -> Handler:
    """The handler, for connections of this user's processes. Fails closed: one of an unknown user is refused."""

    def handle(sock: socket.socket, lines: Lines, live: Live) -> Steps[None]:
        try:
            ends = sock.getpeername()[:2], sock.getsockname()[:2]
        except OSError as error:
            raise Refused(Reason.CLIENT_RESET, f"lost the connection: {error.strerror or error}") from error
        try:
            found = yield partial(trio.to_thread.run_sync, find, ends)
        except RuntimeError as error:  # the system has no thread left
            raise Refused(Reason.OVERLOADED, f"whose connection it is could not be looked up: {error}") from error
        if found != user:
            whose = "a program that is gone" if found is None else f"user {found}"
            raise Refused(
                Reason.POLICY_DENIED,
                f"refused a connection to its port: it came from {whose}, and the pass is of user {user} (--any-user)",
            )
        yield from handler(sock, lines, live)

    return handle
