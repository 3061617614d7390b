"""Where accepted sockets wait for their caller's first message: one task for all of them, however many there are.

How this works. A stranger that says nothing, or half a ClientHello, is the cheapest attack there is, and thousands of them
are no more than one descriptor each here: no task, no TLS object, no buffer. What has arrived is looked at, not read, until
the caller has sent its first TLS record, or anything that begins none. From then on the socket is a connection like any
other. A caller that closes before that, or says nothing for too long, never becomes one.

The first byte decides whether a caller speaks TLS. Where the server speaks first, a caller without TLS says nothing: a guest
of such a port that has sent no byte for :data:`SILENCE_SECONDS` leaves as silent. One byte is enough not to be. A sidecar
whose first byte takes longer, because it was paused or its packet was lost twice, is taken for such a caller there, and its
connection fails: it gains no identity by that, and calls again.

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
from sidecar.transport.client_hello import FIRST_BYTES, is_bare, missing_bytes

SECONDS_A_TICK = 0.001
"""One guest costs about 100 µs."""

SILENCE_SECONDS = 1.0
"""A sidecar sends its first byte as soon as it is connected: that takes two round trips."""


class Left(enum.Enum):
    """How a guest has left. Its socket is open still, and belongs to whoever is told."""

    SPOKE = enum.auto()
    """Its first message is there, unread."""
    BARE = enum.auto()
    """Its first byte is there, unread, and begins no TLS."""
    SILENT = enum.auto()
    """It has sent nothing, where a caller without TLS waits for the server."""
    CLOSED = enum.auto()
    """Its caller has closed or reset it, in the middle of its first message."""
    UNUSED = enum.auto()
    """The same, before the first byte."""
    LATE = enum.auto()
    """It did not send its first message in time."""
    CANCELLED = enum.auto()
    """:meth:`Lobby.run` has ended."""


SPOKEN = frozenset({Left.SPOKE, Left.BARE, Left.SILENT})
"""Of these the caller waits for what is said to it; the others are gone, or are to go."""


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
        self._silent: dict[int, tuple[Guest, float]] = {}  # by descriptor, in the order in which they count as silent
        self._first = deque[tuple[Guest, int]]()
        self._others = deque[tuple[Guest, int]]()
        self._ended = False

    def __len__(self) -> int:
        return len(self._guests)

    def enter(
        self,
        sock: socket.socket,
        leave: Callable[[Left], object],
        *,
        goes_first: bool = False,
        may_be_silent: bool = False,
    ) -> Guest:
        """Takes an accepted socket in. ``leave`` must not wait. It is called later; at once if :meth:`run` has ended.
        ``goes_first``: it is looked at before others. ``may_be_silent``: it leaves as silent after
        :data:`SILENCE_SECONDS`."""
        sock.setblocking(False)
        guest = Guest(sock, leave, trio.current_time() + self._seconds, goes_first)
        if self._ended:
            guest.leave = None
            leave(Left.CANCELLED)
            return guest
        self._poller.add(guest.descriptor)  # which reports at once what is there already
        self._guests[guest.descriptor] = guest
        if may_be_silent:
            self._silent[guest.descriptor] = guest, trio.current_time() + SILENCE_SECONDS
        return guest

    def expel(self, guest: Guest) -> bool:
        """Takes a guest out, to make room. Returns False if it has left already."""
        if not self._waits(guest):
            return False
        del self._guests[guest.descriptor]
        self._silent.pop(guest.descriptor, None)
        self._poller.remove(guest.descriptor)
        guest.leave = None
        return True

    async def run(self) -> None:
        """Runs until cancelled; then the guests leave."""
        try:
            while True:
                await self._wait()
                while self._see() or self._part_with_silent() or self._part_with_late():
                    await trio.lowlevel.checkpoint()
        finally:
            self._ended = True
            for guest in list(self._guests.values()):
                self._leave(guest, Left.CANCELLED)
            self._poller.close()

    async def _wait(self) -> None:
        """Until there are events, or the first guest is late or counts as silent."""
        first = next(iter(self._guests.values()), None)
        _, silent_at = next(iter(self._silent.values()), (None, math.inf))
        with trio.move_on_at(math.inf if first is None else min(first.ends, silent_at)):
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
                if what & READABLE:
                    self._silent.pop(guest.descriptor, None)
                self._poller.rearm(guest.descriptor, READABLE)
        return bool(self._first or self._others)

    def _part_with_silent(self) -> bool:
        """Whether there may be more to part with."""
        now, until = trio.current_time(), time.thread_time() + SECONDS_A_TICK
        while self._silent:
            descriptor, (guest, at) = next(iter(self._silent.items()))
            if at > now:
                return False
            del self._silent[descriptor]
            if not _has_spoken(guest):
                self._leave(guest, Left.SILENT)
            if time.thread_time() >= until:
                return True
        return False

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
    return Left.BARE if is_bare(data) else Left.SPOKE


def _has_spoken(guest: Guest) -> bool:
    """Whether a byte of it is there, or its end: then there is an event that tells."""
    try:
        guest.sock.recv(1, socket.MSG_PEEK)
    except (BlockingIOError, InterruptedError):
        return False
    except OSError:  # reset
        return True
    return True
