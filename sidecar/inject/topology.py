"""The networks after the injection: which services are on each, and the names that each sidecar has on them. Pure.

How this works. The rule: no two apps of the mesh share a network, so the only path between them is through both their
sidecars. There are two exceptions, both reported, because cutting them would break the application: an external network,
whose other members are unknown, and a network on which an app is called by a fixed address.

An app outside of the mesh, an *outsider*, keeps its networks, and meets each app of the mesh on one more: there the app's
*sidecar* has the app's names. So what outsiders call by name is seen, counted, and ends at its day. The app itself meets an
outsider in three cases only, and can be reached there past its sidecar:

* The app calls the outsider, or the outsider asks Docker for the app's own address: then those are on a second network
  with the app. The first one's name comes before that one's, and Docker's resolver asks a container's networks in the order
  of their names: the app's names still lead to its sidecar, and only who calls its address passes that by.
* The app serves UDP, which no sidecar carries: its names must lead to itself, so the sidecar is not there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from itertools import combinations, count

from sidecar.identity.reasons import UsageError
from sidecar.inject.application import Application
from sidecar.inject.edges import StaticReference
from sidecar.inject.exclusions import ASKS_DOCKER, udp_beside
from sidecar.inject.ports import Port
from sidecar.inject.visibility import App, leads_to, names_for, neighbours, shared_networks

MESH = "sidecar-mesh"
"""The network between the sidecars."""

OUT = "sidecar-alarm"
"""The network by which the CA reaches the URL that alarms are posted to: the one way out of the mesh. The CA is alone on
it."""

CA = "mesh-ca"
"""The service and host name of the CA."""


def sidecar_of(app: str) -> str:
    """The service that is an app's sidecar."""
    return f"{app}-mesh"


def app_alias(app: str) -> str:
    """The name by which a sidecar calls its app where it has all names of the app itself, on a :class:`PlainNetwork`."""
    return f"{app}.app"


def mesh_alias(app: str) -> str:
    """The name by which sidecars call an app's sidecar."""
    return f"{app}.mesh"


def private_network(app: str, index: int) -> str:
    return f"{app}-private" + (f"-{index + 1}" if index else "")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the last run put everything. ``subnets`` are by network; ``addresses``, on the mesh network, are those of the
    sidecars by app, and of the CA. ``callees``: by app, the private network on which it finds each callee. ``names``: by
    app, the callee that each name leads to; empty where that is not recorded. ``outside``: by app and original network, the
    network on which outsiders meet its sidecar. ``gateways`` are the networks whose gateway is written
    in the override: another one cannot be given it, without being made anew."""

    subnets: Mapping[str, IPv4Network] = field(default_factory=dict)
    addresses: Mapping[str, IPv4Address] = field(default_factory=dict)
    callees: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    names: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    outside: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    gateways: frozenset[str] = frozenset()

    def has_gateway(self, network: str) -> bool:
        """Whether the gateway of a network is written down, or will be, as it is new."""
        return network in self.gateways or network not in self.subnets

    def private_networks(self, app: str) -> list[str]:
        """In their order; those that lead to nobody now too."""
        pattern = re.compile(re.escape(private_network(app, 0)) + r"(-\d+)?")
        return sorted(filter(pattern.fullmatch, self.subnets), key=lambda name: (len(name), name))


@dataclass(frozen=True, slots=True)
class Slot:
    """One private network of an app, on which each port leads to one callee, or to several that the app is not foreseen to
    call. ``names`` maps the sidecar's names there to the callee that each stands for."""

    network: str
    callees: tuple[str, ...]
    names: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PlainNetwork:
    """Where one app of the mesh meets the outsiders with which it shared the network ``instead_of``. ``names`` are those of
    the app, which its sidecar has on ``network``; empty if it is not there. ``beside``: the outsiders that meet the app
    itself, each with the reason."""

    network: str
    app: str
    outsiders: tuple[str, ...]
    instead_of: str
    names: tuple[str, ...] = ()
    beside: Mapping[str, str] = field(default_factory=dict)

    @property
    def beside_network(self) -> str:
        """The network on which the app itself is, if it meets anybody. It comes after ``network`` by name."""
        return f"{self.network}-beside" if self.names else self.network

    def networks(self) -> tuple[str, ...]:
        found = ([self.network] if self.names else []) + ([self.beside_network] if self.beside else [])
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Topology:
    """``slots`` are by app of the mesh. Each with its reason: ``stays`` are original networks that an app keeps,
    ``excluded`` are apps, ``plaintext`` are sorted pairs whose traffic stays plaintext. ``unclear`` are names of several
    callees, by caller: the callee that the name leads to now, then all. ``hidden`` are pairs of caller and callee: the
    caller was there first, is not foreseen to call it, and so did not get its names. ``parted``: pairs of an app and
    an outsider that shared a network, and of which the app can no longer call the outsider."""

    slots: Mapping[str, tuple[Slot, ...]]
    stays: Mapping[tuple[str, str], str]
    plain: tuple[PlainNetwork, ...]
    excluded: Mapping[str, str]
    plaintext: Mapping[tuple[str, str], str]
    unclear: Mapping[tuple[str, str], tuple[str, ...]]
    hidden: tuple[tuple[str, str], ...]
    parted: tuple[tuple[str, str], ...] = ()

    def is_plaintext(self, one: str, other: str) -> bool:
        return (min(one, other), max(one, other)) in self.plaintext


