"""Writes the summaries of strangers' folded lines, each when its minute ends. :mod:`sidecar.observe.folding` says which."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

import trio

from sidecar.observe.folding import Folding, Listener, Summary, is_foldable
from sidecar.observe.logs import Log
from sidecar.observe.record import ConnectionRecord


class Summaries:
    """The folded lines of one service. ``what``: what each line was about. Start :meth:`run` in a nursery; call
    :meth:`write_all` after the last connection."""

    def __init__(self, service: str, log: Log, clock: Callable[[], datetime], what: str = "sockets") -> None:
        self._service = service
        self._what = what
        self._log = log
        self._clock = clock
        self._folding = Folding()
        self._begun = trio.Event()

    def fold(self, record: ConnectionRecord) -> bool:
        """Whether a connection is counted for a summary in place of its line."""
        if not is_foldable(record):
            return False
        listener = Listener(record.direction, record.port, record.upstream)
        address = record.peer_address if record.direction == "inbound" else record.client_address
        return self.fold_refusal(listener, str(record.outcome), address)

    def fold_refusal(self, listener: Listener, reason: str, address: str | None) -> bool:
        """The same for a refusal without a record, of a caller that presented no certificate. ``address``: the caller's."""
        folded = self._folding.fold(listener, reason, address, trio.current_time())
        self._begun.set()
        return folded

    async def run(self) -> None:
        """Runs until cancelled. It is at rest while no stranger comes."""
        while True:
            await self._begun.wait()
            self._begun = trio.Event()
            while (end := self._folding.next_end) is not None:
                await trio.sleep_until(end)
                self._write(self._folding.take_ended(trio.current_time()))

    def write_all(self) -> None:
        """Writes the summaries of the minutes that have not ended."""
        self._write(self._folding.take_all())

    def _write(self, summaries: Iterable[Summary]) -> None:
        for one in summaries:
            self._log.summary(self._line(one))

    def _line(self, one: Summary) -> dict[str, Any]:
        at = self._clock() - timedelta(seconds=trio.current_time())
        listener = one.listener
        return {
            "direction": listener.direction,
            "service": self._service,
            "port": listener.port,
            "peer_address" if listener.direction == "inbound" else "client_address": one.address,
            "upstream": listener.upstream,
            "reason": one.reason,
            "count": one.count,
            "since": f"{at + timedelta(seconds=one.since):%FT%TZ}",
            "until": f"{at + timedelta(seconds=one.until):%FT%TZ}",
            "message": f"{self._service}: {one.count} more {self._what} of {one.address or 'an unknown address'} ended "
            "alike; they presented no certificate",
        }
