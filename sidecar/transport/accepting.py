"""Accepting connections: one loop for every listener, also while the system has no resources left.

How this works. ``accept(2)`` fails for three kinds of reasons. If there is nothing to accept, the loop waits. If the caller
gave up in the backlog or the network lost it, the loop accepts the next one. Anything else (EMFILE, ENFILE, ENOBUFS, ENOMEM:
no descriptor or memory left) is reported, and the loop pauses; callers wait in the backlog meanwhile. So the loop neither
spins nor ends. It does not limit the number of connections: ``serve`` does.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import NoReturn

import trio

ACCEPTS_A_TICK = 16
ACCEPT_PAUSE_SECONDS = 0.1
"""How long accepting pauses when the system has no descriptor or memory left."""

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


async def accept_all(
    listener: socket.socket,
    serve: Callable[[socket.socket], object],
    report: Callable[[str | None], object],
    make_room: Callable[[], object] = lambda: None,
) -> NoReturn:
    """Accepts until cancelled, and gives every socket to ``serve``, which owns it and must not wait.

    ``report`` is called with None after each success, and with the reason after each failure for lack of resources.
    ``make_room`` is called before a pause: it may end something that holds a descriptor.
    """
    accepted = 0
    while True:
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, InterruptedError):
            await trio.lowlevel.wait_readable(listener)
        except OSError as error:
            if error.errno in _CALLER_GONE:
                await trio.lowlevel.checkpoint()
                continue
            report(f"cannot accept connections: {error.strerror or error}")
            make_room()
            await trio.sleep(ACCEPT_PAUSE_SECONDS)
        else:
            report(None)
            serve(sock)
            accepted += 1
            if accepted % ACCEPTS_A_TICK == 0:
                await trio.lowlevel.checkpoint()
