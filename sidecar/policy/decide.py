"""Who may call whom, and why. Pure; fails closed.

Default deny: what no rule allows is denied. Deny beats allow. The order of rules never matters, not even for which one is
named: among several that say the same, it is the first by name. A rule that ran out counts for nothing, and a dry-run rule
never decides; it is only told of. Identities are compared whole, byte for byte.

Each end of a connection asks :func:`decide`, so the same answer is given twice, by two programs and from two copies of the
file: the caller's sidecar before it dials, and the callee's once it has seen the caller's certificate.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from sidecar.identity.spiffe import SpiffeId
from sidecar.policy.mesh import Mesh, PolicyTest, Rule
from sidecar.policy.names import Target

NO_RULE = "no rule allows it"


@dataclass(frozen=True, slots=True)
class Decision:
    """``rule`` and ``line`` name the rule that decided, if one did; ``why`` is one sentence for people.

    ``dry_run`` tells what matching dry-run rules would have done: ``try-reporting would allow``.
    """

    allowed: bool
    rule: str | None
    line: int | None
    why: str
    dry_run: tuple[str, ...] = ()


def decide(mesh: Mesh, source: SpiffeId, service: str, port: str, now: datetime) -> Decision:
    """Whether the holder of ``source`` may call this port, at ``now`` (which knows its time zone; else ValueError).

    Denies in every case in which it does not find an allow rule in force and no deny rule in force.
    """
    target = Target(service, port)
    if source.trust_domain != mesh.trust_domain:
        why = f"{source} may not call {target}: it is of another trust domain than {mesh.trust_domain}"
        return Decision(False, None, None, why)
    matching = [rule for rule in mesh.rules if target in rule.targets and rule.has_source(source.segments)]
    in_force = [rule for rule in matching if not ran_out(rule, now)]
    dry_run = tuple(sorted(f"{rule.name} would {rule.action}" for rule in in_force if rule.mode == "dry-run"))
    enforced = [rule for rule in in_force if rule.mode == "enforce"]
    denying = _first(rule for rule in enforced if rule.action == "deny")
    if denying is not None:
        why = f"{caller_name(mesh, source)} may not call {target}: {_quoted(mesh, denying)} denies it"
        return Decision(False, denying.name, denying.line, why, dry_run)
    allowing = _first(rule for rule in enforced if rule.action == "allow")
    if allowing is not None:
        why = f"{caller_name(mesh, source)} may call {target}: {_quoted(mesh, allowing)} allows it"
        return Decision(True, allowing.name, allowing.line, why, dry_run)
    why = f"{caller_name(mesh, source)} may not call {target}: {_why_none(mesh, target, matching, now)}"
    return Decision(False, None, None, why, dry_run)


def ran_out(rule: Rule, now: datetime) -> bool:
    """Whether a rule's last day is over: it holds through the whole of ``until``, in UTC."""
    if now.tzinfo is None:
        raise ValueError("a time without a time zone cannot decide when a rule runs out")
    return rule.until is not None and now.astimezone(UTC).date() > rule.until


def caller_name(mesh: Mesh, source: SpiffeId) -> str:
    """How people call an identity: a service of this mesh by its name, anybody else by the whole SPIFFE ID."""
    ours = source.trust_domain == mesh.trust_domain and source.service in mesh.services
    return str(source.service) if ours else str(source)


def has_callers(mesh: Mesh, service: str, port: str, now: datetime) -> bool:
    """Whether anybody may call this port: a declared service, or whoever fits a pattern of an allow rule in force."""
    target = Target(service, port)
    if any(decide(mesh, mesh.identity(name), service, port, now).allowed for name in mesh.services):
        return True
    return any(
        rule.action == "allow"
        and rule.mode == "enforce"
        and target in rule.targets
        and not ran_out(rule, now)
        and any(source.startswith("spiffe://") for source in rule.from_)
        for rule in mesh.rules
    )


def warnings(mesh: Mesh, now: datetime) -> list[str]:
    """What is worth saying of a valid policy: rules that ran out."""
    return [
        f"{mesh.filename}:{rule.line}: rule '{rule.name}' held until {rule.until} and counts for nothing now"
        for rule in mesh.rules
        if ran_out(rule, now)
    ]


# --- the file's own tests --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TestResult:
    """What one of the file's ``tests`` found for one port; a test of ``db`` has a result for each of its ports."""

    __test__ = False  # pytest, this is not a test case

    test: PolicyTest
    target: Target
    decision: Decision

    @property
    def passed(self) -> bool:
        return self.decision.allowed == (self.test.expect == "allow")


