"""Wrong guesses, counted by where they come from, in a way that refuses no right one.

A turn is taken before anything is compared, so a thousand guesses at once are a thousand; and it is given back if it was no
guess. Who finds none left waits while those who have one are answered: were they right, there is one again. So however
many services of one address enrol at once, none of them is taken for a guesser.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from certs.protocol.denial import Denial, Denied
from certs.service.limits import Buckets, Rate


@dataclass(slots=True)
class _Compared:
    """Those of one source who have a turn, and those who wait for one."""

    number: int = 0
    waiting: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)


class Guesses:
    """``rate``: how many wrong ones from one source."""

    def __init__(self, rate: Rate) -> None:
        self._left = Buckets(rate)
        self._compared: dict[str, _Compared] = {}

    @asynccontextmanager
    async def turn(self, source: str) -> AsyncIterator[None]:
        """For the block, which is given back unless it raises a denial of :attr:`Denial.BAD_PASS`. Raises
        :class:`Denied` if there is none."""
        while not self._left.take(source, trio.current_time()):
            if source not in self._compared:
                raise Denied(
                    Denial.RATE_LIMITED, "too many wrong tokens or secrets came from this address; try again later"
                )
            await self._compared[source].waiting.park()
        compared = self._compared.setdefault(source, _Compared())
        compared.number += 1
        is_wrong = False
        try:
            yield
        except Denied as denied:
            is_wrong = denied.denial is Denial.BAD_PASS
            raise
        finally:
            compared.number -= 1
            if not is_wrong:
                self._left.give_back(source, trio.current_time())
            if not compared.number:
                del self._compared[source]
                compared.waiting.unpark_all()
            elif not is_wrong:
                compared.waiting.unpark()
