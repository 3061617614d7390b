"""Where the last run put everything: networks, addresses, and what each app's private networks lead to. Pure.

How this works. The layout is recorded in the override. The next run keeps all of it and adds to it, so a new service moves
nothing that runs; only ``--relayout`` chooses anew. An override of an earlier format has no such record, but the same
facts: they are read from its networks and sidecars.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import yaml

from sidecar.inject.topology import CA, MESH, Layout, Topology, sidecar_of

_BY_APP = ("callees", "names", "outside")


def layout_of(
    topology: Topology,
    subnets: Mapping[str, IPv4Network],
    addresses: Mapping[str, IPv4Address],
    gateways: Iterable[str] = (),
) -> Layout:
    callees = {
        app: {callee: slot.network for slot in slots for callee in slot.callees}
        for app, slots in topology.slots.items()
    }
    names = {
        app: {name: callee for slot in slots for name, callee in slot.names.items()}
        for app, slots in topology.slots.items()
    }
    outside: dict[str, dict[str, str]] = {}
    for plain in topology.plain:
        outside.setdefault(plain.app, {})[plain.instead_of] = plain.network
    return Layout(subnets, addresses, callees, names, outside, frozenset(gateways))


def layout_data(layout: Layout) -> dict[str, Any]:
    """As JSON."""
    return {
        "subnets": {name: str(subnet) for name, subnet in sorted(layout.subnets.items())},
        "addresses": {name: str(address) for name, address in sorted(layout.addresses.items())},
        **{
            part: {app: dict(sorted(found.items())) for app, found in sorted(getattr(layout, part).items())}
            for part in _BY_APP
        },
        "gateways": sorted(layout.gateways),
    }


def parse_layout(data: Mapping[str, Any]) -> Layout:
    """Raises :class:`ValueError`, :class:`TypeError`, :class:`KeyError` or :class:`AttributeError` for anything else."""
    callees, names, outside = (
        {str(app): {str(key): str(it) for key, it in found.items()} for app, found in data[part].items()}
        for part in _BY_APP
    )
    return Layout(
        {str(name): IPv4Network(text) for name, text in data["subnets"].items()},
        {str(name): IPv4Address(text) for name, text in data["addresses"].items()},
        callees,
        names,
        outside,
        frozenset(map(str, data.get("gateways", ()))),
    )


_Base: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]  # both are safe, one is fast
    """Nothing with one of Compose's tags matters here."""


_Loader.add_multi_constructor("!", lambda *_: None)


def parse_override(text: str) -> Any:
    """An override, without what has a tag. Raises :class:`ValueError`."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506  # a safe loader
    except yaml.YAMLError as error:
        raise ValueError("no YAML") from error


def layout_of_override(override: str) -> Layout:
    """The layout in an override of a format without a record of it. Raises as :func:`parse_layout`."""
    data = parse_override(override)
    places = {name: raw["networks"] for name, raw in data["services"].items() if MESH in (raw.get("networks") or ())}
    apps = {name if name == CA else name.removesuffix(sidecar_of("")): networks for name, networks in places.items()}
    names: dict[str, dict[str, str]] = {}
    callees: dict[str, dict[str, str]] = {}
    for app, networks in apps.items():
        for network, raw in networks.items():
            for alias in raw.get("aliases", ()) if network != MESH else ():
                names.setdefault(app, {})[alias] = alias if alias in apps else ""
                if alias in apps:
                    callees.setdefault(app, {})[alias] = network
    subnets = {name: raw["ipam"]["config"][0]["subnet"] for name, raw in data["networks"].items()}
    addresses = {app: networks[MESH]["ipv4_address"] for app, networks in apps.items()}
    told = [name for name, raw in data["networks"].items() if "gateway" in raw["ipam"]["config"][0]]
    parts = {"callees": callees, "names": names, "outside": {}}
    return parse_layout({"subnets": subnets, "addresses": addresses, **parts, "gateways": told})
