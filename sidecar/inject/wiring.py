"""The ``sidecar.yaml`` of each app of the mesh. Pure.

Nothing listens on a wildcard address. Inbound listeners are bound to the sidecar's address on the mesh network. Outbound
listeners are bound to its address on one private network of its app and to that network's device, and accept only
connections from the containers on that network: not from its gateway, in whose name come the host's own programs and what
arrives at published ports.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from datetime import date
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network
from itertools import count
from typing import Any

from certs.protocol.mesh_state import SECRET
from sidecar.inject import outsiders
from sidecar.inject.published import Published
from sidecar.inject.published import entries as published_entries
from sidecar.inject.subnets import containers, first_fixed
from sidecar.inject.topology import CA, Layout, Topology, app_alias, is_met, mesh_alias
from sidecar.inject.yamltext import Flow, block
from sidecar.policy.names import ADMIN_PORT

CA_PORT = 8443
CONFIG = "/etc/mesh"
TRUST = "/etc/mesh-trust"
STATE = "/var/lib/sidecar"
ENROLMENT = "/etc/mesh-enrolment"
WAIT = "5m"
"""How long a listener stays closed at most, until what is behind it has answered."""

ADMIN = "127.0.0.1:15000"
MESH_NUMBER = 15_090
"""Where a sidecar answers the mesh for itself, unless its app has that port."""

Ports = Mapping[str, Mapping[str, int]]
"""The ports of each app, by their names in ``mesh.yaml``."""


def wiring_path(app: str) -> str:
    """The path of an app's file, relative to the mesh directory."""
    return f"sidecars/{app}.yaml"


def wiring(
    app: str,
    topology: Topology,
    ports: Ports,
    subnets: Mapping[str, IPv4Network],
    address: IPv4Address,
    published: Collection[Published] = (),
    days: Mapping[str, date] | None = None,
    layout: Layout | None = None,
    project: str = "",
) -> dict[str, Any]:
    """The data of an app's file. ``address`` is the sidecar's address on the mesh network; ``published`` are those ports of
    the app at which the host answers too; ``days`` are the last on which outsiders may come in plaintext, by the
    names of the ports. ``layout``: that of the last run. ``project`` is Compose's name for the application."""
    before = layout or Layout()
    hosts = [app_alias(app)] if is_met(app, topology) else [app, *_elsewhere(app, topology, project)]
    places: dict[str, str | list[str]] = {
        name: [f"{host}:{number}" for host in hosts] if hosts[1:] else f"{hosts[0]}:{number}"
        for name, number in ports[app].items()
    }
    inbound = [{"port": name, "listen": f"{address}:{ports[app][name]}", "app": at} for name, at in places.items()]
    inbound += [entry | {"app": places[entry["port"]]} for entry in published_entries(published, subnets)]
    inbound += outsiders.entries(app, topology, ports, subnets, days or {})
    outbound: list[dict[str, Any]] = []
    for slot in topology.slots[app]:
        found: dict[int, dict[str, Any]] = {}
        for callee in slot.callees:
            for name, number in ports[callee].items():
                if number in found:
                    found[number].setdefault("ambiguous_with", []).append(f"{callee}:{name}")
                    continue
                found[number] = {
                    "to": f"{callee}:{name}",
                    "listen": f"{first_fixed(subnets[slot.network])}:{number}",
                    "allow_from": containers(subnets[slot.network], told=before.has_gateway(slot.network)),
                    "device": "auto",
                    "peers": [f"{mesh_alias(callee)}:{number}"],
                }
        outbound += found.values()
    return {
        "service": app,
        "mesh": "../mesh.yaml",
        "identity": {
            "ca": f"https://{CA}:{CA_PORT}",
            "root": f"{TRUST}/root.pem",
            "enrolment": f"{ENROLMENT}/{SECRET}",
            "state_dir": STATE,
        },
        "admin": {"listen": ADMIN, "mesh_listen": f"{address}:{mesh_number(ports[app])}"},
        "inbound": inbound,
        "outbound": outbound,
        "timeouts": {"wait": WAIT},
        "log_format": "json",
    }


def _elsewhere(app: str, topology: Topology, project: str) -> list[str]:
    """The names of an app on its further networks. Its own name leads to its address on the first alone, and a server may
    listen at that of its host name only (ZooKeeper does), which is on any of them."""
    networks = sorted(slot.network for slot in topology.slots[app])
    return [f"{app}.{project}_{network}" for network in networks[1:] if project]


def numbers_at(app: str, topology: Topology, ports: Ports) -> frozenset[int]:
    """Every number at which an app's sidecar may have a listener, whatever the address."""
    called = {number for slot in topology.slots[app] for callee in slot.callees for number in ports[callee].values()}
    return frozenset({*called, *ports[app].values(), mesh_number(ports[app]), int(ADMIN.rpartition(":")[2])})


def mesh_number(ports: Mapping[str, int]) -> int:
    """Where the sidecar of an app with these ports answers the mesh for itself."""
    return next(number for number in count(MESH_NUMBER) if number not in ports.values())


def needs_of(data: Mapping[str, Any], settings: Mapping[str, Any], is_foreseen: Callable[[str, str, int], bool]) -> str:
    """A digest of what makes a restart necessary: the listeners, until when they take plaintext, and the settings that are
    written in the Compose file. A listener for a call that nobody foresees can wait for the next start."""
    inbound = [[it["port"], it["listen"], *([str(it["until"])] if it.get("until") else [])] for it in data["inbound"]]
    outbound = [
        [it["to"], it["listen"]]
        for it in data["outbound"]
        if it["to"].endswith(f":{ADMIN_PORT}")
        or is_foreseen(data["service"], it["to"].rpartition(":")[0], int(it["listen"].rpartition(":")[2]))
    ]
    text = json.dumps([sorted(inbound), sorted(outbound), dict(settings)], sort_keys=True, default=str)
    return sha256(text.encode()).hexdigest()[:12]


def wiring_text(data: Mapping[str, Any]) -> str:
    app, shown = data["service"], dict(data)
    for key in ("inbound", "outbound"):
        shown[key] = [Flow(entry) for entry in data[key]]
    head = f"# The wiring of {app}'s sidecar, written by `sidecar inject`: do not edit, run it again."
    return "\n".join([head, *block(shown)]) + "\n"