def is_met(app: str, topology: Topology) -> bool:
    """Whether outsiders meet the app's sidecar."""
    return any(plain.app == app and plain.names for plain in topology.plain)


def lay_out(
    application: Application,
    apps: Mapping[str, App],
    excluded: Mapping[str, str],
    static: tuple[StaticReference, ...],
    ports: Mapping[str, tuple[Port, ...]],
    layout: Layout,
    is_foreseen: Callable[[str, str, int | None], bool],
    calls: Callable[[str, str], str | None] = lambda *_: None,
) -> Topology:
    """What is in ``layout``, that of the last run, stays as it is. An app that was there gets the names of new callees only
    if ``is_foreseen`` says of it and the callee that it calls it. ``calls`` says of an app and an outsider why the app must
    reach it, if it must. Raises :class:`UsageError` if an added service or network has a name that the application uses
    already."""
    excluded = dict(excluded)
    while True:
        meshed = [name for name in sorted(apps) if name not in excluded]
        stays = _stays(application, apps, meshed, static)
        plaintext = _plaintext(apps, meshed, excluded, stays)
        alone = [name for name in meshed if not _in_mesh(apps, name, meshed, plaintext)]
        if not alone:
            break
        excluded |= {name: _why_alone(apps, name, stays) for name in alone}
    slots: dict[str, tuple[Slot, ...]] = {}
    unclear: dict[tuple[str, str], tuple[str, ...]] = {}
    hidden: list[tuple[str, str]] = []
    for name in meshed:
        near = _in_mesh(apps, name, meshed, plaintext)
        kept = layout.callees.get(name, {})
        callees = [it for it in near if name not in layout.addresses or it in kept or is_foreseen(name, it, None)]
        found = names_for(apps[name], apps, callees)
        leads, withheld = _leads(found, layout, name, is_foreseen)
        hidden += [(name, it) for it in near if it in withheld or it not in callees]
        slots[name] = tuple(_slots(name, callees, leads, ports, layout, is_foreseen))
        unclear |= {
            (name, word): (leads[word], *them) for word, them in found.items() if len({*them}) > 1 and word in leads
        }
    plain, parted = _plain_networks(apps, meshed, excluded, stays, ports, layout, calls)
    pairs = dict(sorted(plaintext.items()))
    topology = Topology(slots, stays, plain, excluded, pairs, unclear, tuple(hidden), parted)
    _refuse_clashes(application, topology)
    return topology