def run_tests(mesh: Mesh, now: datetime) -> list[TestResult]:
    """Runs the file's ``tests``, in its order."""
    return [
        TestResult(test, target, decide(mesh, test.source, target.service, target.port, now))
        for test in mesh.tests
        for target in test.targets
    ]


# --- explaining ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class End:
    """One of the two sidecars that decide, and what it checks."""

    sidecar: str
    checks: str
    allowed: bool


@dataclass(frozen=True, slots=True)
class NearMiss:
    """A rule that nearly decided, and what kept it from it."""

    rule: str
    line: int
    why: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a call is what it is. ``would_allow`` is the text of a rule that would allow it, if one alone would."""

    source: SpiffeId
    target: Target
    decision: Decision
    ends: tuple[End, End]
    near_misses: tuple[NearMiss, ...]
    would_allow: str | None


def explain(mesh: Mesh, source: SpiffeId, service: str, port: str, now: datetime) -> Explanation:
    """The decision on a call, with all that a person would ask next."""
    target = Target(service, port)
    decision = decide(mesh, source, service, port, now)
    known = target.service in mesh.services and target.port in mesh.services[target.service].ports
    return Explanation(
        source=source,
        target=target,
        decision=decision,
        ends=_ends(mesh, source, target, decision),
        near_misses=tuple(_near_misses(mesh, source, target, decision, now)),
        would_allow=_rule_text(mesh, source, target) if known and decision.rule is None else None,
    )


def _ends(mesh: Mesh, source: SpiffeId, target: Target, decision: Decision) -> tuple[End, End]:
    if source.trust_domain == mesh.trust_domain and source.service in mesh.services:
        caller = f"{source.service}'s own sidecar"
    else:
        caller = f"whatever speaks for {source} (no service of this mesh)"
    outbound = (
        f"before it dials, that the policy lets {source} call {target}; in the handshake, that it met "
        f"spiffe://{mesh.trust_domain}/{target.service} and nobody else"
    )
    inbound = (
        f"in the handshake, that the caller proves an identity of {mesh.trust_domain}; after it, that the policy lets "
        f"that identity call {target}, whatever the caller's sidecar thought"
    )
    return End(caller, outbound, decision.allowed), End(f"{target.service}'s sidecar", inbound, decision.allowed)


def _near_misses(mesh: Mesh, source: SpiffeId, target: Target, decision: Decision, now: datetime) -> Iterable[NearMiss]:
    """Rules that fit but did not decide, and, where none decided, those of which only one end fits."""
    if source.trust_domain != mesh.trust_domain:
        return
    for rule in mesh.rules:
        from_fits, to_fits = rule.has_source(source.segments), target in rule.targets
        if from_fits and to_fits:
            if ran_out(rule, now):
                yield NearMiss(rule.name, rule.line, f"fits, but held until {rule.until}")
            elif rule.mode == "dry-run":
                yield NearMiss(rule.name, rule.line, f"fits and would {rule.action}, but is a dry run")
            elif rule.name != decision.rule:
                beaten = "and says the same" if (rule.action == "allow") == decision.allowed else "but deny beats allow"
                yield NearMiss(rule.name, rule.line, f"fits, {beaten}")
        elif decision.rule is not None:
            continue  # a rule decided, so those that do not fit are no news
        elif from_fits:
            yield NearMiss(rule.name, rule.line, f"is for this caller, but to {', '.join(rule.to)}")
        elif to_fits:
            yield NearMiss(rule.name, rule.line, f"is for {target}, but from {', '.join(rule.from_)}")


def _rule_text(mesh: Mesh, source: SpiffeId, target: Target) -> str | None:
    """The rule to add to ``policy:`` for this call; None if no rule can name the caller."""
    if source.trust_domain != mesh.trust_domain:
        return None
    if source.service is not None and source.service not in mesh.services:
        return None  # it must be declared under `services` first
    caller = json.dumps(source.service or str(source))
    return f'  - from: [{caller}]\n    to: ["{target}"]\n'


def _why_none(mesh: Mesh, target: Target, matching: list[Rule], now: datetime) -> str:
    if target.service not in mesh.services:
        return f"{mesh.filename} has no service of that name"
    if target.port not in mesh.services[target.service].ports:
        return "the service has no port of that name"
    over = _first(rule for rule in matching if ran_out(rule, now) and rule.mode == "enforce")
    if over is not None:
        return f"{_quoted(mesh, over)} allowed it until {over.until} and ran out; no other rule does"
    return NO_RULE


def _quoted(mesh: Mesh, rule: Rule) -> str:
    return f"rule '{rule.name}' ({mesh.filename}:{rule.line})"


def _first(rules: Iterable[Rule]) -> Rule | None:
    return min(rules, key=lambda rule: rule.name, default=None)
