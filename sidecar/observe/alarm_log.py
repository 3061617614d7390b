"""The way of every alarm of a process: counted and folded (:mod:`sidecar.observe.alarms`), logged, kept for others to read.

Whatever meets something that may be an attack calls :meth:`AlarmLog.report`, which never waits. ``sidecar status`` and the
report to the CA read :attr:`AlarmLog.alarms`; :meth:`AlarmLog.news` wakes whoever passes alarms on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

import trio

from sidecar.observe.alarms import MITM_SUSPECTED, Alarm, Alarms, Severity
from sidecar.observe.logs import Log


class AlarmLog:
    """The alarms of one process. Start :meth:`run` in a nursery, so that counts are told when nothing repeats any more; call
    :meth:`write_all` at the end."""

    def __init__(self, log: Log, clock: Callable[[], datetime]) -> None:
        self.alarms = Alarms()
        self._log = log
        self._clock = clock
        self._changed = trio.Event()
        self._news = trio.Event()

    def report(
        self,
        message: str,
        *,
        service: str,
        event: str = MITM_SUSPECTED,
        severity: Severity = Severity.ALARM,
        presented: Mapping[str, Any] | None = None,
        **fields: str | None,
    ) -> Alarm:
        """Something was met that may be an attack. ``fields``: further ones of :class:`Alarm`. Returns the alarm of this
        one time."""
        at = self._clock()
        met = Alarm(event, service, message, at, at, severity=severity, presented=presented or {}, **fields)  # type: ignore[arg-type]
        is_new = met.id not in self.alarms
        self._write(self.alarms.add(met, trio.current_time()))
        self._changed.set()
        if is_new:
            self._news.set()
            self._news = trio.Event()
        return met

    async def news(self) -> None:
        """Waits until there is an alarm that is none of those before."""
        await self._news.wait()

    async def run(self) -> None:
        """Tells counts when they are due, until cancelled. It is at rest while nothing repeats."""
        while True:
            if (due := self.alarms.next_due) < math.inf:
                await trio.sleep_until(due)
                self._write(self.alarms.take_due(trio.current_time()))
            else:
                await self._changed.wait()
                self._changed = trio.Event()

    def write_all(self) -> None:
        """Tells what is untold."""
        self._write(self.alarms.take_all(trio.current_time()))

    def _write(self, alarms: Iterable[Alarm]) -> None:
        for one in alarms:
            fields = one.to_dict()
            if one.count > 1:
                fields["message"] += f"; met {one.count} times since {fields['first']}"
            self._log.alarm(fields.pop("event"), severe=one.severity is Severity.ALARM, **fields)
