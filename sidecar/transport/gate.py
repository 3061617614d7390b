"""A gate that lets a few expensive steps through a tick of trio's loop, so that everything else goes on between them."""

from __future__ import annotations

import trio

STEPS_A_TICK = 2
"""A handshake's step costs about 300 µs of computing: this bounds how long a flood of them can hold up the relay."""


class Gate:
    """First come, first served. Use :meth:`turn` before each step, and :meth:`run` in a nursery."""

    def __init__(self, steps: int = STEPS_A_TICK) -> None:
        self._steps = self._left = steps
        self._used = trio.Event()
        self._waiting = trio.lowlevel.ParkingLot()

    async def turn(self) -> None:
        """Returns when it is the caller's turn."""
        if self._left and not self._waiting:
            self._left -= 1
            self._used.set()
        else:
            await self._waiting.park()

    async def run(self) -> None:
        """Opens the gate again at each tick, while there is anybody at it."""
        while True:
            await self._used.wait()
            self._used = trio.Event()
            await trio.lowlevel.checkpoint()
            while self._waiting.unpark(count=self._steps):
                await trio.lowlevel.checkpoint()
            self._left = self._steps
