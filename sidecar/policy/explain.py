"""Why a call is allowed or denied, and the results of the file's own tests, for people. Pure.

Nothing is decided here: every result comes from :func:`sidecar.policy.decide.decide`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sidecar.policy.decide import Decision, caller_name, decide, name_in_rule
from sidecar.policy.mesh import Mesh, PolicyTest
from sidecar.policy.names import Caller, Plaintext, Target

# --- the file's own tests --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TestResult:
    """The result of one of the file's ``tests`` for one port. A test of ``db`` has a result for each port of ``db``."""

    __test__ = False  # pytest, this is not a test case

    test: PolicyTest
    target: Target
    decision: Decision

    @property
    def passed(self) -> bool:
        return self.decision.allowed == (self.test.expect == "allow")


def run_tests(mesh: Mesh, now: datetime) -> list[TestResult]:
    """Runs the file's ``tests``, in the order of the file."""
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
    """A rule that nearly decided, and why it did not."""

    rule: str
    line: int
    why: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a call is allowed or denied. ``would_allow`` is the text of a rule that would allow a denied call, if a single one
    would."""

    source: Caller
    target: Target
    decision: Decision
    ends: tuple[End, ...]
    near_misses: tuple[NearMiss, ...]
    would_allow: str | None


def explain(mesh: Mesh, source: Caller, service: str, port: str, now: datetime) -> Explanation:
    """The decision on a call, what each end checks, the rules that come near, and a rule that would allow the call."""
    target = Target(service, port)
    decision = decide(mesh, source, service, port, now)
    return Explanation(
        source=source,
        target=target,
        decision=decision,
        ends=_ends(mesh, source, target, decision),
        near_misses=tuple(_near_misses(mesh, source, target, decision, now)),
        would_allow=_rule_text(mesh, source, target) if mesh.has(target) and decision.rule is None else None,
    )


def _ends(mesh: Mesh, source: Caller, target: Target, decision: Decision) -> tuple[End, ...]:
    if isinstance(source, Plaintext):
        alone = (
            f"where its own file has `mode: permissive` for this port and the day of `until` is not over, that the policy "
            f"lets plaintext call {target}; who calls is not proved. A strict port takes no plaintext, whatever rules say"
        )
        return (End(f"{target.service}'s sidecar", alone, decision.allowed),)
    if source.trust_domain == mesh.trust_domain and source.service in mesh.services:
        caller = f"{source.service}'s own sidecar"
    elif source.person in mesh.people and source.trust_domain == mesh.trust_domain:
        caller = f"the `sidecar connect` of {caller_name(mesh, source)}"
    else:
        caller = f"the holder of {source} (no service of this mesh)"
    before = "when the pass is made" if source.person in mesh.people else "before it dials"
    outbound = (
        f"{before}, that the policy lets {source} call {target}; in the handshake, that the peer is "
        f"spiffe://{mesh.trust_domain}/{target.service} and no other"
    )
    inbound = (
        f"in the handshake, that the caller proves an identity of {mesh.trust_domain}; after it, that the policy lets "
        f"that identity call {target}, whatever the caller's sidecar decided"
    )
    return End(caller, outbound, decision.allowed), End(f"{target.service}'s sidecar", inbound, decision.allowed)


def _near_misses(mesh: Mesh, source: Caller, target: Target, decision: Decision, now: datetime) -> Iterable[NearMiss]:
    """Rules that fit but did not decide. Where no rule decided, also rules of which only one end fits."""
    if not isinstance(source, Plaintext) and source.trust_domain != mesh.trust_domain:
        return
    for rule in mesh.rules:
        if rule.applies(source, target, now):
            if rule.mode == "dry-run":
                yield NearMiss(rule.name, rule.line, f"fits and would {rule.action}, but is a dry run")
            elif rule.name != decision.rule:
                beaten = "and says the same" if (rule.action == "allow") == decision.allowed else "but deny beats allow"
                yield NearMiss(rule.name, rule.line, f"fits, {beaten}")
        elif rule.fits(source, target):
            yield NearMiss(rule.name, rule.line, f"fits, but held until {rule.until}")
        elif decision.rule is not None:
            continue  # a rule decided, so rules that do not fit explain nothing
        elif rule.has_source(source):
            yield NearMiss(rule.name, rule.line, f"is for this caller, but to {', '.join(rule.to)}")
        elif target in rule.targets:
            yield NearMiss(rule.name, rule.line, f"is for {target}, but from {', '.join(rule.from_)}")


def _rule_text(mesh: Mesh, source: Caller, target: Target) -> str | None:
    """The rule to add to ``policy:`` for this call; None if no rule can name the caller."""
    caller = name_in_rule(mesh, source)
    return None if caller is None else f'  - from: [{caller}]\n    to: ["{target}"]\n'
