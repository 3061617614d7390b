"""Alarms: what may be an attack, folded so that each thing is one alarm with a count. Pure: time is an argument.

How this works. An :class:`Alarm` is one thing that was met: who met it, where, what was expected, what was presented. The
same thing met again is the same alarm (:attr:`Alarm.id`), with a later ``last`` and a higher ``count``. What an attacker can
change at will, such as the certificate that he makes, is no part of the id: a new one for each connection gives no new
alarm. :class:`Alarms` says when an alarm is due to be told: the first time at once, then with its count at growing
intervals, and at the end.

Invariants:

* Nothing is hidden: the first of each thing is told at once, and every count is told, at the latest by
  :meth:`Alarms.take_all` or when the alarm gives way to a newer one.
* Bounded: ``most`` are kept. Notices give way first, then the alarm that was not met for the longest time.
* No decision rests on an alarm. Whoever is suspected was refused before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from typing import Any

MAX_ALARMS = 64
MAX_PLACES = 8
"""Places that are told of one presented certificate."""

INTERVALS = (60.0, 300.0, 900.0, 3600.0)
"""Seconds from one line about an alarm to the next, while it repeats; the last counts for all further ones."""

QUIET_SECONDS = 3600.0
"""An alarm that was not met for so long begins again with the first interval."""

MITM_SUSPECTED = "mitm_suspected"


class Severity(StrEnum):
    """``ALARM``: a person should look now. ``NOTICE``: probably honest, and worth knowing if it repeats."""

    ALARM = "alarm"
    NOTICE = "notice"


@dataclass(frozen=True, slots=True)
class Alarm:
    """One thing that was met. ``message``: what happened, in words; ``next``: what to do. ``presented``: what an unverified
    peer claims, escaped. ``elsewhere``: where else that certificate was met. ``evidence``: the file with the whole chain.
    ``reported_by``: the identity whose sidecar reported it to the CA. ``first``, ``last``, ``count``: of all its repeats; in
    one that is met now, the time and 1."""

    event: str
    service: str
    message: str
    first: datetime
    last: datetime
    count: int = 1
    severity: Severity = Severity.ALARM
    upstream: str | None = None
    reason: str | None = None
    peer_address: str | None = None
    expected: str | None = None
    presented: Mapping[str, Any] = field(default_factory=dict)
    next: str | None = None
    connection_id: str | None = None
    evidence: str | None = None
    reported_by: str | None = None
    elsewhere: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The same for the same thing, in every run and on every machine: 16 hex digits."""
        same = (
            self.event, self.service, self.upstream, self.reason, self.peer_address, self.expected,
            self.presented.get("serial"),
        )  # fmt: skip
        return sha256(repr(tuple(map(str, same))).encode()).hexdigest()[:16]

    @property
    def place(self) -> str:
        """Where it was met, in words: ``api -> db:postgres at 10.0.0.7:5432``."""
        where = self.service if self.upstream is None else f"{self.service} -> {self.upstream}"
        return where if self.peer_address is None else f"{where} at {self.peer_address}"

    def to_dict(self) -> dict[str, Any]:
        """As values that JSON can hold. What is not known is left out."""
        values = {
            "id": self.id,
            "event": self.event,
            "severity": str(self.severity),
            "service": self.service,
            "upstream": self.upstream,
            "reason": self.reason,
            "peer_address": self.peer_address,
            "expected": self.expected,
            "presented": dict(self.presented),
            "first": f"{self.first:%FT%TZ}",
            "last": f"{self.last:%FT%TZ}",
            "count": self.count,
            "elsewhere": list(self.elsewhere),
            "connection_id": self.connection_id,
            "message": self.message,
            "next": self.next,
            "evidence": self.evidence,
            "reported_by": self.reported_by,
        }
        return {name: value for name, value in values.items() if value}


@dataclass(slots=True)
class _Kept:
    """``told``: the count of the last line, at ``told_at``; ``lines``: since the alarm began; ``met_at``: the last time."""

    alarm: Alarm
    met_at: float
    told_at: float
    told: int = 1
    lines: int = 1

    @property
    def due(self) -> float:
        """When the next line may be written; never, if nothing is untold."""
        if self.alarm.count == self.told:
            return math.inf
        return self.told_at + INTERVALS[min(self.lines, len(INTERVALS)) - 1]

    def tell(self, now: float) -> Alarm:
        self.told, self.told_at = self.alarm.count, now
        self.lines += 1
        return self.alarm


