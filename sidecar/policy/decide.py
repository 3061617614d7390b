"""Whether a peer may call a port. Pure; fails closed.

Default deny: a call that no rule allows is denied. Deny beats allow. The order of the rules in the file has no effect: of
several rules with the same result, the decision names the first by name. A rule that ran out has no effect. A dry-run rule
never decides; its result is only reported. Identities are compared whole, byte for byte.

Both ends of a connection call :func:`decide`, each with its own copy of the file: the caller's sidecar before it dials, and
the callee's sidecar after it has verified the caller's certificate.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from itertools import chain, islice

from sidecar.identity.spiffe import PEOPLE, SpiffeId
from sidecar.policy.mesh import Mesh, Rule
from sidecar.policy.names import PLAINTEXT, Caller, Plaintext, Target

NO_RULE = "no rule allows it"

MAX_SAMPLES = 100
"""The most identities that are tried for one pattern (:meth:`sidecar.policy.mesh.Pattern.samples`). More would be needed
only for a pattern with two ``**`` where some pattern has more than eight segments, or for one with three or more ``**``.
Such a pattern may be missing from :func:`callers`; no decision depends on this."""


class Kind(StrEnum):
    """The ground of a decision. Only ``ALLOWED`` allows the call."""

    ALLOWED = "allowed"
    DENIED = "denied"
    NO_RULE = "no_rule"
    RAN_OUT = "ran_out"
    UNKNOWN_SERVICE = "service_not_declared"
    UNKNOWN_PORT = "port_not_declared"
    OTHER_TRUST_DOMAIN = "other_trust_domain"


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether ``caller`` may call ``target``. ``kind`` is for programs; ``because``, ``predicate`` and ``why`` are for
    people.

    ``rule`` and ``line`` name the rule that decided, if one did. ``dry_run`` lists what matching dry-run rules would have
    done, such as ``try-reporting would allow``. ``limits``: if the deciding rule has a limit of connections, the rules that
    allow the call and their limits, in the order in which they are asked for room, up to the first without a limit.
    """

    kind: Kind
    caller: str
    target: Target
    because: str
    rule: str | None = None
    line: int | None = None
    dry_run: tuple[str, ...] = ()
    limits: tuple[tuple[str, int | None], ...] = ()

    @property
    def allowed(self) -> bool:
        return self.kind is Kind.ALLOWED

    @property
    def predicate(self) -> str:
        """The decision in one sentence, without its subject: ``may not call db:5432: no rule allows it``."""
        return f"{'may' if self.allowed else 'may not'} call {self.target}: {self.because}"

    @property
    def why(self) -> str:
        """The decision in one sentence."""
        return f"{self.caller} {self.predicate}"


def decide(mesh: Mesh, source: Caller, service: str, port: str, now: datetime) -> Decision:
    """Whether ``source`` may call this port at ``now``, an aware datetime: the holder of an identity, or whoever calls
    without TLS. Whether the port takes plaintext at all is its own sidecar's ``mode``.

    Denies unless a rule in force allows the call and no rule in force denies it. Raises :class:`ValueError` where a rule
    covers the call and ``now`` has no time zone.
    """
    target = Target(service, port)
    if not isinstance(source, Plaintext) and source.trust_domain != mesh.trust_domain:
        return _decision(mesh, source, target, Kind.OTHER_TRUST_DOMAIN)
    fitting = mesh.rules_that_fit(source, target)
    in_force = [rule for rule in fitting if not rule.ran_out(now)]
    dry_run = tuple(sorted(f"{rule.name} would {rule.action}" for rule in in_force if rule.mode == "dry-run"))
    enforced = [rule for rule in in_force if rule.mode == "enforce"]
    denying = _first(rule for rule in enforced if rule.action == "deny")
    if denying is not None:
        return _decision(mesh, source, target, Kind.DENIED, denying, dry_run)
    allowing = _first(rule for rule in enforced if rule.action == "allow")
    if allowing is not None:
        decision = _decision(mesh, source, target, Kind.ALLOWED, allowing, dry_run)
        return decision if allowing.connections is None else replace(decision, limits=_limits(enforced))
    if target.service not in mesh.services:
        return _decision(mesh, source, target, Kind.UNKNOWN_SERVICE, None, dry_run)
    if not mesh.has(target):
        return _decision(mesh, source, target, Kind.UNKNOWN_PORT, None, dry_run)
    # An enforced rule that fits and is in force has decided above: those that are left ran out.
    over = _first(rule for rule in fitting if rule.mode == "enforce")
    if over is not None:
        return _decision(mesh, source, target, Kind.RAN_OUT, over, dry_run)
    return _decision(mesh, source, target, Kind.NO_RULE, None, dry_run)


def _limits(allowing: list[Rule]) -> tuple[tuple[str, int | None], ...]:
    """Each rule that allows a call lets in as many as it says, so that one more rule never lets in fewer."""
    found: list[tuple[str, int | None]] = []
    for rule in sorted(allowing, key=lambda rule: rule.name):
        found.append((rule.name, rule.connections))
        if rule.connections is None:
            break
    return tuple(found)


