"""Lets a few expensive steps through per tick of trio's loop, so that all other tasks run in between."""

from __future__ import annotations

import trio

STEPS_A_TICK = 2
"""A step of a handshake takes about 300 µs of CPU time: this bounds how long a flood of handshakes delays the relay."""


class Gate:
    """First come, first served. Call :meth:`turn` before each step, and start :meth:`run` in a nursery."""

    def __init__(self, steps: int = STEPS_A_TICK) -> None:
        self._steps = self._left = steps
        self._used = trio.Event()
        self._waiting = trio.lowlevel.ParkingLot()

    async def turn(self) -> None:
        """Returns when the caller may take its step."""
        if self._left and not self._waiting:
            self._left -= 1
            self._used.set()
        else:
            await self._waiting.park()

    async def run(self) -> None:
        """Lets the next steps through at each tick while any wait. Runs until cancelled."""
        while True:
            await self._used.wait()
            self._used = trio.Event()
            await trio.lowlevel.checkpoint()
            while self._waiting.unpark(count=self._steps):
                await trio.lowlevel.checkpoint()
            self._left = self._steps
