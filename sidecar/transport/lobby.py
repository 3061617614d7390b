"""Where accepted sockets wait for their caller's first message: one task for all of them, however many there are.

How this works. A stranger that says nothing, or half a ClientHello, is the cheapest attack there is, and thousands of them
are no more than one descriptor each here: no task, no TLS object, no buffer. What has arrived is looked at, not read, until
the caller has sent its first TLS record, or anything that begins none. From then on the socket is a connection like any
other. A caller that closes before that, or says nothing for too long, never becomes one.

Guests leave in portions of some CPU time (:data:`SECONDS_A_TICK`), so that neither a flood that ends at once nor one that
speaks at once holds up the loop. Those from addresses where peers have proved an identity go first.
"""

from __future__ import annotations

import enum
import math
import socket
import time
from collections import deque
from collections.abc import Callable

import trio

from sidecar.relay.poller import BROKEN, ENDED, READABLE, make_poller
from sidecar.transport import sockets
from sidecar.transport.client_hello import FIRST_BYTES, missing_bytes

SECONDS_A_TICK = 0.001
"""One guest costs about 100 µs."""


class Left(enum.Enum):
    """How a guest has left. Its socket is open still, and belongs to whoever is told."""

    SPOKE = enum.auto()
    """Its first message is there, unread."""
    CLOSED = enum.auto()
    """Its caller has closed or reset it, in the middle of its first message."""
    UNUSED = enum.auto()
    """The same, before the first byte."""
    LATE = enum.auto()
    """It did not send its first message in time."""
    CANCELLED = enum.auto()
    """:meth:`Lobby.run` has ended."""


class Guest:
    """A waiting socket. ``leave`` is called once, unless it was expelled; afterwards the guest does not hold it, since it
    mostly holds the guest: thousands of such cycles would stop the process while Python's collector finds them. ``wanted``:
    it is not readable with fewer."""

    __slots__ = ("descriptor", "ends", "goes_first", "leave", "sock", "wanted")

    def __init__(self, sock: socket.socket, leave: Callable[[Left], object], ends: float, goes_first: bool) -> None:
        self.sock, self.ends, self.goes_first = sock, ends, goes_first
        self.leave: Callable[[Left], object] | None = leave
        self.descriptor = sock.fileno()
        self.wanted = 1

    def want(self, size: int) -> None:
        """Has the system report the socket when so many bytes are there, or its end."""
        if size != self.wanted:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
            self.wanted = size


class Lobby:
    """Guests wait for ``seconds`` at most. Start :meth:`run` in a nursery."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._poller = make_poller()
        self._guests: dict[int, Guest] = {}  # by descriptor, in the order in which they are late
        self._first = deque[tuple[Guest, int]]()
        self._others = deque[tuple[Guest, int]]()
        self._ended = False

    def __len__(self) -> int:
        return len(self._guests)

    def enter(self, sock: socket.socket, leave: Callable[[Left], object], *, goes_first: bool = False) -> Guest:
        """Takes an accepted socket in. ``leave`` must not wait. It is called later; at once if :meth:`run` has ended.
        ``goes_first``: it is looked at before others."""
        sock.setblocking(False)
        guest = Guest(sock, leave, trio.current_time() + self._seconds, goes_first)
        if self._ended:
            guest.leave = None
            leave(Left.CANCELLED)
            return guest
        self._poller.add(guest.descriptor)  # which reports at once what is there already
        self._guests[guest.descriptor] = guest
        return guest

    def expel(self, guest: Guest) -> bool:
        """Takes a guest out, to make room. Returns False if it has left already."""
        if not self._waits(guest):
            return False
        del self._guests[guest.descriptor]
        self._poller.remove(guest.descriptor)
        guest.leave = None
        return True

    async def run(self) -> None:
        """Runs until cancelled; then the guests leave."""
        try:
            while True:
                await self._wait()
                while self._see() or self._part_with_late():
                    await trio.lowlevel.checkpoint()
        finally:
            self._ended = True
            for guest in list(self._guests.values()):
                self._leave(guest, Left.CANCELLED)
            self._poller.close()

    async def _wait(self) -> None:
        """Until there are events, or the first guest is late."""
        first = next(iter(self._guests.values()), None)
        with trio.move_on_at(math.inf if first is None else first.ends):
            await trio.lowlevel.wait_readable(self._poller.fileno())

    def _see(self) -> bool:
        """Looks at a portion of those of whom there is something to see; returns whether there are more."""
        for descriptor, what in self._poller.poll():
            if (guest := self._guests.get(descriptor)) is not None:
                # By guest: a descriptor may be another's by the time that we come to it.
                (self._first if guest.goes_first else self._others).append((guest, what))
        until = time.thread_time() + SECONDS_A_TICK
        while (seen := self._first or self._others) and time.thread_time() < until:
            guest, what = seen.popleft()
            if not self._waits(guest):
                continue
            if what & READABLE and (how := _look(guest, what)) is not None:
                self._leave(guest, how)
            else:
                self._poller.rearm(guest.descriptor, READABLE)
        return bool(self._first or self._others)

    def _part_with_late(self) -> bool:
        """Whether there may be more to part with."""
        now, until = trio.current_time(), time.thread_time() + SECONDS_A_TICK
        while (first := next(iter(self._guests.values()), None)) is not None and first.ends <= now:
            self._leave(first, Left.LATE)
            if time.thread_time() >= until:
                return True
        return False

    def _waits(self, guest: Guest) -> bool:
        return self._guests.get(guest.descriptor) is guest

    def _leave(self, guest: Guest, how: Left) -> None:
        leave = guest.leave
        if self.expel(guest) and leave is not None:
            if how is Left.SPOKE:
                guest.want(1)
            leave(how)


def _look(guest: Guest, what: int) -> Left | None:
    """How a guest leaves whose socket is readable; None if it stays."""
    try:
        data = sockets.peek(guest.sock, FIRST_BYTES)
    except OSError:  # reset, and nothing to read
        return Left.UNUSED
    missing = missing_bytes(data)
    if missing and what & (ENDED | BROKEN):
        return Left.CLOSED if data else Left.UNUSED
    if missing and len(data) >= guest.wanted:
        guest.want(len(data) + missing)
        return None
    # Also if it is readable with less than was asked for: it may have ended, and not every poller says so.
    return Left.SPOKE
