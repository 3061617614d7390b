"""The metrics of the mesh's own sidecars, for a Prometheus that is a service of the application. Pure.

How this works. Each sidecar answers for itself at ``mesh-admin``, on its address on the mesh network. A service that the
policy allows there scrapes: its own sidecar offers each callee on a port of its own, from :data:`FIRST_LOCAL` on, on the
scraper's private network, and :func:`targets_text` lists these for Prometheus (``file_sd_configs``). So the wiring of one
sidecar changes when a scraper is added, and no other. ``x-mesh: {scrapes: true}`` has the rules proposed, one a callee.

A scraper's own sidecar is not among its targets: that would be a call to itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time
from ipaddress import IPv4Network
from itertools import count
from typing import Any

from sidecar.inject.meshtext import Proposal
from sidecar.inject.subnets import containers, first_fixed
from sidecar.inject.topology import Layout, Topology, mesh_alias
from sidecar.inject.wiring import mesh_number
from sidecar.policy.decide import decide
from sidecar.policy.mesh import Mesh
from sidecar.policy.names import ADMIN_PORT

FIRST_LOCAL = 15_100

Ports = Mapping[str, Mapping[str, int]]


def targets_path(app: str) -> str:
    """The path of a scraper's file, relative to the mesh directory."""
    return f"scrape/{app}.json"


def proposals(scrapers: Iterable[str], apps: Iterable[str]) -> tuple[Proposal, ...]:
    """A rule for each callee of each scraper, so that a person can remove one."""
    every = list(apps)
    return tuple(
        Proposal(scraper, (f"{app}:{ADMIN_PORT}",), "x-mesh: scrapes")
        for scraper in scrapers
        for app in every
        if app != scraper
    )


def scraped(app: str, mesh: Mesh, apps: Iterable[str], today: date) -> tuple[str, ...]:
    """Whose sidecars this app may scrape."""
    now = datetime.combine(today, time(), UTC)
    return tuple(
        it for it in sorted(apps) if it != app and decide(mesh, mesh.identity(app), it, ADMIN_PORT, now).allowed
    )


def listeners(
    app: str,
    callees: Iterable[str],
    topology: Topology,
    ports: Ports,
    subnets: Mapping[str, IPv4Network],
    layout: Layout | None = None,
) -> list[dict[str, Any]]:
    """The entries of ``outbound`` for these callees. ``layout``: that of the last run."""
    slot = topology.slots[app][0]
    taken = {number for callee in slot.callees for number in ports[callee].values()}
    free = (number for number in count(FIRST_LOCAL) if number not in taken)
    return [
        {
            "to": f"{callee}:{ADMIN_PORT}",
            "listen": f"{first_fixed(subnets[slot.network])}:{next(free)}",
            "allow_from": containers(subnets[slot.network], told=(layout or Layout()).has_gateway(slot.network)),
            "device": "auto",
            "peers": [f"{mesh_alias(callee)}:{mesh_number(ports[callee])}"],
        }
        for callee in callees
    ]


def targets_text(entries: Iterable[Mapping[str, Any]]) -> str:
    """The file that Prometheus reads: each callee is an instance of its own name, wherever it is offered."""
    found = []
    for entry in entries:
        service = str(entry["to"]).partition(":")[0]
        found.append({"targets": [entry["listen"]], "labels": {"instance": service, "service": service}})
    return json.dumps(found, indent=2) + "\n"
