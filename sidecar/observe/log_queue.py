"""Lines on their way to a stream that may not be read: a bounded queue, so that to write a line never waits.

How this works. A pipe that nobody reads, a stopped terminal and a dead disk all make ``write(2)`` wait, perhaps for ever. So
only a daemon thread writes; the program adds its lines to a queue. The queue is bounded in bytes and in lines. A line that
finds no room is dropped and counted, and a line that says how many were lost is written in their place as soon as the stream
takes anything again.

Each line has a :class:`Rank`. The last part of the queue is kept for lines of a higher rank, so a flood of lines that any
stranger can cause does not push out the line that matters. Order is kept: it is one queue.

Invariants. ``write`` takes no lock that the thread holds while it waits, and may be called by any thread and by a finalizer.
Lines written, lines lost and lines still in the queue add up to all lines. A stream without a file descriptor (in memory)
is written at once, in the caller.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import threading
import time
from collections.abc import Callable
from enum import IntEnum
from itertools import accumulate
from queue import Empty, SimpleQueue
from typing import Protocol, TextIO

FLUSH_SECONDS = 0.5
"""How long the end of the process waits for the queue to be written."""

BATCH_BYTES = 1 << 16

BUSY_SECONDS = 0.2
GATHER_SECONDS = 0.02
"""While lines come close on one another, the thread sleeps for so long and takes all that have come. A single line is
written at once, and so is everything as soon as there is an alarm."""


class Rank(IntEnum):
    """How much of the queue a line may use."""

    ORDINARY = 0
    PRESENTED = 1
    """A refusal of a certificate that was presented."""
    ALARM = 2


ROOM_BYTES = {Rank.ORDINARY: 4 << 20, Rank.PRESENTED: 5 << 20, Rank.ALARM: 6 << 20}
ROOM_LINES = {Rank.ORDINARY: 8_000, Rank.PRESENTED: 10_000, Rank.ALARM: 12_000}
"""How full the queue may become by a line of each rank."""

LostLine = Callable[[int], str]
"""Makes the line that says how many lines were lost."""


class Output(Protocol):
    """Where lines go."""

    @property
    def lost(self) -> int:
        """How many lines were lost so far."""

    def write(self, text: str, rank: Rank = Rank.ORDINARY) -> None:
        """Writes a line, or several, which end with a newline. Never waits for a reader, and raises nothing."""

    def flush(self, seconds: float = FLUSH_SECONDS) -> bool:
        """Waits until the lines so far are written, for so many seconds at most. Returns whether they are."""


def output(stream: TextIO, lost_line: LostLine) -> Output:
    """The way to a stream: a queue if it has a file descriptor."""
    try:
        descriptor = stream.fileno()
    except (AttributeError, OSError, ValueError):
        return _Direct(stream, lost_line)
    return LogQueue(descriptor, lost_line, stream.encoding or "utf-8")


class _Direct:
    """A stream in memory. Its failure (it is closed) ends nothing."""

    def __init__(self, stream: TextIO, lost_line: LostLine) -> None:
        self._stream = stream
        self._lost_line = lost_line
        self._said = 0
        self.lost = 0

    def write(self, text: str, rank: Rank = Rank.ORDINARY) -> None:
        try:
            if self.lost > self._said:
                self._stream.write(self._lost_line(self.lost - self._said))
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self.lost += 1
        else:
            self._said = self.lost

    def flush(self, seconds: float = FLUSH_SECONDS) -> bool:
        return True


class LogQueue:
    """The queue before one file descriptor, and the thread that empties it. The thread starts with the first line."""

    def __init__(self, descriptor: int, lost_line: LostLine, encoding: str = "utf-8") -> None:
        self._descriptor = descriptor
        self._lost_line = lost_line
        self._encoding = encoding
        self._begin()
        atexit.register(self.flush)
        # A child has the parent's lines, which the parent writes, and no thread.
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        # Each number only grows and is changed by one side alone: the program (under `_adding`, which the thread never
        # takes; reentrant, for finalizers) or the thread. So neither side waits for the other.
        self._adding = threading.RLock()
        self._queue: SimpleQueue[tuple[int, bytes] | threading.Event] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._bytes_in = self._lines_in = self._dropped = 0
        self._bytes_out = self._lines_out = self._failed = self._said = 0
        self._torn = False
        self._written_at = -BUSY_SECONDS
        # Not empty: do not gather. A write may interrupt another: a SimpleQueue's put may, an Event's lock is not reentrant.
        self._hurry: SimpleQueue[None] = SimpleQueue()

    @property
    def lost(self) -> int:
        return self._dropped + self._failed

    def write(self, text: str, rank: Rank = Rank.ORDINARY) -> None:
        data = text.encode(self._encoding, "backslashreplace")
        with self._adding:
            if (
                self._bytes_in - self._bytes_out + len(data) > ROOM_BYTES[rank]
                or self._lines_in - self._lines_out >= ROOM_LINES[rank]
                or not self._started()
            ):
                self._dropped += 1
                return
            self._bytes_in += len(data)
            self._lines_in += 1
            self._queue.put((self._dropped, data))
        if rank is Rank.ALARM:
            self._hurry.put(None)

    def flush(self, seconds: float = FLUSH_SECONDS) -> bool:
        if self._thread is None:
            return True
        reached = threading.Event()
        self._queue.put(reached)
        self._hurry.put(None)
        return reached.wait(seconds)

    def _started(self) -> bool:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="log", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no thread can be started: now, or because the process ends
                return False
            self._thread = thread
        return True

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            lines, reached = self._next_batch()
            self._write_lines(lines)
            self._bytes_out += sum(len(data) for _, data in lines)
            self._lines_out += len(lines)
            if self._queue.empty():
                self._write_lines([(self._dropped, b"")])
            self._written_at = time.monotonic()
            if reached is not None:
                reached.set()

    def _next_batch(self) -> tuple[list[tuple[int, bytes]], threading.Event | None]:
        """Waits for lines: each with the number of lines that were dropped before it; or for a call of ``flush``."""
        item = self._queue.get()
        if not isinstance(item, threading.Event) and time.monotonic() - self._written_at < BUSY_SECONDS:
            with contextlib.suppress(Empty):  # to be woken for each line costs the program more than the line
                self._hurry.get(timeout=GATHER_SECONDS)
        while not self._hurry.empty():  # before what hurries is taken: what comes later hurries again
            self._hurry.get_nowait()
        lines: list[tuple[int, bytes]] = []
        size = 0
        while not isinstance(item, threading.Event):
            lines.append(item)
            size += len(item[1])
            if size >= BATCH_BYTES:
                return lines, None
            try:
                item = self._queue.get_nowait()
            except Empty:
                return lines, None
        return lines, item

    def _write_lines(self, lines: list[tuple[int, bytes]]) -> None:
        """Writes lines, and in their places how many were lost before them. Those that cannot be written are lost."""
        parts: list[tuple[int, bytes]] = []  # each with the number of lost lines that it reports
        said = self._said
        for dropped, data in lines:
            if (missing := dropped + self._failed - said) > 0:
                said += missing
                parts.append((missing, self._lost_line(missing).encode(self._encoding, "backslashreplace")))
            if data:
                parts.append((0, data))
        if not parts:
            return
        ends = list(accumulate(len(data) for _, data in parts))
        written = self._write_all(b"\n" * self._torn + b"".join(data for _, data in parts)) - self._torn
        for (missing, _), end in zip(parts, ends, strict=True):
            if end <= written:
                self._said += missing
            elif not missing:
                self._failed += 1
        self._torn = written not in {0, *ends}  # the next line begins on a line of its own

    def _write_all(self, data: bytes) -> int:
        """Returns how many bytes were written: fewer than all if the stream fails (a closed pipe, a full disk)."""
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:  # another program made the stream non-blocking
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()
            except OSError:
                break
        return len(data) - len(left)
