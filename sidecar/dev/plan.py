"""Where everything is when a whole mesh runs on one machine: local ports, chosen the same way every time. Pure.

Each call has a port of its own, for each caller: on one machine the port that an app connects to is all that tells who it
is. What ``dev:`` in ``mesh.yaml`` names is taken as it is; the rest is derived from the names, so that it stays the same
from run to run and from machine to machine, and does not move when other services come and go.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

from sidecar.identity.reasons import UsageError
from sidecar.policy.decide import Decision, decide
from sidecar.policy.mesh import Mesh
from sidecar.policy.names import Target

FIRST_PORT, LAST_PORT = 20_000, 29_999
"""Derived ports lie here: above the well-known ones, below those that systems hand out to clients."""


@dataclass(frozen=True, slots=True)
class Call:
    """``caller``'s app reaches ``target`` at this local port; ``decision`` is the policy's answer when the plan was made."""

    caller: str
    target: Target
    local_port: int
    decision: Decision


@dataclass(frozen=True, slots=True)
class DevPlan:
    """``apps``: where each port's app listens. ``calls``: where each call enters the mesh. ``inbound``: where each port's
    sidecar takes mutual TLS. All on loopback."""

    apps: dict[Target, int]
    calls: tuple[Call, ...]
    inbound: dict[Target, int]

    def services(self) -> Iterator[str]:
        """Those that call or are called, more than once some of them."""
        yield from (target.service for target in self.apps)
        yield from (call.caller for call in self.calls)

    def of(self, service: str) -> Iterator[Call]:
        """The calls of one service."""
        return (call for call in self.calls if call.caller == service)


def plan(mesh: Mesh, now: datetime, before: DevPlan | None = None) -> DevPlan:
    """An entry for every call that the policy allows, for every one that ``dev:`` names, allowed or not, and for those of
    the plan ``before``: so a call that a change of the policy forbids is refused by name, and does not just meet nobody."""
    wanted: dict[str, int] = {}
    for name, service in mesh.services.items():
        if service.dev is not None:
            wanted |= {f"app {Target(name, port)}": local for port, local in service.dev.app.items()}
            wanted |= {f"call {name} {target}": local for target, local in service.dev.calls.items()}
    targets = [Target(name, port) for name, service in mesh.services.items() for port in service.ports]
    for target, number in _own_numbers(mesh, targets, set(wanted.values())):
        wanted.setdefault(f"app {target}", number)
    decisions = {
        (caller, target): decide(mesh, mesh.identity(caller), *target, now)
        for caller in mesh.services
        for target in targets
    }
    known = {(call.caller, call.target) for call in before.calls} if before is not None else set()
    calls = [
        (caller, target)
        for (caller, target), decision in decisions.items()
        if decision.allowed or f"call {caller} {target}" in wanted or (caller, target) in known
    ]
    keys = [f"call {caller} {target}" for caller, target in calls]
    keys += [f"{end} {target}" for end in ("app", "mesh") for target in targets]
    ports = _fill(wanted, keys)
    return DevPlan(
        {target: ports[f"app {target}"] for target in targets},
        tuple(
            Call(caller, target, ports[f"call {caller} {target}"], decisions[caller, target])
            for caller, target in calls
        ),
        {target: ports[f"mesh {target}"] for target in targets},
    )


def environment(plan: DevPlan, service: str) -> dict[str, str]:
    """What the app of ``service`` needs to know: where to listen (``HTTP_PORT``) and whom to call where (``API_HTTP_HOST``,
    ``API_HTTP_PORT``, ``API_HTTP_ADDRESS``). A service of one port is named without it too: ``PORT``, ``DB_HOST`` …

    Raises :class:`UsageError` where two names become the same variable: each would be taken for the other."""
    values, meanings = dict[str, str](), dict[str, str]()

    def add(name: str, value: str, meaning: str) -> None:
        if meanings.setdefault(name, meaning) != meaning:
            raise UsageError(f"{service}: the variable {name} would be both {meanings[name]} and {meaning}: rename one")
        values[name] = value

    own = [(target, port) for target, port in plan.apps.items() if target.service == service]
    for target, port in own:
        for name in [f"{_word(target.port)}_PORT", *(["PORT"] if len(own) == 1 else [])]:
            add(name, str(port), f"its own port {target.port!r}")
    for call in plan.of(service):
        prefixes = [f"{_word(call.target.service)}_{_word(call.target.port)}"]
        if sum(target.service == call.target.service for target in plan.apps) == 1:
            prefixes.append(_word(call.target.service))
        for prefix in prefixes:
            meaning = f"that of {str(call.target)!r}"
            add(f"{prefix}_HOST", "127.0.0.1", meaning)
            add(f"{prefix}_PORT", str(call.local_port), meaning)
            add(f"{prefix}_ADDRESS", f"127.0.0.1:{call.local_port}", meaning)
    return values


def banner(mesh: Mesh, plan: DevPlan) -> str:
    """Who may call whom, and where; for people."""
    lines = [f"{mesh.trust_domain}: {len(mesh.services)} services, each behind its own sidecar; the CA is in memory"]
    for service in mesh.services:
        lines.append(f"\n  {service}")
        places = [f"    {what} {where}" for what, where in _places(plan, service).items()]
        lines += places or ["    neither calls nor is called"]
    return "\n".join(lines)


def news(before: DevPlan, after: DevPlan) -> list[str]:
    """What the banner says of ``after`` and did not say of ``before``, and what is gone."""
    found = []
    for service in dict.fromkeys([*before.services(), *after.services()]):
        old, new = _places(before, service), _places(after, service)
        found += [f"{service} no longer {what}" for what in old if what not in new]
        found += [f"{service} {what} {where}" for what, where in new.items() if old.get(what) != where]
    return found


def _places(plan: DevPlan, service: str) -> dict[str, str]:
    """What a service does, and where; each to be read after its name."""
    found = {
        f"serves {target.port}": f"from its app on 127.0.0.1:{number}"
        for target, number in plan.apps.items()
        if target.service == service
    }
    for call in plan.of(service):
        denied = "" if call.decision.allowed else "  (denied: every call is refused)"
        found[f"calls {call.target}"] = f"at 127.0.0.1:{call.local_port}{denied}"
    return found


def _own_numbers(mesh: Mesh, targets: Iterable[Target], taken: set[int]) -> Iterator[tuple[Target, int]]:
    """An app that nobody placed listens at its declared number, as it does by default, if that is its alone."""
    numbers = [(target, mesh.services[target.service].ports[target.port]) for target in targets]
    for target, number in numbers:
        alone = sum(other == number for _, other in numbers) == 1
        if alone and number not in taken and number >= 1024:
            yield target, number


def _fill(wanted: dict[str, int], keys: Iterable[str]) -> dict[str, int]:
    """A port for every key: the wanted one, or else the first free one from where the key's hash points."""
    ports = dict(wanted)
    taken = set(ports.values())
    for key in sorted(keys):
        if key not in ports:
            span = LAST_PORT - FIRST_PORT + 1
            start = int.from_bytes(sha256(key.encode()).digest()[:4], "big") % span
            ports[key] = next(port for step in range(span) if (port := FIRST_PORT + (start + step) % span) not in taken)
            taken.add(ports[key])
    return ports


def _word(name: str) -> str:
    """A name as part of a variable's: upper case, and nothing but letters, digits and underscores."""
    word = re.sub(r"[^A-Z0-9]", "_", name.upper())
    return f"P{word}" if word[0].isdigit() else word
