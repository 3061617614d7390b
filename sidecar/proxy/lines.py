"""The records of one accepted socket: one at a time, each reported once. Pure but for ``report``."""

from __future__ import annotations

from collections.abc import Callable

from sidecar.observe.record import ConnectionRecord


class Lines:
    """``present``: the record of the connection, or of the present stream of a kept channel; between two streams it is the
    last one, and ``is_open`` is false."""

    def __init__(self, record: ConnectionRecord, report: Callable[[ConnectionRecord], object]) -> None:
        self._upstream = record.upstream  # the target, as long as nothing more is known
        self._report = report
        self.present = record
        self.is_open = True

    def begin(self, now: float) -> None:
        """A further stream begins. ``now`` is of the clock of ``started``."""
        last = self.present
        self.present = ConnectionRecord(last.direction, last.service, last.port, started=now, upstream=self._upstream)
        self.present.peer_address = last.peer_address
        self.is_open = True

    def end(self) -> None:
        """Reports the present record, once."""
        if self.is_open:
            self.is_open = False
            self._report(self.present)
