"""What is refused soon, because a rule with an ``until`` runs out and no other rule allows it. Pure.

Every verdict is :func:`sidecar.policy.decide.decide`'s, asked for the days that come.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from sidecar.policy.decide import caller_name, decide
from sidecar.policy.mesh import Mesh, Rule
from sidecar.policy.names import Caller, Target

SOON_DAYS = 7


@dataclass(frozen=True, slots=True)
class Ending:
    """A call that the rule of this name is the last to allow, and its last day (UTC)."""

    caller: str
    target: str
    rule: str
    until: date

    def __str__(self) -> str:
        return f"{self.caller} -> {self.target}"

    def as_json(self) -> dict[str, str]:
        return {"from": self.caller, "to": self.target, "rule": self.rule, "until": str(self.until)}


def ending_rules(mesh: Mesh, now: datetime) -> list[Rule]:
    """The rules in force that allow something and run out within :data:`SOON_DAYS`, those that end first at the head."""
    soon = now.astimezone(UTC).date() + timedelta(days=SOON_DAYS)
    found = [
        rule
        for rule in mesh.rules
        if rule.action == "allow" and rule.mode == "enforce" and rule.until is not None
        if rule.until < soon and not rule.ran_out(now)
    ]
    return sorted(found, key=lambda rule: (str(rule.until), rule.name))


def endings(mesh: Mesh, calls: Iterable[tuple[Caller, Target]], now: datetime) -> Iterator[Ending | None]:
    """Of each call the end, None if it has none soon. ``calls``: those that were seen. It may be slow where there are
    thousands of rules, so it yields after each call."""
    days = sorted({rule.until for rule in ending_rules(mesh, now) if rule.until is not None})
    for source, target in calls:
        yield next((found for day in days if (found := _ending(mesh, source, target, now, day)) is not None), None)


def _ending(mesh: Mesh, source: Caller, target: Target, now: datetime, day: date) -> Ending | None:
    """The end of a call if it is allowed on this day and refused on the next."""
    last = max(now, datetime.combine(day, time(), UTC))
    next_day = datetime.combine(day + timedelta(days=1), time(), UTC)
    decision = decide(mesh, source, target.service, target.port, last)
    if not decision.allowed or decide(mesh, source, target.service, target.port, next_day).allowed:
        return None
    return Ending(caller_name(mesh, source), str(target), str(decision.rule), day)