def _stays(
    application: Application,
    apps: Mapping[str, App],
    meshed: list[str],
    static: tuple[StaticReference, ...],
) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for name in meshed:
        for key in apps[name].owner.networks:
            network = application.networks.get(key)
            fixed = [it for it in static if it.network == key and name in (it.caller, it.callee)]
            if network is not None and network.external:
                found[name, key] = "it is external, and its other members are unknown"
            elif fixed:
                found[name, key] = fixed[0].reason
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


def _why_alone(apps: Mapping[str, App], name: str, stays: Mapping[tuple[str, str], str]) -> str:
    near = neighbours(apps[name], apps)
    if not near:
        return "shares no network with another service"
    for network in apps[name].owner.networks:
        reason = stays.get((name, network))
        if reason is not None and any((other, network) in stays for other in near):
            return f"stays on network {network}, and shares no other with a service of the mesh: {reason}"
    return "shares no network with a service that could be in the mesh"


def _leads(
    found: Mapping[str, list[str]], layout: Layout, caller: str, is_foreseen: Callable[[str, str, int | None], bool]
) -> tuple[dict[str, str], set[str]]:
    """The callee that each name leads to: where it led before, if it can. And the callees of whom names are withheld."""
    kept, names = layout.callees.get(caller, {}), layout.names.get(caller, {})
    older = {word: [it for it in them if it in kept] or them for word, them in found.items()}
    leads = leads_to(older) | {word: names[word] for word, them in found.items() if names.get(word) in them}
    withheld = {
        word: callee
        for word, callee in leads.items()
        if callee in kept and word not in names and not is_foreseen(caller, callee, None)
    }
    return {word: callee for word, callee in leads.items() if word not in withheld}, set(withheld.values())


def _slots(
    name: str,
    callees: Iterable[str],
    leads: Mapping[str, str],
    ports: Mapping[str, tuple[Port, ...]],
    layout: Layout,
    is_foreseen: Callable[[str, str, int | None], bool],
) -> Iterable[Slot]:
    """A callee stays on its network; a new one goes to the first network with room for its ports. A port that it is foreseen
    to be called at is its own there. Several callees may share one at which none of them is: calls to it are refused."""
    kept = layout.callees.get(name, {})
    together: dict[str, list[str]] = {it: [] for it in layout.private_networks(name) or [private_network(name, 0)]}
    own: dict[str, set[int]] = {network: set() for network in together}
    shared: dict[str, set[int]] = {network: set() for network in together}
    for callee in sorted(callees, key=lambda it: (it not in kept, not is_foreseen(name, it, None), it)):
        numbers = {port.number for port in ports[callee]}
        called = {number for number in numbers if is_foreseen(name, callee, number)}
        fit = [network for network in together if not own[network] & numbers and not shared[network] & called]
        free = [network for network in fit if not shared[network] & numbers]
        more = next(it for it in (private_network(name, index) for index in count()) if it not in together)
        place = kept[callee] if kept.get(callee) in fit else next(iter([*free, *fit]), more)
        together.setdefault(place, []).append(callee)
        own.setdefault(place, set()).update(called)
        shared.setdefault(place, set()).update(numbers - called)
    for network, group in together.items():
        yield Slot(network, tuple(sorted(group)), {word: callee for word, callee in leads.items() if callee in group})


