"""What Python and libraries would write to stderr goes to the log: stderr may be a pipe that nobody reads, and then such a
write would stop the program. A peer can cause some of it: a certificate with an odd field makes its parser warn."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from sidecar.observe.logs import Log

EVENT = "stray_output"


@contextmanager
def to_log(log: Log) -> Iterator[None]:
    """During the block: warnings, log records of libraries, and exceptions that nothing catches in a finalizer or a thread.
    An exception that ends the program is printed on stderr still."""

    def show_warning(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        log.warning(EVENT, message=f"{category.__name__}: {message}", where=f"{filename}:{lineno}")

    def report(error: BaseException | None, where: str) -> None:
        log.bug(EVENT, error or RuntimeError("unknown"), where=where)

    before = warnings.showwarning, sys.unraisablehook, threading.excepthook
    records = _Records(log)
    warnings.showwarning = show_warning
    sys.unraisablehook = lambda one: report(one.exc_value, one.err_msg or "in a finalizer")
    threading.excepthook = lambda one: report(one.exc_value, f"in thread {one.thread and one.thread.name}")
    logging.getLogger().addHandler(records)
    try:
        yield
    finally:
        warnings.showwarning, sys.unraisablehook, threading.excepthook = before
        logging.getLogger().removeHandler(records)


class _Records(logging.Handler):
    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._log.warning(EVENT, message=self.format(record), where=record.name)
        except Exception as error:  # a record whose arguments do not fit its text
            self._log.bug(EVENT, error, where=record.name)
