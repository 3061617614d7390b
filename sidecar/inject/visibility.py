"""Which services form one app, and the names by which each app can call others. Pure.

An *app* is the services that share one network namespace: a service, and those with ``network_mode: service:…`` on it. It
has the name of the service that owns the namespace, one sidecar and one identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sidecar.inject.application import Application, ComposeService


@dataclass(frozen=True, slots=True)
class App:
    """``members`` are services, the owner of the network namespace first."""

    name: str
    members: tuple[ComposeService, ...]

    @property
    def owner(self) -> ComposeService:
        return self.members[0]

    def own_names(self) -> frozenset[str]:
        return frozenset().union(*(member.own_names() for member in self.members))


def find_apps(application: Application) -> Mapping[str, App]:
    """Every app by name. Services in a cycle of ``network_mode: service:…``, which Compose refuses, belong to none."""
    containers = {
        service.container_name: name for name, service in application.services.items() if service.container_name
    }
    members: dict[str, list[ComposeService]] = {name: [] for name in application.services}
    for name, service in application.services.items():
        owner, seen = name, {name}
        while (
            further := _namespace(application.services[owner], containers)
        ) in application.services and further not in seen:
            owner = str(further)
            seen.add(owner)
        members[owner].append(service)
    return MappingProxyType(
        {
            name: App(name, tuple(sorted(found, key=lambda service: service.name != name)))
            for name, found in members.items()
            if found and any(service.name == name for service in found)
        }
    )


def app_of(apps: Mapping[str, App]) -> Mapping[str, str]:
    """The name of the app that each service belongs to."""
    return {service.name: app.name for app in apps.values() for service in app.members}


def _namespace(service: ComposeService, containers: Mapping[str, str]) -> str | None:
    kind, _, name = (service.network_mode or "").partition(":")
    if kind == "service":
        return name
    return containers.get(name) if kind == "container" else None


def shared_networks(one: App, other: App) -> tuple[str, ...]:
    """The networks that both are on."""
    return tuple(network for network in one.owner.networks if network in other.owner.networks)


def neighbours(app: App, apps: Mapping[str, App]) -> tuple[str, ...]:
    """The other apps that share a network with it."""
    return tuple(name for name, other in apps.items() if name != app.name and shared_networks(app, other))


def names_for(app: App, apps: Mapping[str, App], callees: Iterable[str]) -> dict[str, list[str]]:
    """Each name by which ``app`` can call one of ``callees``, and the callees that it resolves to: several where Docker
    would alternate between them. The app's own names are left out."""
    own = app.own_names()
    found: dict[str, list[str]] = {}
    for callee in callees:
        other = apps[callee].owner
        names = [name for network in shared_networks(app, apps[callee]) for name in other.names_on(network)]
        names += [alias for member in app.members for service, alias in member.links if service == callee]
        for name in dict.fromkeys(names):
            if name not in own:
                found.setdefault(name, []).append(callee)
    return found


def leads_to(found: Mapping[str, list[str]]) -> dict[str, str]:
    """One callee for each name: the service of that name, or else the first."""
    return {name: name if name in callees else callees[0] for name, callees in found.items()}
