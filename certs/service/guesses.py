"""Limits wrong enrolment credentials by source address, without refusing a correct one.

A guess is taken from the source's bucket before the credential is compared, so concurrent guesses all count. A correct
credential gives its guess back. When the bucket is empty, the caller waits for the comparisons in progress: if one of them
is correct, a guess is free again. So any number of services behind one address can enrol at once.
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
    """One source: the ``number`` of comparisons in progress, and the callers that wait for a guess."""

    number: int = 0
    waiting: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)


class Guesses:
    """``rate``: how many wrong credentials one source may send."""

    def __init__(self, rate: Rate) -> None:
        self._left = Buckets(rate)
        self._compared: dict[str, _Compared] = {}

    @asynccontextmanager
    async def turn(self, source: str) -> AsyncIterator[None]:
        """Takes a guess for the block, and gives it back unless the block raises :attr:`Denial.BAD_PASS`. Raises
        :class:`Denied` if there is none left."""
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
