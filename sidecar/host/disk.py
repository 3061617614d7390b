"""Work on files that may never end: a dead network mount lets a program wait for ever, even in ``open`` and ``stat``.

How this works. The work runs in a thread, for a few seconds at most. Then the thread is abandoned: nothing can
end it, but the loop goes on. While it still hangs, no other thread is sent after it: so hung threads do not pile up, and no
later write overtakes an earlier one.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TypeVar

import trio

PATIENCE = 3.0
"""Seconds."""

_THREADS: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("threads of disks")

_T = TypeVar("_T")


def threads() -> trio.CapacityLimiter:
    """The threads for files, of all disks: not trio's own, since look-ups of names that hang must not keep files from being
    read. One for each run of trio: a thread that outlives its run gives nothing back."""
    try:
        return _THREADS.get()
    except LookupError:
        _THREADS.set(limiter := trio.CapacityLimiter(40))
        return limiter


class StalledError(OSError):
    """The file system does not answer, or no thread can be started."""

    def __init__(self, reason: str = "the file system does not answer; is it a network mount that is gone?") -> None:
        super().__init__(errno.ETIMEDOUT, reason)

    def __str__(self) -> str:
        return str(self.strerror)


class Disk:
    """The files of one purpose. One piece of work at a time. ``patience``: in seconds."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self._patience = patience
        self.busy = False
        """Whether work goes on, perhaps in a thread that was abandoned."""

    async def run(self, work: Callable[[], _T]) -> _T:
        """What ``work`` returns or raises. Raises :class:`StalledError` if it does not end in time, or if earlier work has
        not ended yet. Work that was abandoned may take effect later."""
        if self.busy:
            raise StalledError
        begun, self.busy = False, True

        def job() -> _T:
            nonlocal begun
            begun = self.busy = True
            try:
                return work()
            finally:
                self.busy = False

        try:
            with trio.move_on_after(self._patience):
                return await trio.to_thread.run_sync(job, limiter=threads(), abandon_on_cancel=True)
        except RuntimeError as error:
            if begun:
                raise
            raise StalledError(f"no thread can be started: {error}") from error
        finally:
            if not begun:
                self.busy = False
        raise StalledError
