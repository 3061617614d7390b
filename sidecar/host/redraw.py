"""Shows a text again and again, as watch(1) does: a terminal is redrawn in place, a pipe gets one text after another.

How this works. The terminal shows its alternate screen meanwhile, as for an editor, so what was there before comes back.
Each picture is one write that begins at the top and erases what is left of the last one, so nothing flickers. Lines do not
wrap: the terminal cuts them. SIGINT, SIGTERM and SIGHUP end it in the same way, with the terminal as it was. What is asked
may be away, as a sidecar that restarts: then the last text stays, below a line that says since when.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TextIO

from sidecar.documents.printable import printable
from sidecar.host.clock import utc_now

_BEGIN, _END = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l"
"""The alternate screen without a cursor and without wrapped lines, and back (xterm's control sequences)."""

_TOP, _REST_OF_LINE, _REST = "\x1b[H", "\x1b[K", "\x1b[J"


@dataclass(frozen=True, slots=True)
class Look:
    """What one look found: a text, which is escaped already, or a fault in its place."""

    text: str = ""
    fault: str = ""


def watch(
    look: Callable[[], Look],
    seconds: float,
    out: TextIO,
    clock: Callable[[], datetime] = utc_now,
    sleep: Callable[[float], object] = time.sleep,  # noqa: TID251 (there is no loop here that it would stop)
) -> None:
    """Shows what ``look`` finds, every ``seconds``, until a signal ends it."""
    try:
        with _signals_interrupt(), _screen(out) if out.isatty() else _pages(out) as show:
            good, good_at, bad_since = "", "", ""
            while True:
                found, now = look(), f"{clock():%FT%TZ}"
                if not found.fault:
                    good, good_at, bad_since = found.text, now, ""
                    show(f"{now}, every {seconds:g} s; Ctrl-C ends it", good, "")
                else:
                    bad_since = bad_since or now
                    head = f"{now}, NO ANSWER since {bad_since}, asking again\n{printable(found.fault)}"
                    show(head, "", good and f"Found at {good_at}:\n\n{good}")
                sleep(seconds)
    except KeyboardInterrupt:
        return


def watch_lines(
    look: Callable[[], str],
    seconds: float,
    out: TextIO,
    sleep: Callable[[float], object] = time.sleep,  # noqa: TID251 (see above)
) -> None:
    """Writes what ``look`` finds, a line each, every ``seconds``, until a signal ends it: for programs."""
    try:
        with _signals_interrupt():
            while True:
                out.write(f"{look()}\n")
                out.flush()
                sleep(seconds)
    except KeyboardInterrupt:
        return


Show = Callable[[str, str, str], None]
"""Shows a head, the text of now, and one of before that is out of date."""


@contextmanager
def _pages(out: TextIO) -> Iterator[Show]:
    """For a pipe: a text after another. What is out of date was written before."""

    def show(head: str, text: str, _old: str) -> None:
        out.write("\n".join([head, *filter(None, [text]), "", ""]))
        out.flush()

    yield show


@contextmanager
def _screen(out: TextIO) -> Iterator[Show]:
    def show(head: str, text: str, old: str) -> None:
        lines = [*head.splitlines(), "", *(text or old).splitlines()]
        rows = _rows(out)
        if len(lines) > rows:
            lines[rows - 1 :] = [f"… and {len(lines) - rows + 1} more lines, for which this window is too small"]
        out.write(_TOP + "\n".join(line + _REST_OF_LINE for line in lines) + _REST)
        out.flush()

    out.write(_BEGIN)
    try:
        yield show
    finally:
        out.write(_END)
        out.flush()


def _rows(out: TextIO) -> int:
    try:
        return max(2, os.get_terminal_size(out.fileno()).lines)
    except (OSError, ValueError):
        return 24


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """During the block the signals that end a program raise :class:`KeyboardInterrupt`, so that the terminal is put back."""
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
