"""Lets a few expensive steps through per tick of trio's loop, in turns, so that all else runs in between.

How this works. Those who wait stand in three lines: what we do on our own account, such as outbound handshakes; addresses
from which a peer has proved an identity lately; and all other addresses. The lines take turns. In each of the last two the
addresses take turns, and at one address it is first come, first served. Of a tick's steps, the last line gets
:data:`STRANGERS_A_TICK` at most. So no flood of strangers holds up our own handshakes or those of peers that come again, and
no address holds up another.

Steps differ: one that verifies a long chain takes a hundred times as long as another. So the CPU time of the last line is
counted, too. In the long run it gets :data:`STRANGERS_SHARE` of all time, however much it asks for: the rest is for those
who are connected.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import trio

STEPS_A_TICK = 4
"""A step of a handshake takes about 300 µs of CPU time: this bounds how long a flood of handshakes delays the relay."""
STRANGERS_A_TICK = 2

STRANGERS_SHARE = 0.125
STRANGERS_AHEAD = 0.25
"""Seconds of CPU time that strangers may use at once, if they used none for a while."""

MAX_PROVED = 1024
"""So many addresses from which peers have proved an identity are remembered: the latest."""


class Gate:
    """Call :meth:`turn` before each step, unless it :meth:`passes` without; and start :meth:`run` in a nursery."""

    def __init__(self, steps: int = STEPS_A_TICK) -> None:
        self._steps = self._left = steps
        self._strangers_left = STRANGERS_A_TICK
        self._used = trio.Event()
        self._own, self._peers, self._strangers = _Line(), _Line(), _Line()
        self._lines = deque((self._own, self._peers, self._strangers))  # the next in turn is first
        self._proved: dict[str, None] = {}  # in the order in which they proved an identity
        self._paid_until = 0.0  # by then the strangers' share covers what they have used
        self._ends: dict[float, dict[_Place, None]] = {}  # places, by the second in which they are late

    def prove(self, address: str) -> None:
        """A peer at this address has proved its identity: who comes from there next is no stranger."""
        self._proved.pop(address, None)
        self._proved[address] = None
        if len(self._proved) > MAX_PROVED:
            del self._proved[next(iter(self._proved))]

    def is_proved(self, address: str) -> bool:
        """Whether a peer at this address has proved its identity lately."""
        return address in self._proved

    def passes(self, address: str | None = None) -> bool:
        """Whether the caller may take its step at once; then it must. ``address``: of an inbound connection, see
        :func:`~sidecar.transport.strangers.address_key`; None for what we do on our own account."""
        self._used.set()
        line = self._line(address)
        if not self._left or any(self._lines) or not self._may_pass(line):
            return False
        self._left -= 1
        self._strangers_left -= line is self._strangers
        return True

    def wait(self, address: str | None, until: float, done: Callable[[bool], object]) -> Callable[[], object]:
        """For a step that does not pass: ``done`` is called once, when it may be taken, or with False when ``until`` has
        passed on the loop's clock, which is noticed within a second. Returns what ends that."""
        end = math.ceil(until) if until < math.inf else math.inf
        place = _Place(done, self._ends.setdefault(end, {}))
        self._line(address).add(address or "", place)
        return place.leave

    async def turn(self, address: str | None = None) -> None:
        """Returns when the caller may take its step."""
        if not self.passes(address):
            come = trio.Event()
            leave = self.wait(address, math.inf, lambda _: come.set())
            try:
                await come.wait()
            finally:
                leave()

    def count(self, address: str | None, seconds: float) -> None:
        """Counts the CPU time that a step has taken."""
        if self._line(address) is self._strangers:
            self._paid_until = max(self._paid_until, trio.current_time()) + seconds / STRANGERS_SHARE

    async def run(self) -> None:
        """Lets the next steps through at each tick while any wait. Runs until cancelled."""
        while True:
            await self._used.wait()
            self._used = trio.Event()
            await trio.lowlevel.checkpoint()
            while self._let_through() + self._part_with_late():
                await trio.lowlevel.checkpoint()
            self._left, self._strangers_left = self._steps, STRANGERS_A_TICK
            if self._strangers:  # they have used up their share; whoever else comes wakes us
                with trio.move_on_at(min([self._strangers_at, *self._ends])):
                    await self._used.wait()
                self._used.set()

    def _part_with_late(self) -> int:
        """Ends some waits whose time has passed; returns how many."""
        parted, now = 0, trio.current_time()
        for end in [end for end, those in self._ends.items() if end <= now or not those]:
            those = self._ends[end]
            while those and parted < self._steps:
                parted += next(iter(those)).call(is_turn=False)
            if not those:
                del self._ends[end]
        return parted

    def _line(self, address: str | None) -> _Line:
        if address is None:
            return self._own
        return self._peers if self.is_proved(address) else self._strangers

    @property
    def _strangers_at(self) -> float:
        """When strangers may take a step again."""
        return self._paid_until - STRANGERS_AHEAD / STRANGERS_SHARE

    def _may_pass(self, line: _Line) -> bool:
        if line is not self._strangers:
            return True
        return self._strangers_left > 0 and self._strangers_at <= trio.current_time()

    def _let_through(self) -> int:
        """Lets one tick's steps through; returns how many."""
        self._strangers_left = STRANGERS_A_TICK
        return sum(self._let_one_through() for _ in range(self._steps))

    def _let_one_through(self) -> bool:
        for line in tuple(self._lines):
            if self._may_pass(line) and line.let_one_through():
                self._strangers_left -= line is self._strangers
                self._lines.remove(line)
                self._lines.append(line)  # now the last in turn
                return True
        return False


class _Place:
    """The place of one waiting step. ``those``: all places that are late in the same second."""

    __slots__ = ("_done", "_those")

    def __init__(self, done: Callable[[bool], object], those: dict[_Place, None]) -> None:
        self._done: Callable[[bool], object] | None = done
        self._those = those
        those[self] = None

    def call(self, *, is_turn: bool) -> bool:
        """Returns whether anybody waits here still."""
        done = self._done
        self.leave()
        if done is not None:
            done(is_turn)
        return done is not None

    def leave(self) -> None:
        self._done = None
        self._those.pop(self, None)

    def __bool__(self) -> bool:
        return self._done is not None


class _Line:
    """Those who wait, by address; the addresses take turns."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[_Place]] = {}  # the next in turn is first

    def __bool__(self) -> bool:
        """Whether anybody waits. Forgets places that were left."""
        while self._queues:
            queue = self._queues[next(iter(self._queues))]
            while queue and not queue[0]:
                queue.popleft()
            if queue:
                return True
            del self._queues[next(iter(self._queues))]
        return False

    def add(self, address: str, place: _Place) -> None:
        self._queues.setdefault(address, deque()).append(place)

    def let_one_through(self) -> bool:
        """Returns whether anybody waited."""
        while self._queues:
            address = next(iter(self._queues))
            queue = self._queues.pop(address)
            place = queue.popleft()
            if queue:
                self._queues[address] = queue  # now the last in turn
            if place.call(is_turn=True):
                return True
        return False