def _decision(
    mesh: Mesh,
    source: Caller,
    target: Target,
    kind: Kind,
    rule: Rule | None = None,
    dry_run: tuple[str, ...] = (),
) -> Decision:
    """A decision and its message. A rule that ran out is quoted in the message, but is not the rule that decided."""
    caller = caller_name(mesh, source)
    quoted = "" if rule is None else f"rule '{rule.name}' ({mesh.filename}:{rule.line})"
    until = None if rule is None else rule.until
    because = {
        Kind.ALLOWED: f"{quoted} allows it",
        Kind.DENIED: f"{quoted} denies it",
        Kind.NO_RULE: NO_RULE,
        Kind.RAN_OUT: f"{quoted} allowed it until {until} and ran out; no other rule does",
        Kind.UNKNOWN_SERVICE: f"{mesh.filename} has no service of that name",
        Kind.UNKNOWN_PORT: "the service has no port of that name",
        Kind.OTHER_TRUST_DOMAIN: f"it is of another trust domain than {mesh.trust_domain}",
    }[kind]
    if rule is None or kind is Kind.RAN_OUT:
        return Decision(kind, caller, target, because, dry_run=dry_run)
    return Decision(kind, caller, target, because, rule.name, rule.line, dry_run)


def remedy(mesh: Mesh, source: Caller, decision: Decision) -> str:
    """What would allow a denied call, as the end of the sentence that refuses it; empty if no single step would."""
    if decision.kind is Kind.DENIED:
        return "; deny beats allow, so only without that rule can another one allow it"
    if decision.kind not in (Kind.NO_RULE, Kind.RAN_OUT):
        return ""
    rule = rule_for(mesh, source, str(decision.target))
    if rule is None and isinstance(source, SpiffeId) and source.person is not None:
        return f"; only a person that {mesh.filename} declares in `people:` can have a rule"
    if rule is None:
        return ""
    return f"; to allow it, add to `policy:` in {mesh.filename}: {rule}"


def rule_for(mesh: Mesh, source: Caller, target: str) -> str | None:
    """A rule, in one line, that allows this call where nothing denies it; None if no rule can name the caller."""
    named = name_in_rule(mesh, source)
    return None if named is None else f'- {{from: [{named}], to: ["{target}"]}}'


def name_in_rule(mesh: Mesh, source: Caller) -> str | None:
    """A caller as ``from`` names it, quoted; None if it is not of this mesh, or a service or person to be declared first."""
    if isinstance(source, Plaintext):
        return str(source)
    undeclared = (source.service or source.person) is not None and not is_declared(mesh, source)
    return None if source.trust_domain != mesh.trust_domain or undeclared else json.dumps(caller_name(mesh, source))


def caller_name(mesh: Mesh, source: Caller) -> str:
    """A caller as people read it: ``plaintext``, the name of a service of this mesh, ``user/alice`` for a declared person,
    or any other identity as a whole SPIFFE ID."""
    if isinstance(source, Plaintext) or not is_declared(mesh, source):
        return str(source)
    return "/".join(source.segments)


def is_declared(mesh: Mesh, source: SpiffeId) -> bool:
    """Whether an identity is that of a service or a person in the mesh file."""
    known = source.service in mesh.services or source.person in mesh.people
    return source.trust_domain == mesh.trust_domain and known


def callers(mesh: Mesh, service: str, port: str, now: datetime) -> list[str]:
    """The callers that may use this port: declared services by name, then declared people, then other identities and
    patterns as SPIFFE IDs, and ``plaintext`` last. A pattern is listed if :func:`decide` allows at least one of the
    identities that it matches."""
    target = Target(service, port)
    longest = max((len(pattern.segments) for rule in mesh.rules for pattern in rule.patterns), default=0)
    declared = [*mesh.services, *(f"{PEOPLE}/{name}" for name in mesh.people)]
    named = [name for name in declared if decide(mesh, mesh.source(name), service, port, now).allowed]
    others = {
        str(SpiffeId(mesh.trust_domain, written))
        for rule in mesh.rules_for(target)
        if rule.mode == "enforce"
        for written, paths in _sources(mesh, rule, longest)
        if any(decide(mesh, SpiffeId(mesh.trust_domain, path), service, port, now).allowed for path in paths)
    }
    plaintext = [str(PLAINTEXT)] if decide(mesh, PLAINTEXT, service, port, now).allowed else []
    return [*named, *sorted(others), *plaintext]


def _sources(mesh: Mesh, rule: Rule, longest: int) -> Iterator[tuple[tuple[str, ...], Iterable[tuple[str, ...]]]]:
    """The entries of a rule's ``from`` that are not declared, as they are written, each with identities to try."""
    declared = chain(((name,) for name in mesh.services), ((PEOPLE, name) for name in mesh.people))
    for path in rule.identities.difference(declared):
        yield path, (path,)
    for pattern in rule.patterns:
        yield pattern.segments, islice(pattern.samples(longest), MAX_SAMPLES)


def warnings(mesh: Mesh, now: datetime) -> list[str]:
    """Warnings about a valid policy: the rules that ran out."""
    return [
        f"{mesh.filename}:{rule.line}: rule '{rule.name}' held until {rule.until} and has no effect now"
        for rule in mesh.rules
        if rule.ran_out(now)
    ]


def _first(rules: Iterable[Rule]) -> Rule | None:
    return min(rules, key=lambda rule: rule.name, default=None)
