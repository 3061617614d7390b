"""Lets a few expensive steps through per tick of trio's loop, in turns, so that all other tasks run in between.

How this works. Those who wait stand in queues: our own outbound handshakes in one, the inbound ones in one queue an address.
Each tick lets :data:`STEPS_A_TICK` steps through: ours and an inbound one alternately, and the inbound queues take turns. So
no flood of inbound handshakes holds up our own, and no address holds up another. In a queue it is first come, first served.
"""

from __future__ import annotations

import trio

STEPS_A_TICK = 2
"""A step of a handshake takes about 300 µs of CPU time: this bounds how long a flood of handshakes delays the relay."""


class Gate:
    """Call :meth:`turn` before each step, and start :meth:`run` in a nursery."""

    def __init__(self, steps: int = STEPS_A_TICK) -> None:
        self._steps = self._left = steps
        self._used = trio.Event()
        self._own = trio.lowlevel.ParkingLot()
        self._inbound: dict[str, trio.lowlevel.ParkingLot] = {}  # by address; the next in turn is first

    async def turn(self, address: str | None = None) -> None:
        """Returns when the caller may take its step. ``address``: of an inbound connection, see
        :func:`~sidecar.transport.strangers.address_key`; None for what we do on our own account."""
        self._used.set()
        if self._left and not self._own and not any(self._inbound.values()):
            self._left -= 1
        elif address is None:
            await self._own.park()
        else:
            await self._inbound.setdefault(address, trio.lowlevel.ParkingLot()).park()

    async def run(self) -> None:
        """Lets the next steps through at each tick while any wait. Runs until cancelled."""
        while True:
            await self._used.wait()
            self._used = trio.Event()
            await trio.lowlevel.checkpoint()
            while self._let_through():
                await trio.lowlevel.checkpoint()
            self._left = self._steps

    def _let_through(self) -> int:
        """Lets one tick's steps through; returns how many."""
        passed = 0
        for at in range(self._steps):
            queues = (self._pass_own, self._pass_inbound) if at % 2 == 0 else (self._pass_inbound, self._pass_own)
            passed += any(let_one_through() for let_one_through in queues)
        return passed

    def _pass_own(self) -> bool:
        return bool(self._own.unpark())

    def _pass_inbound(self) -> bool:
        while self._inbound:
            address = next(iter(self._inbound))
            queue = self._inbound.pop(address)
            passed = queue.unpark()
            if queue:
                self._inbound[address] = queue  # now the last in turn
            if passed:
                return True
        return False
