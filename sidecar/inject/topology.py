"""The networks after the injection: which services are on each, and the names that each sidecar has on them. Pure.

How this works. The rule: no two apps of the mesh share a network, so the only path between them is through both their
sidecars. An app outside of the mesh keeps its networks. Where such a network would connect two apps of the mesh, each of
them gets a network of its own with those outsiders. There are two exceptions, both reported, because cutting them would
break the application: an external network, whose other members are unknown, and a network on which an app is called by a
fixed address.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

from sidecar.identity.reasons import UsageError
from sidecar.inject.application import Application
from sidecar.inject.edges import StaticReference
from sidecar.inject.ports import Port
from sidecar.inject.visibility import App, leads_to, names_for, neighbours, shared_networks

MESH = "sidecar-mesh"
"""The network between the sidecars."""

CA = "mesh-ca"
"""The service and host name of the CA."""


def sidecar_of(app: str) -> str:
    """The service that is an app's sidecar."""
    return f"{app}-mesh"


@dataclass(frozen=True, slots=True)
class Slot:
    """One private network of an app, on which each port leads to one callee. ``names`` maps the sidecar's names there to the
    callee that each stands for."""

    network: str
    callees: tuple[str, ...]
    names: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PlainNetwork:
    """A network of one app of the mesh and the outsiders with which it shared the network ``instead_of``."""

    network: str
    app: str
    outsiders: tuple[str, ...]
    instead_of: str


@dataclass(frozen=True, slots=True)
class Topology:
    """``slots`` are by app of the mesh. Each with its reason: ``stays`` are original networks that an app keeps,
    ``excluded`` are apps, ``plaintext`` are sorted pairs whose traffic stays plaintext. ``unclear`` are names of several
    callees, by caller: the callee that the name leads to now, then all."""

    slots: Mapping[str, tuple[Slot, ...]]
    stays: Mapping[tuple[str, str], str]
    plain: tuple[PlainNetwork, ...]
    excluded: Mapping[str, str]
    plaintext: Mapping[tuple[str, str], str]
    unclear: Mapping[tuple[str, str], tuple[str, ...]]

    def is_plaintext(self, one: str, other: str) -> bool:
        return (min(one, other), max(one, other)) in self.plaintext


def lay_out(
    application: Application,
    apps: Mapping[str, App],
    excluded: Mapping[str, str],
    static: tuple[StaticReference, ...],
    ports: Mapping[str, tuple[Port, ...]],
) -> Topology:
    """Raises :class:`UsageError` if an added service or network has a name that the application uses already."""
    excluded = dict(excluded)
    while True:
        meshed = [name for name in sorted(apps) if name not in excluded]
        stays = _stays(application, apps, meshed, static)
        plaintext = _plaintext(apps, meshed, excluded, stays)
        alone = [name for name in meshed if not _in_mesh(apps, name, meshed, plaintext)]
        if not alone:
            break
        excluded |= {
            name: "shares no network with a service that could be in the mesh"
            if neighbours(apps[name], apps)
            else "shares no network with another service"
            for name in alone
        }
    slots: dict[str, tuple[Slot, ...]] = {}
    unclear: dict[tuple[str, str], tuple[str, ...]] = {}
    for name in meshed:
        callees = _in_mesh(apps, name, meshed, plaintext)
        found = names_for(apps[name], apps, callees)
        leads = leads_to(found)
        slots[name] = tuple(_slots(name, callees, leads, ports))
        unclear |= {(name, word): (leads[word], *them) for word, them in found.items() if len(set(them)) > 1}
    plain = tuple(_plain_networks(apps, meshed, excluded, stays))
    topology = Topology(slots, stays, plain, excluded, dict(sorted(plaintext.items())), unclear)
    _refuse_clashes(application, topology)
    return topology


def _stays(
    application: Application, apps: Mapping[str, App], meshed: list[str], static: tuple[StaticReference, ...]
) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for name in meshed:
        for key in apps[name].owner.networks:
            others = {other for other in apps if other != name and key in apps[other].owner.networks}
            network = application.networks.get(key)
            fixed = [it for it in static if it.network == key and name in (it.caller, it.callee)]
            if network is not None and network.external:
                found[name, key] = "it is external, and its other members are unknown"
            elif fixed:
                found[name, key] = fixed[0].reason
            elif others and not others & set(meshed):
                found[name, key] = "no other app on it is in the mesh"
    return found


def _plaintext(
    apps: Mapping[str, App], meshed: list[str], excluded: Mapping[str, str], stays: Mapping[tuple[str, str], str]
) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for one, other in combinations(sorted(apps), 2):
        for network in shared_networks(apps[one], apps[other]):
            outsider = next((name for name in (one, other) if name in excluded), None)
            if outsider is not None:
                found.setdefault((one, other), f"{outsider} {excluded[outsider]}")
            elif (one, network) in stays and (other, network) in stays:
                found.setdefault((one, other), f"both stay on network {network}: {stays[one, network]}")
    return found


def _in_mesh(
    apps: Mapping[str, App], name: str, meshed: list[str], plaintext: Mapping[tuple[str, str], str]
) -> tuple[str, ...]:
    near = neighbours(apps[name], apps)
    return tuple(it for it in meshed if it in near and (min(name, it), max(name, it)) not in plaintext)


def _slots(
    name: str, callees: Iterable[str], leads: Mapping[str, str], ports: Mapping[str, tuple[Port, ...]]
) -> Iterable[Slot]:
    """First fit: a callee goes to the first network on which its ports are free."""
    together: list[list[str]] = [[]]
    taken: list[set[int]] = [set()]
    for callee in callees:
        numbers = {port.number for port in ports[callee]}
        place = next((index for index, used in enumerate(taken) if not used & numbers), len(taken))
        if place == len(taken):
            together.append([])
            taken.append(set())
        together[place].append(callee)
        taken[place] |= numbers
    for index, group in enumerate(together):
        network = f"{name}-private" + (f"-{index + 1}" if index else "")
        yield Slot(network, tuple(group), {word: callee for word, callee in leads.items() if callee in group})


def _plain_networks(
    apps: Mapping[str, App], meshed: list[str], excluded: Mapping[str, str], stays: Mapping[tuple[str, str], str]
) -> Iterable[PlainNetwork]:
    for name in meshed:
        number = 0
        for key in apps[name].owner.networks:
            outsiders = tuple(it for it in sorted(excluded) if it in apps and key in apps[it].owner.networks)
            if outsiders and (name, key) not in stays:
                number += 1
                yield PlainNetwork(f"{name}-plain" + (f"-{number}" if number > 1 else ""), name, outsiders, key)


def _refuse_clashes(application: Application, topology: Topology) -> None:
    mistakes = []
    for name in [CA, *(sidecar_of(app) for app in topology.slots)]:
        if name in application.services:
            mistakes.append(f"service '{name}' exists already, and inject adds one of that name: rename it")
    added = [slot.network for slots in topology.slots.values() for slot in slots]
    for key in [MESH, *added, *(plain.network for plain in topology.plain)]:
        if key in application.networks:
            mistakes.append(f"network '{key}' exists already, and inject adds one of that name: rename it")
    if mistakes:
        raise UsageError("\n".join(mistakes))
