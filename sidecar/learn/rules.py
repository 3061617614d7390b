"""The least set of rules that covers what was seen, and nothing else. Pure; fails closed.

How this works. A call that the file allows already needs no rule; the rules that the learned ones are to replace
(:data:`sidecar.inject.meshtext.OBSERVE`) count as absent for that. A call that is left is *learned* if it was let in and the
application's files give a reason for it; where there are no files to look at, if the callee's sidecar saw it. Everything
else that is left is *offered*: written commented out, with what speaks against it, for a person to enable. So a service
that was taken over teaches itself no way. What a rule denies, and what a person has commented out, is neither.

A learned rule names callers and ports one by one. Callers that call the same ports share a rule, so there is no more than
one rule a caller.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from sidecar.inject.yamltext import comment, flow
from sidecar.learn.seen import Call, Seen, Tally
from sidecar.policy.decide import Kind, decide, name_in_rule
from sidecar.policy.mesh import Mesh
from sidecar.policy.mesh_yaml import rule_name
from sidecar.policy.names import Plaintext, Target

MESH_OWN = "mesh"
"""The first segment of identities that are the mesh's own."""

MAX_NAME = 200


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of the application. ``mentions``: whether its files give a reason for a call; None where there are none
    to look at. ``removed``: calls that an earlier version of the mesh file allowed, until a person took that out.
    ``commented``: calls of rules that are commented out there."""

    mentions: Callable[[Call], bool] | None = None
    removed: Collection[Call] = ()
    commented: Collection[Call] = ()


@dataclass(frozen=True, slots=True)
class NewRule:
    """A rule to add. ``against``: why it is commented out; empty if it is in force."""

    name: str | None
    callers: tuple[str, ...]
    targets: tuple[str, ...]
    calls: Mapping[Call, Tally]
    against: str = ""

    @property
    def text(self) -> str:
        """The rule on one line."""
        ends = {"from": _one_or_all(self.callers), "to": _one_or_all(self.targets)}
        return flow(ends if self.name is None else {"name": self.name, **ends})

    def lines(self) -> Iterator[str]:
        """It as lines of a mesh file, with what was seen as comments."""
        if self.against:
            [(_, tally)] = self.calls.items()
            yield f"  # {comment(self.against)}; {_seen(tally)}:"
            yield f"  # - {self.text}"
        elif len(self.calls) == 1:
            yield f"  - {self.text}  # {_seen(*self.calls.values())}"
        else:
            yield from (f"  # {comment(str(call))}: {_seen(tally)}" for call, tally in self.calls.items())
            yield f"  - {self.text}"


@dataclass(frozen=True, slots=True)
class Learned:
    """``rules`` are to be in force, ``offers`` are to be commented out. ``covered``: calls that the file allows already.
    ``notes``: what was seen and is in neither, a sentence each."""

    rules: tuple[NewRule, ...]
    offers: tuple[NewRule, ...]
    covered: int
    notes: tuple[str, ...]


def learn(mesh: Mesh, seen: Seen, evidence: Evidence, now: datetime, instead_of: Collection[str]) -> Learned:
    """``instead_of``: the names of the rules that the learned ones are to replace."""
    rest = replace(mesh, rules=tuple(rule for rule in mesh.rules if rule.name not in instead_of))
    chosen: dict[Call, Tally] = {}
    offered: dict[Call, str] = {}
    notes: list[str] = []
    covered = 0
    for call, tally in sorted(seen.calls.items(), key=lambda item: item[0].order):
        if name_in_rule(mesh, call.source) is None or not mesh.has(call.target) or _is_mesh_own(call):
            notes.append(f"{call}: one of them is not declared in {mesh.filename}")
            continue
        decision = decide(rest, call.source, call.target.service, call.target.port, now)
        if decision.allowed:
            covered += 1
        elif isinstance(call.source, Plaintext):
            notes.append(f"{call}: it proves nothing, so no rule is learned for it; to let it in, write one by hand")
        elif decision.kind is Kind.DENIED:
            notes.append(f"{call}: {decision.because}, and it stays so")
        elif call in evidence.commented:
            notes.append(f"{call}: a rule for it is commented out in {mesh.filename}, and stays so")
        elif against := _against(call, tally, seen, evidence, instead_of, decision.kind):
            offered[call] = against
        else:
            chosen[call] = tally
    taken = {rule.name for rule in mesh.rules}
    rules = tuple(
        _named(sources, targets, {call: chosen[call] for call in chosen if call.caller in sources}, taken)
        for sources, targets in _together(chosen)
    )
    offers = tuple(
        _named((call.caller,), (call.target,), {call: seen.calls[call]}, taken, against)
        for call, against in offered.items()
    )
    return Learned(rules, offers, covered, tuple(notes))


def _is_mesh_own(call: Call) -> bool:
    source = call.source
    return not isinstance(source, Plaintext) and source.service is None and source.segments[0] == MESH_OWN


def _against(call: Call, tally: Tally, seen: Seen, evidence: Evidence, instead_of: Collection[str], kind: Kind) -> str:
    """What speaks against a rule for this call, without a person's word; empty if nothing does."""
    if seen.is_alarmed(call):
        return "there was an ALARM about this call or one of its ends"
    if not tally.connections:
        return "the policy refused it, nothing was let in"
    if call in evidence.removed:
        return "a rule for it was removed here by hand"
    if kind is Kind.RAN_OUT:
        return "the rule that allowed it ran out"
    if tally.rules and tally.rules.isdisjoint(instead_of):
        return f"{' and '.join(sorted(tally.rules))} allowed it then, and no rule does now"
    if evidence.mentions is not None:
        return "" if evidence.mentions(call) else "no file of the application mentions it"
    return "" if tally.seen_by_callee else "the caller's own sidecar alone tells of it"


def _together(calls: Collection[Call]) -> list[tuple[tuple[str, ...], tuple[Target, ...]]]:
    """Callers with the same ports together: the callers, and the ports."""
    targets: dict[str, list[Target]] = {}
    for call in sorted(calls, key=lambda one: one.order):
        targets.setdefault(call.caller, []).append(call.target)
    callers: dict[tuple[Target, ...], list[str]] = {}
    for source, called in targets.items():
        callers.setdefault(tuple(called), []).append(source)
    return [(tuple(sources), called) for called, sources in callers.items()]


def _named(
    callers: tuple[str, ...],
    targets: Collection[Target],
    calls: Mapping[Call, Tally],
    taken: set[str],
    against: str = "",
) -> NewRule:
    """The rule, with a name of its own if the one that its ends give is taken. ``taken`` is added to."""
    called = tuple(map(str, targets))
    default = rule_name(callers, called)
    name, number = default, 1
    while name in taken:
        number += 1
        name = f"learned {number}: {default}"[:MAX_NAME]
    taken.add(name)
    return NewRule(None if name == default else name, callers, called, calls, against)


def _one_or_all(names: tuple[str, ...]) -> str | list[str]:
    return names[0] if len(names) == 1 else list(names)


def _seen(tally: Tally) -> str:
    """``120 connections, first 2026-06-01 10:00, last 2026-06-02 11:00``, in UTC."""
    number = tally.connections or tally.refusals
    what = "connection" if tally.connections else "refusal"
    text = f"{number} {what}{'' if number == 1 else 's'}"
    if tally.first is not None and tally.last is not None:
        text += f", first {tally.first:%F %H:%M}, last {tally.last:%F %H:%M}"
    return text
