"""The alarms of a whole mesh: those that sidecars report, and the CA's own. For people; nothing is decided by them.

How this works. A report has all alarms of a sidecar, each with its count so far. What is new since the sidecar's last
report goes the way of every alarm (:class:`~sidecar.observe.alarm_log.AlarmLog`): folded, kept, written to the CA's log,
and posted if it is no mere notice (:mod:`certs.service.posting`). So one certificate that was met by several sidecars is
seen to be one.

What a sidecar reports is its claim, taken for what it is: who reports is what its certificate proved, every field has a type
and a length, and one identity can raise :data:`NEW` alarms and then one a minute. Further ones are one alarm: too many.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import trio

from certs.service.limits import Buckets, Rate
from sidecar.documents.printable import printable, printable_values
from sidecar.identity.spiffe import SpiffeId
from sidecar.observe.alarm_log import AlarmLog
from sidecar.observe.alarms import Alarm, Severity
from sidecar.observe.logs import Log

MOST_ALARMS = 256
MOST_COUNTS = 4096
NEW = Rate(64, 1 / 60)

TOO_MANY_ALARMS, TOKEN_USED_TWICE = "too_many_alarms", "token_used_twice"

_EVENT = re.compile(r"[a-z_]{1,40}")
_TEXTS = ("upstream", "reason", "peer_address", "expected", "next", "connection_id", "evidence")
_MAX_TEXT = 500
_MAX_CLAIMS = 8


class AlarmDesk:
    """``post``: is called with each alarm that is to be posted, and its id."""

    def __init__(
        self, log: Log, clock: Callable[[], datetime], post: Callable[[str, Mapping[str, Any]], object]
    ) -> None:
        self._post = post
        self._clock = clock
        self._counts: OrderedDict[tuple[str, str, str], int] = OrderedDict()
        self._new = Buckets(NEW)
        self.log = AlarmLog(log, clock, most=MOST_ALARMS, told=self._told)

    def current(self) -> list[dict[str, Any]]:
        """As values that JSON can hold, the one that was met last is last."""
        return self.log.alarms.current()

    def take(self, identity: str, service: str, instance: str, alarms: Sequence[Any]) -> None:
        """Takes the alarms of one sidecar's report. What is no alarm is left out."""
        for one in alarms:
            if (met := _read(one, service, identity, self._clock())) is not None:
                self._take(identity, service, instance, met)

    def token_used_twice(self, identity: SpiffeId, address: str, *, lives: bool) -> None:
        """Somebody at an address knows a token that another has used. ``lives``: so does the holder of the identity."""
        self.log.report(
            f"a one-time token of {identity} was presented again, with another key, from {address}",
            service=str(identity.service),
            event=TOKEN_USED_TWICE,
            severity=Severity.ALARM if lives else Severity.NOTICE,
            peer_address=address.rpartition(":")[0],
            expected=str(identity),
            next=f"if that was nobody of yours, the token was stolen: certs revoke {identity.service}",
        )

    def _take(self, identity: str, service: str, instance: str, met: Alarm) -> None:
        key = (identity, instance, met.id)
        before = self._counts.pop(key, 0)
        if before == 0 and not self._new.take(identity, trio.current_time()):
            self.log.report(
                f"{identity} reports more alarms than are shown one by one: its sidecar meets very many, or was taken over",
                service=service,
                event=TOO_MANY_ALARMS,
                next=f"look at its own log, or ask it: sidecar status; if it was taken over: certs revoke {service}",
                reported_by=identity,
            )
            return
        self._counts[key] = met.count
        if len(self._counts) > MOST_COUNTS:
            self._counts.popitem(last=False)
        more = met.count - before if met.count >= before else met.count  # it was restarted, and counts anew
        if more:
            self.log.take(replace(met, count=more))

    def _told(self, alarm: Alarm) -> None:
        if alarm.severity is Severity.ALARM:
            self._post(alarm.id, alarm.to_dict())


def _read(fields: Any, service: str, identity: str, now: datetime) -> Alarm | None:
    """An alarm of a report, each text escaped; None if it is none."""
    if not isinstance(fields, dict) or not isinstance(event := fields.get("event"), str) or not _EVENT.fullmatch(event):
        return None
    count, message, presented = fields.get("count"), fields.get("message"), fields.get("presented", {})
    if (
        type(count) is not int
        or not 0 < count < 2**53
        or not isinstance(message, str)
        or not isinstance(presented, dict)
    ):
        return None
    texts = {name: value[:_MAX_TEXT] for name in _TEXTS if isinstance(value := fields.get(name), str)}
    claims = {
        str(name)[:40]: value[:_MAX_TEXT]
        for name, value in list(presented.items())[:_MAX_CLAIMS]
        if isinstance(value, str)
    }
    return Alarm(
        event,
        service,
        printable(message[:_MAX_TEXT]),
        _time(fields.get("first"), now),
        _time(fields.get("last"), now),
        count,
        severity=Severity.NOTICE if fields.get("severity") == Severity.NOTICE else Severity.ALARM,
        presented=printable_values(claims),
        reported_by=identity,
        **printable_values(texts),
    )


def _time(text: Any, now: datetime) -> datetime:
    """A time in a report; now, if it is none, or is later."""
    try:
        found = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return now
    return min(found, now) if found.tzinfo is not None else now
