"""One listening socket of a sidecar: opening it, and listening anew on a network interface that was made anew.

How this works. A listener with ``device:`` is bound to the kernel's number of that interface. When the interface is deleted
and made anew (a container that is disconnected from its network and connected again), it gets another number: the socket
stays open, and nothing reaches it any more. :meth:`Listener.look` asks the socket for its interface. If that is gone or is
another one than it should be, it opens a new socket on the same address and port and closes the old one. Connections are
not touched. While that is not possible, ``fault`` says why.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import trio

from sidecar.config.sidecar_yaml import Inbound
from sidecar.identity.reasons import UsageError
from sidecar.observe.record import Direction
from sidecar.proxy.lines import Lines
from sidecar.proxy.live import Live
from sidecar.relay.strand import Steps
from sidecar.transport import sockets

Handler = Callable[[socket.socket, Lines, Live], Steps[None]]


class Listener:
    """An open listening socket, and the handler of its connections. ``where``: its key in the configuration, for messages.
    ``upstream``: the target of its connections, for the log. ``permissive``: the port in the configuration, if callers
    without TLS may come. ``closed``: its socket refuses connections until :meth:`open`. ``fault``: why no connection
    reaches it now, as a sentence."""

    def __init__(
        self,
        where: str,
        sock: socket.socket,
        device: str | None,
        direction: Direction,
        port: str,
        upstream: str | None,
        handler: Handler,
        *,
        closed: bool = False,
    ) -> None:
        self.where, self.sock, self.device, self.closed = where, sock, device, closed
        self.direction, self.port, self.upstream, self.handler = direction, port, upstream, handler
        self.permissive: Inbound | None = None
        self.fault: str | None = None
        self._accepting = trio.CancelScope()

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens; the port is the system's choice if the configuration has 0."""
        host, port = self.sock.getsockname()[:2]
        return host, port

    def open(self) -> None:
        """Opens a closed one. Raises :class:`UsageError` if another process has taken the address."""
        sockets.start_listening(self.where, self.sock)
        self.closed = False

    async def accept(self, accept_all: Callable[[socket.socket], Awaitable[object]]) -> None:
        """Runs ``accept_all`` with the current socket, each time that there is a new one. Ends only if cancelled."""
        while True:
            self._accepting = trio.CancelScope()
            with self._accepting:
                await accept_all(self.sock)

    def look(self) -> bool:
        """Listens anew if the interface is not the one of before, and returns whether it does. Sets ``fault``."""
        if self.device is None or self.closed or sockets.is_on_device(self.sock, self.device):
            self.fault = None
            return False
        try:
            new = sockets.listen(self.where, *self.address, self.device)
        except UsageError as error:
            self.fault = f"nothing reaches this listener now: {error}"
            return False
        old, self.sock, self.fault = self.sock, new, None
        self._accepting.cancel()
        old.close()
        return True
