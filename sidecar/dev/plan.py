"""The local ports of a mesh that runs on one machine, chosen the same way every time. Pure.

Each pair of caller and target has a port of its own: on one machine only the port that an app connects to identifies the
app. Ports in ``dev:`` of ``mesh.yaml`` are taken as they are. The others are derived from the names, so they are the same in
each run and on each machine, and stay the same when other services come and go.
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
"""The range of derived ports: above the well-known ports, below those that systems assign to clients."""


@dataclass(frozen=True, slots=True)
class Call:
    """``caller``'s app reaches ``target`` at this local port. ``decision`` is the policy's, from when the plan was made."""

    caller: str
    target: Target
    local_port: int
    decision: Decision


@dataclass(frozen=True, slots=True)
class DevPlan:
    """``apps``: where the app of each port listens. ``calls``: where each call enters the mesh. ``inbound``: where the
    sidecar of each port accepts mutual TLS. All are on loopback."""

    apps: dict[Target, int]
    calls: tuple[Call, ...]
    inbound: dict[Target, int]

    def services(self) -> Iterator[str]:
        """The services that call or are called; a service can occur several times."""
        yield from (target.service for target in self.apps)
        yield from (call.caller for call in self.calls)

    def of(self, service: str) -> Iterator[Call]:
        """The calls of one service."""
        return (call for call in self.calls if call.caller == service)


def plan(mesh: Mesh, now: datetime, before: DevPlan | None = None) -> DevPlan:
    """A plan with an entry for every call that the policy allows, for every call that ``dev:`` names, allowed or not, and
    for the calls of the plan ``before``: a call that a changed policy forbids gets a refusal, not a closed port."""
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
    """The variables for the app of ``service``: where it listens (``HTTP_PORT``) and where it reaches what it calls
    (``API_HTTP_HOST``, ``API_HTTP_PORT``, ``API_HTTP_ADDRESS``). For a service with one port there are also variables
    without the name of the port: ``PORT``, ``DB_HOST`` …

    Raises :class:`UsageError` where two names become the same variable, which would be ambiguous."""
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
    """Which services listen and call where; for people."""
    lines = [f"{mesh.trust_domain}: {len(mesh.services)} services, each behind its own sidecar; the CA is in memory"]
    for service in mesh.services:
        lines.append(f"\n  {service}")
        places = [f"    {what} {where}" for what, where in _places(plan, service).items()]
        lines += places or ["    neither calls nor is called"]
    return "\n".join(lines)


def news(before: DevPlan, after: DevPlan) -> list[str]:
    """The differences between the banners of two plans, each as a sentence."""
    found = []
    for service in dict.fromkeys([*before.services(), *after.services()]):
        old, new = _places(before, service), _places(after, service)
        found += [f"{service} no longer {what}" for what in old if what not in new]
        found += [f"{service} {what} {where}" for what, where in new.items() if old.get(what) != where]
    return found


def _places(plan: DevPlan, service: str) -> dict[str, str]:
    """What a service does, and where. Each entry continues a sentence that begins with the service's name."""
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
    """The default ports of apps: the declared number, if it is unique, not in use by ``dev:`` and not privileged."""
    numbers = [(target, mesh.services[target.service].ports[target.port]) for target in targets]
    for target, number in numbers:
        alone = sum(other == number for _, other in numbers) == 1
        if alone and number not in taken and number >= 1024:
            yield target, number


def _fill(wanted: dict[str, int], keys: Iterable[str]) -> dict[str, int]:
    """A port for every key: the wanted one, or else the first free one, from a start that the key's hash determines."""
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
    """A name as part of a variable's name: upper case, with letters, digits and underscores only."""
    word = re.sub(r"[^A-Z0-9]", "_", name.upper())
    return f"P{word}" if word[0].isdigit() else word
