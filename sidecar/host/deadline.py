"""A time limit that leaves nothing behind, for what strangers can let run out.

:func:`trio.fail_at` does the same, but it is a generator: on Python 3.13 the frames of an exception that went through it are
a cycle, which keeps the connection, with all of its TLS, until Python's collector comes by.
"""

from __future__ import annotations

from types import TracebackType

import trio


class Deadline:
    """``with Deadline(at): …`` raises :class:`trio.TooSlowError` if the block is not done by ``at``, in trio's time."""

    def __init__(self, at: float) -> None:
        self._scope = trio.CancelScope(deadline=at)

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """From now."""
        return cls(trio.current_time() + seconds)

    def __enter__(self) -> trio.CancelScope:
        return self._scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        is_caught = self._scope.__exit__(kind, error, traceback)
        if self._scope.cancelled_caught:
            raise trio.TooSlowError
        return is_caught