class Alarms:
    """The alarms of one process. ``now``: seconds of a clock that does not go back. ``version`` rises with each change."""

    def __init__(self, most: int = MAX_ALARMS) -> None:
        self.version = 0
        self._most = most
        self._kept: dict[str, _Kept] = {}  # the one that was met last is last
        self._places: dict[str, dict[str, None]] = {}  # of a presented certificate's digest

    def __contains__(self, key: object) -> bool:
        return key in self._kept

    def current(self) -> list[dict[str, Any]]:
        """As values that JSON can hold, the one that was met last is last."""
        return [kept.alarm.to_dict() for kept in self._kept.values()]

    def add(self, met: Alarm, now: float) -> list[Alarm]:
        """Takes what was met now. Returns what is to be told now: itself if it is new or due again, and what gives way."""
        self.version += 1
        self._note_place(met)
        key = met.id
        if (kept := self._kept.pop(key, None)) is None:
            given_way = self._make_room(now)
            self._kept[key] = _Kept(replace(met, elsewhere=self._elsewhere(met)), now, now)
            return [*given_way, self._kept[key].alarm]
        self._kept[key] = kept  # the last one now
        if begins_again := now - kept.met_at >= QUIET_SECONDS:
            kept.lines = 0
        kept.met_at = now
        before = kept.alarm
        kept.alarm = replace(
            met,
            first=before.first,
            count=before.count + met.count,
            evidence=met.evidence or before.evidence,
            elsewhere=self._elsewhere(met),
        )
        return [kept.tell(now)] if begins_again or kept.due <= now else []

    def keep_evidence(self, key: str, path: str) -> None:
        """An alarm's evidence is in this file now. Without effect if the alarm is not kept any more."""
        if (kept := self._kept.get(key)) is not None:
            kept.alarm = replace(kept.alarm, evidence=path)
            self.version += 1

    @property
    def next_due(self) -> float:
        """When the next line is due; infinity if nothing is untold."""
        return min((kept.due for kept in self._kept.values()), default=math.inf)

    def take_due(self, now: float) -> list[Alarm]:
        """What is to be told by now, once."""
        return self._tell((kept for kept in self._kept.values() if kept.due <= now), now)

    def take_all(self, now: float) -> list[Alarm]:
        """Everything that is untold, once: for the end."""
        return self._tell((kept for kept in self._kept.values() if kept.due < math.inf), now)

    @staticmethod
    def _tell(due: Iterable[_Kept], now: float) -> list[Alarm]:
        return [kept.tell(now) for kept in due]

    def _make_room(self, now: float) -> list[Alarm]:
        """Removes one alarm if there are too many. Returns it if its count is untold."""
        if len(self._kept) < self._most:
            return []
        notices = (key for key, kept in self._kept.items() if kept.alarm.severity is Severity.NOTICE)
        gone = self._kept.pop(next(notices, next(iter(self._kept))))
        return self._tell([gone] if gone.due < math.inf else [], now)

    # -- where else ----------------------------------------------------------------------------------------------------

    def _note_place(self, met: Alarm) -> None:
        if (digest := met.presented.get("sha256")) is None:
            return
        places = self._places.pop(digest, {})
        places.pop(met.place, None)
        places[met.place] = None
        if len(places) > MAX_PLACES + 1:
            del places[next(iter(places))]
        self._places[digest] = places
        if len(self._places) > MAX_ALARMS:
            del self._places[next(iter(self._places))]

    def _elsewhere(self, met: Alarm) -> tuple[str, ...]:
        places = self._places.get(met.presented.get("sha256", ""), {})
        return tuple(sorted(place for place in places if place != met.place))


def alarm_lines(alarm: Mapping[str, Any]) -> list[str]:
    """One alarm for people, its text escaped already: what, since when, how often, where else, what to do."""
    title = "ALARM" if alarm.get("severity", "alarm") == "alarm" else "notice"
    first, last, count = alarm["first"], alarm["last"], alarm["count"]
    when = f"at {first}" if count == 1 else f"{count} times since {first}, last at {last}"
    lines = [f"  {title} {alarm['event']} {when}: {alarm['message']}"]
    lines += [f"    also met: {place}" for place in alarm.get("elsewhere", ())]
    if path := alarm.get("evidence"):
        lines.append(f"    evidence: {path}")
    return [*lines, f"    next: {alarm['next']}"] if alarm.get("next") else lines
