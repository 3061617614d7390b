"""Accepting connections: one loop for every listener, also while the system has no resources left.

How this works. ``accept(2)`` fails for three kinds of reasons. If there is nothing to accept, the loop waits. If the caller
gave up in the backlog or the network lost it, the loop accepts the next one. Anything else (EMFILE, ENFILE, ENOBUFS, ENOMEM:
no descriptor or memory left): if ``make_room`` frees something, the loop goes on at once; otherwise it reports the failure
and pauses. So the loop neither spins nor ends.

A listener that anybody reaches has a :class:`Room`, the budget of its strangers. While the room is full, the loop accepts
nobody: callers wait in the backlog until a stranger leaves, or has stayed long enough to be cut. Nobody is cut before a
caller waits.
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable
from typing import NoReturn

import trio

from sidecar.transport.strangers import Stranger, Strangers

ACCEPTS_A_TICK = 16
ACCEPT_PAUSE_SECONDS = 0.1
"""How long accepting pauses when the system has no descriptor or memory left."""

_ADVICE = "it tries again by itself; if this lasts, raise the limit of open files (ulimit -n)"

_CALLER_GONE = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPERM,  # a packet filter forbids it
        # What accept(2) on Linux passes on from the new socket:
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPROTO,
        getattr(errno, "ENONET", errno.ENETDOWN),
    }
)


class Room:
    """Room for strangers: the budget of one or more accept loops."""

    def __init__(self, limit: int) -> None:
        self._left = trio.Event()
        self.strangers = Strangers(limit, self._freed)

    def enter(self, sock: socket.socket, cut: Callable[[], object]) -> Stranger:
        """Counts an accepted connection. ``cut`` must end it at once, see :meth:`Strangers.enter`."""
        try:
            host = str(sock.getpeername()[0])
        except (OSError, IndexError):  # it is gone already, or has no address (a Unix socket)
            host = ""
        return self.strangers.enter(host, trio.current_time(), cut)

    def known(self, stranger: Stranger) -> None:
        """:meth:`Strangers.known`, now."""
        self.strangers.known(stranger, trio.current_time())

    def busy(self, stranger: Stranger) -> None:
        """:meth:`Strangers.busy`, now."""
        self.strangers.busy(stranger, trio.current_time())

    def leave(self, stranger: Stranger) -> None:
        """:meth:`Strangers.leave`, now."""
        self.strangers.leave(stranger, trio.current_time())

    def cut_one(self) -> bool:
        """Cuts a stranger because the system has no descriptor or memory left; returns whether there was one to cut."""
        return self.strangers.cut_one(trio.current_time()) == 0

    async def make(self) -> None:
        """Returns when there is room for one more; cuts a stranger for it if that is necessary and allowed. Nothing else
        runs between the last look and the return."""
        while wait := self.strangers.make_room(trio.current_time()):
            if self._left.is_set():
                self._left = trio.Event()
            with trio.move_on_after(wait):
                await self._left.wait()

    def _freed(self) -> None:
        self._left.set()


async def accept_all(
    listener: socket.socket,
    serve: Callable[[socket.socket], object],
    report: Callable[[str | None], object],
    make_room: Callable[[], bool] = lambda: False,
    room: Room | None = None,
) -> NoReturn:
    """Accepts until cancelled, and gives every socket to ``serve``, which owns it and must not wait. ``serve`` enters the
    socket into the ``room`` before it returns.

    ``report`` is called with None after each success, and with the reason after each failure for lack of resources that
    ``make_room`` cannot mend: it may end something that holds a descriptor, and returns whether it did.
    """
    accepted = 0
    while True:
        if room is not None and room.strangers.full:
            if not _has_caller(listener):
                await trio.lowlevel.wait_readable(listener)
            await room.make()
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, InterruptedError):
            await trio.lowlevel.wait_readable(listener)
        except OSError as error:
            if error.errno in _CALLER_GONE or make_room():
                await trio.lowlevel.checkpoint()
                continue
            report(f"cannot accept connections: {error.strerror or error}; {_ADVICE}")
            await trio.sleep(ACCEPT_PAUSE_SECONDS)
        else:
            report(None)
            serve(sock)
            accepted += 1
            if accepted % ACCEPTS_A_TICK == 0:
                await trio.lowlevel.checkpoint()


def _has_caller(listener: socket.socket) -> bool:
    """Whether a caller waits in the backlog."""
    poller = select.poll()
    poller.register(listener, select.POLLIN)
    return bool(poller.poll(0))
