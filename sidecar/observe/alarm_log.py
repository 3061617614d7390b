"""The way of every alarm of a process: counted and folded (:mod:`sidecar.observe.alarms`), logged, kept for others to read.

Whatever meets something that may be an attack calls :meth:`AlarmLog.report`, which never waits. ``sidecar status`` and the
report to the CA read :attr:`AlarmLog.alarms`; :meth:`AlarmLog.news` wakes whoever passes alarms on. What was presented is
kept in the sidecar's state directory (:mod:`sidecar.observe.evidence`), one file an alarm, written beside the loop. A
sidecar without one (its certificates come from files, or `sidecar dev` made them) keeps none: the log has the certificate's
digest and its names.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import trio

from sidecar.host.disk import Disk
from sidecar.observe import evidence
from sidecar.observe.alarms import MAX_ALARMS, MITM_SUSPECTED, Alarm, Alarms, Severity
from sidecar.observe.logs import Log

MOST_WAITING = 8
"""Alarms whose evidence is not written yet. That of further ones is lost, and the log says so."""


MOST_KINDS = 32
OTHERS = "others"
"""So many events are counted apart, by severity; further ones together."""


class AlarmLog:
    """The alarms of one process. Start :meth:`run` in a nursery, so that counts are told when nothing repeats any more; call
    :meth:`write_all` at the end. ``counts``: how often each event was met, by severity, for the metrics."""

    def __init__(
        self,
        log: Log,
        clock: Callable[[], datetime],
        directory: Path | None = None,
        *,
        most: int = MAX_ALARMS,
        told: Callable[[Alarm], object] = lambda _alarm: None,
    ) -> None:
        """``directory``: where evidence is kept; None: nowhere. ``most``: alarms. ``told``: is called with each alarm that
        is written to the log, so the first time and then at growing intervals."""
        self.alarms = Alarms(most)
        self._told = told
        self._directory = directory
        self._disk = Disk()
        self._unkept: deque[tuple[Alarm, tuple[bytes, ...]]] = deque()
        self.counts = Counter({(MITM_SUSPECTED, str(Severity.ALARM)): 0})  # one that begins with 0 is seen to rise
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
        chain: tuple[bytes, ...] = (),
        **fields: str | None,
    ) -> Alarm:
        """Something was met that may be an attack. ``chain``: the certificates that were presented, in DER. ``fields``:
        further ones of :class:`Alarm`. Returns the alarm of this one time."""
        at = self._clock()
        met = Alarm(event, service, message, at, at, severity=severity, presented=presented or {}, **fields)  # type: ignore[arg-type]
        self.take(met, chain)
        return met

    def take(self, met: Alarm, chain: tuple[bytes, ...] = ()) -> None:
        """The same, of an alarm that is made."""
        kind = met.event, str(met.severity)
        if kind not in self.counts and len(self.counts) >= MOST_KINDS:  # a sidecar that reports may make up events
            kind = OTHERS, str(met.severity)
        self.counts[kind] += met.count
        is_new = met.id not in self.alarms
        self._write(self.alarms.add(met, trio.current_time()))
        self._changed.set()
        if is_new:
            if chain and self._directory is not None:
                if len(self._unkept) < MOST_WAITING:
                    self._unkept.append((met, chain))
                else:
                    self._log.warning("evidence_lost", service=met.service, id=met.id, message="too many at once")
            self._news.set()
            self._news = trio.Event()

    async def news(self) -> None:
        """Waits until there is an alarm that is none of those before."""
        await self._news.wait()

    async def run(self) -> None:
        """Tells counts when they are due, and keeps evidence, until cancelled. It is at rest while nothing is met."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_counts)
            nursery.start_soon(self._keep_evidence)

    async def _keep_evidence(self) -> None:
        while True:
            if not self._unkept:
                await self.news()
                continue
            await self._keep(*self._unkept[0])
            self._unkept.popleft()

    async def _keep(self, met: Alarm, chain: tuple[bytes, ...]) -> None:
        assert self._directory is not None  # noqa: S101 (see `report`)
        try:
            path = await self._disk.run(partial(evidence.keep, self._directory, met, chain, met.first))
        except OSError as error:
            message = f"{self._directory}: what was presented cannot be kept: {error.strerror or error}"
            self._log.warning("evidence_lost", service=met.service, id=met.id, message=message)
        else:
            self.alarms.keep_evidence(met.id, str(path))
            self._log.info("evidence_kept", service=met.service, id=met.id, message=str(path))

    async def _tell_counts(self) -> None:
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
            message = fields.pop("message")
            if one.count > 1:
                message += f"; met {one.count} times since {fields['first']}"
            severe = one.severity is Severity.ALARM
            self._log.alarm(fields.pop("event"), severe=severe, message=message, **fields)
            self._told(one)
