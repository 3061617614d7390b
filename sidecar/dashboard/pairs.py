"""Who calls whom: the flows of both ends become one pair for each caller and callee. Pure.

How this works. Both ends count a call. The callee's numbers are taken, since it knows who its caller is by a verified
certificate; the caller's are for what never arrived. A pair is there because calls were seen, because the policy allows it
and the caller is wired for it, or because somebody was refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sidecar.dashboard.rates import Counts, Rates
from sidecar.dashboard.reading import Flow, Shown, Sidecar
from sidecar.observe.traffic import OTHERS

STRANGERS = "some stranger"
"""The node that stands for whoever proved no identity. With a space, as those that follow, which no
service has in its name."""

PLAINTEXT = "plaintext callers"
"""The node that stands for whoever speaks plaintext to a permissive port."""

OTHER_CALLERS = "other callers"
"""The node that stands for callers that a sidecar has no room to count one by one."""


@dataclass(slots=True)
class _Sums:
    """Of one port of a pair, as one of its ends saw it."""

    opened: int = 0
    live: int = 0
    refused: int = 0
    to_callee: int = 0
    to_caller: int = 0
    streams: int = 0
    reused: int = 0
    rate: float | None = None
    up: float = 0.0
    down: float = 0.0
    refused_rate: float = 0.0
    opening: float | None = None
    rules: dict[str, None] = field(default_factory=dict)

    def add(self, flow: Flow, rates: tuple[float, ...] | None, *, fresh: bool) -> None:
        for name in ("opened", "refused", "to_callee", "to_caller", "streams", "reused"):
            setattr(self, name, getattr(self, name) + getattr(flow, name))
        self.live += flow.live if fresh else 0  # what is open at one that is gone, nobody knows
        if flow.rule:
            self.rules[flow.rule] = None
        if rates is None:
            return
        opened, up, down, refused, opening = rates
        self.rate = (self.rate or 0.0) + opened
        self.up, self.down, self.refused_rate = self.up + up, self.down + down, self.refused_rate + refused
        if flow.opening_ms is not None and opened > 0:
            self.opening = max(self.opening or 0.0, opening / opened)

    def as_json(self) -> dict[str, Any]:
        return {
            "opened": self.opened,
            "live": self.live,
            "refused": self.refused,
            "to_callee": self.to_callee,
            "to_caller": self.to_caller,
            "streams": self.streams,
            "reused": self.reused,
            "rate": None if self.rate is None else round(self.rate, 2),
            "up": round(self.up),
            "down": round(self.down),
            "opening_ms": None if self.opening is None else round(self.opening, 1),
            "rules": list(self.rules),
        }


def counters(shown: Shown) -> dict[Any, tuple[float, Counts]]:
    """What :class:`Rates` takes: of each flow its counters, and when its report came."""
    return {
        _key(sidecar, flow): (
            sidecar.received.timestamp(),
            (flow.opened, flow.to_callee, flow.to_caller, flow.refused, flow.opening_ms or 0),
        )
        for sidecar in shown.sidecars
        for flow in sidecar.flows
    }


def pairs(shown: Shown, rates: Rates) -> dict[str, dict[str, Any]]:
    """By ``caller>callee``: the pair, as values that JSON can hold."""
    now = shown.now.timestamp()
    seen: dict[tuple[str, str, str], tuple[_Sums, _Sums]] = {}
    for sidecar in shown.sidecars:
        for flow in sidecar.flows:
            caller = _caller(shown, flow)
            ends = seen.setdefault((caller, flow.callee, flow.port), (_Sums(), _Sums()))
            ends[not flow.inbound].add(flow, rates.of(_key(sidecar, flow), now), fresh=sidecar.fresh)
    found: dict[str, dict[str, Any]] = {}
    for (caller, callee, port), (inbound, outbound) in seen.items():
        # What the callee did not let in, it did not see as opened: then the caller's numbers say more.
        best = inbound if inbound.opened or inbound.refused else outbound
        refused = max(inbound.refused, outbound.refused)
        if best.opened or refused:
            clear = {"plaintext": True} if caller == PLAINTEXT else {}
            _pair(found, caller, callee)["ports"][port] = {**best.as_json(), "refused": refused, **clear}
    for caller, callee, port in _permitted(shown.sidecars):
        _pair(found, caller, callee)["ports"].setdefault(port, _Sums().as_json())
    for (callee, port), plaintext in _in_the_clear(shown.sidecars).items():
        # The same callers as those of the flow, if there is one: an inventory is kept longer, and has no rates.
        told = {**_Sums(opened=plaintext).as_json(), "plaintext": True}
        _pair(found, PLAINTEXT, callee)["ports"].setdefault(port, told)
    for one in found.values():
        one |= _totals(one["ports"].values())
    return found


def id_of(caller: str, callee: str) -> str:
    return f"{caller}>{callee}"


def _caller(shown: Shown, flow: Flow) -> str:
    if flow.plaintext:
        return PLAINTEXT
    if flow.inbound and flow.caller == OTHERS and OTHERS not in shown.services:
        return OTHER_CALLERS
    return flow.caller or STRANGERS


def _key(sidecar: Sidecar, flow: Flow) -> tuple[str, ...]:
    return (sidecar.identity, sidecar.instance, sidecar.started_at, *flow.key)


def _pair(found: dict[str, dict[str, Any]], caller: str, callee: str) -> dict[str, Any]:
    return found.setdefault(id_of(caller, callee), {"from": caller, "to": callee, "ports": {}})


def _permitted(sidecars: Iterable[Sidecar]) -> Iterator[tuple[str, str, str]]:
    """The calls that a sidecar is wired for and the policy allows, whether or not somebody makes them."""
    for sidecar in sidecars:
        for target, allowed in sidecar.calls:
            callee, colon, port = target.partition(":")
            if allowed and colon and " " not in target:
                yield sidecar.service, callee, port


def _in_the_clear(sidecars: Iterable[Sidecar]) -> dict[tuple[str, str], int]:
    """Each port that is permissive now, and how many connections came in plaintext, of all replicas."""
    found: dict[tuple[str, str], int] = {}
    for sidecar in sidecars:
        for name in {port.name for port in sidecar.ports if port.permissive and sidecar.fresh}:
            number = sum(one.count for one in sidecar.plaintext if one.port == name)
            found[sidecar.service, name] = found.get((sidecar.service, name), 0) + number
    return found


def _totals(ports: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    every = list(ports)
    known = [one["rate"] for one in every if one["rate"] is not None]
    openings = [one["opening_ms"] for one in every if one["opening_ms"] is not None]
    return {
        **{name: sum(one[name] for one in every) for name in ("opened", "live", "refused", "up", "down")},
        "rate": round(sum(known), 2) if known else None,
        "opening_ms": max(openings, default=None),
        "plaintext": any(one.get("plaintext") for one in every),
    }
