"""The clocks of tests: the time of day, which a test sets, and the time that passes, which a test moves."""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from certs.store import writer
from sidecar.host import disk

NOW = datetime.now(UTC).replace(microsecond=0)
"""When these tests began. OpenSSL goes by the machine's clock, so a test's time of day begins near it."""

_T = TypeVar("_T")


class Clock:
    """A time of day: called, it tells it. It stands still but for what the test does to it, unless it goes with ``ticks``
    (seconds of any clock that passes)."""

    def __init__(self, now: datetime = NOW, ticks: Callable[[], float] | None = None) -> None:
        self._ticks = ticks or (lambda: 0.0)
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    @property
    def now(self) -> datetime:
        return self._set + timedelta(seconds=self._ticks() - self._since)

    @now.setter
    def now(self, value: datetime) -> None:
        self._set, self._since = value, self._ticks()

    def seconds(self) -> int:
        """Since the epoch, as the store counts."""
        return int(self.now.timestamp())

    def pass_by(self, **span: float) -> None:
        self.now += timedelta(**span)

    def jump(self, by: timedelta) -> None:
        """The clock is set, or goes on while the machine is suspended: the time that passes knows nothing of it."""
        self.now += by


def moment(seconds: float) -> float:
    """After so many seconds without an event there will be none; after more on a loaded machine, where it takes longer until
    what was sent is there."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


class Time(Clock):
    """Virtual time. The test's run has trio's :class:`~trio.testing.MockClock` at rate 0, so nothing is waited for in real
    time: :meth:`until` lets everything run until all are blocked and no thread works (what was sent over loopback is there
    by then), and only then goes on to the next deadline. The time of day goes along."""

    def __init__(self, clock: MockClock) -> None:
        super().__init__(datetime.now(UTC).replace(microsecond=0), clock.current_time)
        self._clock = clock

    async def settles(self, cushion: float = 0.002) -> None:
        """Returns when nothing goes on but waiting, for a :func:`moment`."""
        while True:
            await wait_all_tasks_blocked(moment(cushion))
            limiters = trio.to_thread.current_default_thread_limiter(), writer._ONE, disk.threads()
            if not any(limiter.borrowed_tokens for limiter in limiters):
                return

    async def gives_up(self, step: Callable[[], Awaitable[object]], after: float) -> None:
        """Something is cut off after some time."""
        scope = trio.CancelScope()

        async def run() -> None:
            with scope:
                await step()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await self.passes(after)
            scope.cancel()

    async def until(self, condition: Callable[[], object], within: float = 120.0) -> float:
        """Lets time pass until something is so; returns how many seconds that took."""
        begin = trio.current_time()
        while True:
            await self.settles()
            passed = trio.current_time() - begin
            if condition():
                return passed
            assert passed < within, f"not so within {within} s"
            next_deadline = trio.lowlevel.current_statistics().seconds_to_next_deadline
            self._clock.jump(min(within - passed, max(next_deadline, 0.001)))

    async def passes(self, seconds: float) -> None:
        end = trio.current_time() + seconds
        await self.until(lambda: trio.current_time() >= end - 1e-6, seconds)

    async def finishes(self, step: Callable[[], Awaitable[_T]], within: float = 120.0) -> _T:
        """The result of something that takes time."""
        results: list[_T] = []
        failures: list[Exception] = []

        async def run() -> None:
            try:
                results.append(await step())
            except Exception as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            try:
                await self.until(lambda: results or failures, within)
            finally:
                nursery.cancel_scope.cancel()
        for failure in failures:
            raise failure
        return results[0]


@asynccontextmanager
async def time_passes() -> AsyncIterator[None]:
    """During the block virtual time goes on to the next deadline whenever nothing has happened for a moment: as trio's
    autojump, which knows nothing of threads. Where time is real, it passes anyway."""
    clock = trio.lowlevel.current_clock()
    async with trio.open_nursery() as nursery:
        if isinstance(clock, MockClock):
            nursery.start_soon(_jump, clock)
        yield
        nursery.cancel_scope.cancel()


async def _jump(clock: MockClock) -> None:
    time = Time(clock)
    while True:
        await time.settles(0.05)
        if (seconds := trio.lowlevel.current_statistics().seconds_to_next_deadline) < math.inf:
            clock.jump(max(seconds, 0.0))
