"""Ports whose app is told who calls (``proxy_protocol``), and the ways to reach such an app beside its sidecar. Pure.

What the app is told is worth as much as the certainty that only its sidecar can tell it. Whoever reaches the port otherwise
can name any caller. So this is refused, with the way, unless the Compose file says ``i_know: true``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sidecar.identity.reasons import UsageError
from sidecar.inject.facts import KEY, Facts
from sidecar.inject.options import Options
from sidecar.inject.references import health_ports
from sidecar.inject.topology import Topology
from sidecar.inject.visibility import App


def told_who_calls(
    app: App, wiring: Mapping[str, Any], facts: Facts, ports: Mapping[str, int], topology: Topology, options: Options
) -> list[str]:
    """What to warn of. ``wiring`` is the data of the app's ``sidecar.yaml``, with the facts in it; ``ports`` are the app's,
    by name. Raises :class:`UsageError` where the app can be reached beside its sidecar, and nobody says that he knows."""
    found = []
    for entry in wiring["inbound"]:
        name, told = entry["port"], entry.get("proxy_protocol", "off")
        if told == "off":
            continue
        ways = list(_ways(app, ports[name], topology, options))
        if ways and not facts.i_know:
            raise UsageError(
                f"{facts.place}: {KEY}: 'proxy_protocol' of port {name} cannot be trusted: {app.name} can be reached beside "
                f"its sidecar, {' and '.join(ways)}: whoever does can name any caller; close that, or write `i_know: true`"
            )
        own = dict.fromkeys(app.own_names(), app.name)
        found += [
            f"{member.name}: its health check calls port {ports[name]}, which expects a PROXY protocol header "
            f"(proxy_protocol: {told}): it fails unless it sends one, or calls another port"
            for member in app.members
            if ports[name] in health_ports(member.healthcheck, own)
        ]
    return found


def _ways(app: App, number: int, topology: Topology, options: Options) -> Iterator[str]:
    for port in _still_published(app, options):
        if port == number:
            yield f"at published port {number} (--publish drop)"
    for (name, network), _ in topology.stays.items():
        if name == app.name:
            yield f"on network {network}, on which it stays"
    for plain in topology.plain:
        if plain.app == app.name:
            yield f"by {', '.join(plain.outsiders)}, not in the mesh, on network {plain.network}"


def _still_published(app: App, options: Options) -> Iterator[int]:
    """The TCP ports that the host forwards to the app, as the override leaves them."""
    for member in app.members:
        dropped = options.publish == "drop" and not all(port.is_loopback for port in member.published)
        yield from () if dropped else (port.target for port in member.published if port.protocol == "tcp")