def _plain_networks(
    apps: Mapping[str, App],
    meshed: list[str],
    excluded: Mapping[str, str],
    stays: Mapping[tuple[str, str], str],
    ports: Mapping[str, tuple[Port, ...]],
    layout: Layout,
    calls: Callable[[str, str], str | None],
) -> tuple[tuple[PlainNetwork, ...], tuple[tuple[str, str], ...]]:
    """And the pairs of app and outsider that are parted."""
    found: list[PlainNetwork] = []
    near: set[tuple[str, str]] = set()
    for name in meshed:
        kept = layout.outside.get(name, {})
        fresh = (f"{name}-plain" + (f"-{number}" if number > 1 else "") for number in count(1))
        unused = (network for network in fresh if network not in kept.values())
        for key in apps[name].owner.networks:
            outsiders = tuple(it for it in sorted(excluded) if it in apps and key in apps[it].owner.networks)
            if not outsiders or (name, key) in stays:
                continue
            beside = {it: why for it in outsiders if (why := _why_beside(apps[name], it, excluded, calls))}
            is_called = bool(ports[name]) and not udp_beside(apps[name])
            by_name = is_called and any(excluded[it] != ASKS_DOCKER for it in outsiders)
            near |= {(name, it) for it in outsiders}
            if by_name or beside:
                network = kept[key] if kept.get(key, key) != key else next(unused)
                there = outsiders if by_name else tuple(beside)
                names = _names_of(apps, name, key, outsiders) if by_name else ()
                found.append(PlainNetwork(network, name, there, key, names, beside))
    met = {(plain.app, it) for plain in found for it in plain.beside}
    return tuple(found), tuple(sorted(near - met))


def _why_beside(
    app: App, outsider: str, excluded: Mapping[str, str], calls: Callable[[str, str], str | None]
) -> str | None:
    """Why an outsider must meet the app itself."""
    if udp_beside(app):
        return "the app serves UDP, which no sidecar carries"
    if excluded[outsider] == ASKS_DOCKER:
        return "it asks Docker for the app's own address"
    return calls(app.name, outsider)


def _names_of(apps: Mapping[str, App], name: str, network: str, outsiders: Iterable[str]) -> tuple[str, ...]:
    """The names by which outsiders call an app on a network: also those that their links give it."""
    members = {member.name for member in apps[name].members}
    linked = [
        alias
        for outsider in outsiders
        for member in apps[outsider].members
        for service, alias in member.links
        if service in members
    ]
    return tuple(dict.fromkeys([*apps[name].owner.names_on(network), *linked]))


def _refuse_clashes(application: Application, topology: Topology) -> None:
    mistakes = []
    for name in [CA, *(sidecar_of(app) for app in topology.slots)]:
        if name in application.services:
            mistakes.append(f"service '{name}' exists already, and inject adds one of that name: rename it")
    mistakes += _names_of_ours(application, topology)
    added = [slot.network for slots in topology.slots.values() for slot in slots]
    added += [network for plain in topology.plain for network in plain.networks()]
    mistakes += _networks_of_ours(application, [MESH, *added])
    if mistakes:
        raise UsageError("\n".join(mistakes))


def refuse_networks(application: Application, added: Iterable[str]) -> None:
    """Raises :class:`UsageError` if a network to be added has the name of one of the application's: Compose would take both
    for one, with all who are on either."""
    mistakes = list(_networks_of_ours(application, added))
    if mistakes:
        raise UsageError("\n".join(mistakes))


def _networks_of_ours(application: Application, added: Iterable[str]) -> Iterator[str]:
    for key in added:
        if key in application.networks:
            yield f"network '{key}' exists already, and inject adds one of that name: rename it"


def _names_of_ours(application: Application, topology: Topology) -> Iterator[str]:
    """The names by which sidecars find their apps, each other and the CA. Docker's resolver asks all networks of a sidecar,
    so one who had such a name on any of them would be called in their place."""
    met = [app_alias(app) for app in topology.slots if is_met(app, topology)]
    ours = {CA, *met, *(mesh_alias(app) for app in topology.slots)}
    for service in application.services.values():
        names = {*service.own_names(), *(alias for _, alias in service.links)} - {service.name}
        for name in sorted(names):
            if name.lower() in {it.lower() for it in ours}:
                yield (
                    f"service '{service.name}' has the name '{name}', by which inject lets sidecars find what is theirs: "
                    "give it another"
                )
