"""Who may call whom, and why. Pure; fails closed.

Default deny: what no rule allows is denied. Deny beats allow. The order of rules never matters, not even for which one is
named: among several that say the same, it is the first by name. A rule that ran out counts for nothing, and a dry-run rule
never decides; it is only told of. Identities are compared whole, byte for byte.

Each end of a connection asks :func:`decide`, so the same answer is given twice, by two programs and from two copies of the
file: the caller's sidecar before it dials, and the callee's once it has seen the caller's certificate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import islice

from sidecar.identity.spiffe import SpiffeId
from sidecar.policy.mesh import Mesh, Rule
from sidecar.policy.names import Target

NO_RULE = "no rule allows it"

MAX_SAMPLES = 100
"""How many identities stand for one pattern at most (:meth:`sidecar.policy.mesh.Pattern.samples`). It would take more only if the
pattern has two ``**``, and another pattern has more than eight segments."""


class Kind(StrEnum):
    """What a decision rests on. Only the first lets anybody in."""

    ALLOWED = "allowed"
    DENIED = "denied"
    NO_RULE = "no_rule"
    RAN_OUT = "ran_out"
    UNKNOWN_SERVICE = "unknown_service"
    UNKNOWN_PORT = "unknown_port"
    OTHER_TRUST_DOMAIN = "other_trust_domain"


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether ``caller`` may call ``target``. ``kind`` is for programs; ``because`` and what is made of it, for people.

    ``rule`` and ``line`` name the rule that decided, if one did. ``dry_run`` tells what matching dry-run rules would have
    done: ``try-reporting would allow``.
    """

    kind: Kind
    caller: str
    target: Target
    because: str
    rule: str | None = None
    line: int | None = None
    dry_run: tuple[str, ...] = ()

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


def decide(mesh: Mesh, source: SpiffeId, service: str, port: str, now: datetime) -> Decision:
    """Whether the holder of ``source`` may call this port, at ``now`` (which knows its time zone; else ValueError).

    Denies in every case in which it does not find an allow rule in force and no deny rule in force.
    """
    target = Target(service, port)
    if source.trust_domain != mesh.trust_domain:
        return _decision(mesh, source, target, Kind.OTHER_TRUST_DOMAIN)
    in_force = [rule for rule in mesh.rules if rule.applies(source, target, now)]
    dry_run = tuple(sorted(f"{rule.name} would {rule.action}" for rule in in_force if rule.mode == "dry-run"))
    enforced = [rule for rule in in_force if rule.mode == "enforce"]
    denying = _first(rule for rule in enforced if rule.action == "deny")
    if denying is not None:
        return _decision(mesh, source, target, Kind.DENIED, denying, dry_run)
    allowing = _first(rule for rule in enforced if rule.action == "allow")
    if allowing is not None:
        return _decision(mesh, source, target, Kind.ALLOWED, allowing, dry_run)
    if target.service not in mesh.services:
        return _decision(mesh, source, target, Kind.UNKNOWN_SERVICE, None, dry_run)
    if target.port not in mesh.services[target.service].ports:
        return _decision(mesh, source, target, Kind.UNKNOWN_PORT, None, dry_run)
    over = _first(
        rule for rule in mesh.rules if rule.fits(source, target) and rule.ran_out(now) and rule.mode == "enforce"
    )
    if over is not None:
        return _decision(mesh, source, target, Kind.RAN_OUT, over, dry_run)
    return _decision(mesh, source, target, Kind.NO_RULE, None, dry_run)


def _decision(
    mesh: Mesh,
    source: SpiffeId,
    target: Target,
    kind: Kind,
    rule: Rule | None = None,
    dry_run: tuple[str, ...] = (),
) -> Decision:
    """The one place where a decision gets its words. A rule that ran out is told of, and decided nothing."""
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


def caller_name(mesh: Mesh, source: SpiffeId) -> str:
    """How people call an identity: a service of this mesh by its name, anybody else by the whole SPIFFE ID."""
    ours = source.trust_domain == mesh.trust_domain and source.service in mesh.services
    return str(source.service) if ours else str(source)


def callers(mesh: Mesh, service: str, port: str, now: datetime) -> list[str]:
    """Who may call this port: declared services by name, then other identities and patterns as SPIFFE IDs. A pattern is
    listed if :func:`decide` allows one at least of the identities that it matches."""
    target = Target(service, port)
    services = [name for name in mesh.services if decide(mesh, mesh.identity(name), service, port, now).allowed]
    others = {
        str(SpiffeId(mesh.trust_domain, written))
        for rule in mesh.rules
        if rule.action == "allow" and rule.mode == "enforce"
        for written, paths in _sources(mesh, rule)
        if _lets_in(mesh, rule, paths, target, now)
    }
    return [*services, *sorted(others)]


def _lets_in(mesh: Mesh, rule: Rule, paths: Iterable[tuple[str, ...]], target: Target, now: datetime) -> bool:
    """Whether one of the identities, which one entry of the rule's ``from`` names, may call."""
    for path in paths:
        source = SpiffeId(mesh.trust_domain, path)
        if not rule.applies(source, target, now):
            return False  # nor does it to the others, since the same entry names them
        if decide(mesh, source, target.service, target.port, now).allowed:
            return True
    return False


def _sources(mesh: Mesh, rule: Rule) -> Iterator[tuple[tuple[str, ...], Iterable[tuple[str, ...]]]]:
    """What a rule's ``from`` names besides declared services, as it is written, each with identities that stand for it."""
    for path in rule.identities:
        if SpiffeId(mesh.trust_domain, path).service not in mesh.services:
            yield path, (path,)
    longest = max((len(pattern.segments) for other in mesh.rules for pattern in other.patterns), default=0)
    for pattern in rule.patterns:
        yield pattern.segments, islice(pattern.samples(longest), MAX_SAMPLES)


def warnings(mesh: Mesh, now: datetime) -> list[str]:
    """What is worth saying of a valid policy: rules that ran out."""
    return [
        f"{mesh.filename}:{rule.line}: rule '{rule.name}' held until {rule.until} and counts for nothing now"
        for rule in mesh.rules
        if rule.ran_out(now)
    ]


def _first(rules: Iterable[Rule]) -> Rule | None:
    return min(rules, key=lambda rule: rule.name, default=None)
