"""Group commit: operations that arrive while the disk is busy share the next transaction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

import trio

from certs.store.store import Operation, Store, StoreUnavailableError

_T = TypeVar("_T")

MOST_WAITING = 2048
MOST_TOGETHER = 256


@dataclass(slots=True)
class _Job:
    operation: Operation[Any]
    done: trio.Event = field(default_factory=trio.Event)
    outcome: Any = None


class Writer:
    """The only task of a process that writes to its store. Start :meth:`run` in a nursery."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._send, self._receive = trio.open_memory_channel[_Job](MOST_WAITING)

    async def write(self, operation: Operation[_T]) -> _T:
        """The operation's result, once it is on disk. Raises what it raises, or :class:`StoreUnavailableError`."""
        job = _Job(operation)
        try:
            self._send.send_nowait(job)
        except trio.WouldBlock:
            raise StoreUnavailableError(f"{MOST_WAITING} requests are already waiting for the store") from None
        await job.done.wait()
        if isinstance(job.outcome, Exception):
            raise job.outcome
        return job.outcome  # type: ignore[no-any-return]

    async def run(self) -> None:
        async for first in self._receive:
            jobs = [first]
            while len(jobs) < MOST_TOGETHER:
                try:
                    jobs.append(self._receive.receive_nowait())
                except trio.WouldBlock:
                    break
            # Catches everything: a bug in one operation must not end the task that all operations depend on.
            try:
                outcomes = await trio.to_thread.run_sync(
                    self._store.write_many, [job.operation for job in jobs], limiter=_ONE
                )
            except Exception as error:
                outcomes = [error] * len(jobs)
            for job, outcome in zip(jobs, outcomes, strict=True):
                job.outcome = outcome
                job.done.set()


_ONE = trio.CapacityLimiter(1)
