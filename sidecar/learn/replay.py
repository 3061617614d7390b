"""Which past connections another mesh file would treat otherwise. Pure: each verdict is that of ``decide``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sidecar.learn.seen import Call, Seen, Tally
from sidecar.policy.decide import Decision, decide
from sidecar.policy.mesh import Mesh


@dataclass(frozen=True, slots=True)
class Change:
    """A call that was seen, and the two verdicts on it, which differ."""

    call: Call
    tally: Tally
    before: Decision
    after: Decision

    @property
    def is_refusal(self) -> bool:
        """Whether what was allowed would be refused."""
        return not self.after.allowed

    @property
    def connections(self) -> int:
        return self.tally.connections or self.tally.refusals

    def as_json(self) -> dict[str, Any]:
        found = {
            "from": str(self.call.source),
            "to": str(self.call.target),
            "connections": self.connections,
            "before": "allow" if self.before.allowed else "deny",
            "after": "allow" if self.after.allowed else "deny",
            "rule_before": self.before.rule,
            "rule_after": self.after.rule,
            "why_before": self.before.because,
            "why_after": self.after.because,
            "first": None if self.tally.first is None else f"{self.tally.first:%FT%TZ}",
            "last": None if self.tally.last is None else f"{self.tally.last:%FT%TZ}",
        }
        return {name: value for name, value in found.items() if value is not None}

    def line(self) -> str:
        """It in one line, for people."""
        word = "REFUSED" if self.is_refusal else "allowed"
        last = "" if self.tally.last is None else f", last {self.tally.last:%F %H:%M}"
        number = f"{self.connections} connection{'' if self.connections == 1 else 's'}{last}"
        return f"{word}  {self.call}  {number}: before, {self.before.because}; now, {self.after.because}"


def replay(old: Mesh, new: Mesh, seen: Seen, now: datetime, later: datetime) -> list[Change]:
    """The calls whose verdict changes, those that would be refused first. The old file is asked at ``now``, the new one at
    ``later``: a rule of it may have run out by then."""
    return sorted(
        _changes(old, new, seen, now, later), key=lambda one: (not one.is_refusal, -one.connections, one.call.order)
    )


def as_json(changes: Sequence[Change], seen: Seen) -> dict[str, Any]:
    """The document of ``--json``."""
    return {
        "calls": len(seen.calls),
        "refused": sum(one.is_refusal for one in changes),
        "allowed": sum(not one.is_refusal for one in changes),
        "changes": [one.as_json() for one in changes],
        "left_out": dict(seen.left_out),
    }


def _changes(old: Mesh, new: Mesh, seen: Seen, now: datetime, later: datetime) -> Iterator[Change]:
    for call, tally in seen.calls.items():
        before = decide(old, call.source, call.target.service, call.target.port, now)
        after = decide(new, call.source, call.target.service, call.target.port, later)
        if before.allowed != after.allowed:
            yield Change(call, tally, before, after)
