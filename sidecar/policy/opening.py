"""Whether a change of the mesh file could allow more than before. Pure; fails closed: what it cannot compare opens.

A half-written file may parse, and what it lacks may be a denial. So a change that could open takes effect later than one
that only closes (:mod:`sidecar.host.follow`).

Invariant: if :func:`opening` returns None, then nobody may call a port at any time under the new mesh that he may not call
under the old one; no service, person, port or local port is new; and no limit is wider. The reverse is not promised: a
denial that is gone opens, also where nothing else allowed what it denied.

How rules are compared. A rule is within others if each entry of its ``from`` is, for each of its targets, in the ``from``
of one of them. An enforced ``allow`` rule must be within old ones that hold as long and have no limit of connections. One
with a limit may be within the old rule of its name instead, if that let in as many: two others would let in twice as many.
An old enforced ``deny`` rule, as far as its targets are still declared, must be within new ones. A pattern is within others
if all of its samples are (:meth:`sidecar.policy.mesh.Pattern.samples`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import date
from itertools import islice

from sidecar.documents.schema import fields_of
from sidecar.identity.spiffe import SpiffeId, shown
from sidecar.policy.decide import MAX_SAMPLES
from sidecar.policy.mesh import Mesh, Pattern, Rule
from sidecar.policy.mesh_yaml import Action, MeshShape, ServiceShape
from sidecar.policy.names import PLAINTEXT, Caller, Target

LONGER_OPENS = frozenset({"max_leaf_ttl", "revocation_staleness", "reenrol_window"})
LOWER_OPENS = frozenset({"bundle_at_least"})
COMPARED_APART = frozenset({"services", "people", "rules", "tests"})

MAX_COMPARISONS = 1_000_000
"""A change that would take more comparisons of a rule's source with another rule counts as opening."""


def may_open(old: Mesh, new: Mesh) -> bool:
    """Whether the new mesh could allow more than the old one."""
    return opening(old, new) is not None


def opening(old: Mesh, new: Mesh) -> str | None:
    """What of the new mesh could allow more than the old one, for people; None if nothing could."""
    for found in (_wider_keys(old, new), _new_services(old, new), _new_people(old, new), _wider_rules(old, new)):
        for what in found:
            return what
    return None


def _wider_keys(old: Mesh, new: Mesh) -> Iterator[str]:
    """The keys that stand for themselves. One that is not known here opens if it differs."""
    for key in fields_of(MeshShape).keys() - COMPARED_APART:
        before, now = getattr(old, key), getattr(new, key)
        if now > before if key in LONGER_OPENS else now < before if key in LOWER_OPENS else now != before:
            yield f"{key} is {now}, and was {before}"


def _new_services(old: Mesh, new: Mesh) -> Iterator[str]:
    for name, service in new.services.items():
        before = old.services.get(name)
        if before is None:
            yield f"service {shown(name)} is new"
            continue
        for port, number in service.ports.items():
            if before.ports.get(port) != number:
                yield f"port {Target(name, port)} is new, or has another number"
        for key in fields_of(ServiceShape).keys() - {"ports"}:
            if getattr(before, key) != getattr(service, key):
                yield f"{key} of service {shown(name)} has changed"


def _new_people(old: Mesh, new: Mesh) -> Iterator[str]:
    """Whoever is declared can be given a pass."""
    yield from (f"person {shown(name)} is new" for name in new.people if name not in old.people)


# --- rules -----------------------------------------------------------------------------------------------------------


def _wider_rules(old: Mesh, new: Mesh) -> Iterator[str]:
    allows = _enforced(new, "allow")
    declared = (Target(name, port) for name, service in new.services.items() for port in service.ports)
    there = frozenset(declared).union(*(rule.targets for rule in allows))
    for rule in _not_within(allows, _enforced(old, "allow"), there):
        yield f"rule {shown(rule.name)} ({new.filename}:{rule.line}) allows more than before"
    for rule in _not_within(_enforced(old, "deny"), _enforced(new, "deny"), there):
        yield f"rule {shown(rule.name)} is gone, or denies less than before"


def _enforced(mesh: Mesh, action: Action) -> list[Rule]:
    return [rule for rule in mesh.rules if rule.mode == "enforce" and rule.action == action]


def _not_within(rules: Sequence[Rule], others: Sequence[Rule], there: frozenset[Target]) -> Iterator[Rule]:
    """The rules that the others do not cover; all that differ if there are too many to compare."""
    same = {_coverage(other) for other in others}
    changed = [rule for rule in rules if _coverage(rule) not in same]
    sources = sum(1 + len(rule.identities) + len(rule.patterns) * len(rule.targets) for rule in changed)
    for rule in changed:
        holding = [
            other
            for other in others
            if _last_day(other) >= _last_day(rule)
            and (other.connections is None or (other.name == rule.name and _room(other) >= _room(rule)))
        ]
        if sources * len(others) > MAX_COMPARISONS or not _within(rule, rule.targets & there, holding):
            yield rule


def _coverage(rule: Rule) -> tuple[object, ...]:
    limit = None if rule.connections is None else (rule.name, rule.connections)
    return rule.identities, rule.patterns, rule.plaintext, rule.targets, rule.until, limit


def _room(rule: Rule) -> float:
    return math.inf if rule.connections is None else rule.connections


def _last_day(rule: Rule) -> date:
    return rule.until or date.max


def _within(rule: Rule, targets: frozenset[Target], others: Sequence[Rule]) -> bool:
    """Whether the others cover every caller of the rule for these targets."""
    if not targets:
        return True
    if any(
        rule.identities <= one.identities
        and {*rule.patterns} <= {*one.patterns}
        and rule.plaintext <= one.plaintext
        and targets <= one.targets
        for one in others
    ):
        return True  # a single rule covers as much: the usual case, and the fast one
    callers: list[Caller] = [SpiffeId(rule.trust_domain, segments) for segments in rule.identities]
    for source in [*callers, PLAINTEXT] if rule.plaintext else callers:
        if targets.difference(*(one.targets for one in others if one.has_source(source))):
            return False
    return all(
        _pattern_within(pattern, rule.trust_domain, [one for one in others if target in one.targets])
        for pattern in rule.patterns
        for target in targets
    )


def _pattern_within(pattern: Pattern, trust_domain: str, others: Sequence[Rule]) -> bool:
    if any(pattern in other.patterns for other in others):
        return True
    longest = max((len(one.segments) for other in others for one in other.patterns), default=0)
    samples = [SpiffeId(trust_domain, path) for path in islice(pattern.samples(longest), MAX_SAMPLES + 1)]
    return len(samples) <= MAX_SAMPLES and all(any(other.has_source(one) for other in others) for one in samples)
