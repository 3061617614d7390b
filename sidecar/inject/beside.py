"""The ways to reach an app beside its sidecar, and the ports at which that matters: the app is told who calls. Pure.

What the app is told (``proxy_protocol``, ``identity_header``) is worth as much as the certainty that only its sidecar can
tell it. Whoever reaches the port otherwise can name any caller. So this is refused, with the way, unless the port says
``i_know: true``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from sidecar.identity.reasons import UsageError
from sidecar.inject.exclusions import is_on_host
from sidecar.inject.facts import KEY, Facts
from sidecar.inject.options import Options
from sidecar.inject.references import health_ports
from sidecar.inject.topology import Topology
from sidecar.inject.visibility import App

_TELLS = {
    "proxy_protocol": "expects a PROXY protocol header ({0}: {1}): it fails unless it sends one, or calls another port",
    "identity_header": "is told who calls by a header ({0}: {1}): the check comes without one, and the app must answer it",
}
"""The keys by which an app is told who calls, and what that means for a health check of the port."""


def told_who_calls(
    app: App,
    wiring: Mapping[str, Any],
    facts: Facts,
    ports: Mapping[str, int],
    ways: Mapping[int | None, Collection[str]],
    known: Collection[str],
) -> list[str]:
    """What to warn of. ``wiring`` is the data of the app's ``sidecar.yaml``, with the facts in it; ``ports`` are the app's,
    by name; ``ways`` those of :func:`ways_beside`; ``known`` are the ports of which a person knows. Raises
    :class:`UsageError` where the app can be reached beside its sidecar, and nobody says that he knows."""
    found: dict[str, None] = {}
    own = dict.fromkeys(app.own_names(), app.name)
    told = [(entry["port"], key, entry.get(key, "off")) for entry in wiring["inbound"] for key in _TELLS]
    for name, key, value in told:
        if value == "off":
            continue
        number = ports[name]
        beside = [*ways.get(number, ()), *ways.get(None, ())]
        if beside and name not in known:
            raise UsageError(
                f"{facts.place}: {KEY}: '{key}' of port {name} cannot be trusted: {app.name} can be reached beside its "
                f"sidecar, {' and '.join(beside)}: whoever does can name any caller; close that, or write `i_know: true` "
                "at this port"
            )
        for member in app.members:
            if number in health_ports(member.healthcheck, own):
                found[
                    f"{member.name}: its health check calls port {number}, which {_TELLS[key].format(key, value)}"
                ] = None
    return list(found)


def ways_beside(
    app: App, apps: Mapping[str, App], topology: Topology, options: Options
) -> dict[int | None, tuple[str, ...]]:
    """The ways to reach an app beside its sidecar: those to one TCP port by its number, those to all under None."""
    found: dict[int | None, tuple[str, ...]] = {
        port: (f"at published port {port} (--publish drop)",) for port in dict.fromkeys(_still_published(app, options))
    }
    everywhere = tuple(_to_all_ports(app, apps, topology))
    return found | ({None: everywhere} if everywhere else {})


def _to_all_ports(app: App, apps: Mapping[str, App], topology: Topology) -> Iterator[str]:
    for (name, network), reason in topology.stays.items():
        if name == app.name:
            yield f"on network {network}, on which it stays ({reason})"
    for plain in topology.plain:
        if plain.app == app.name and plain.beside:
            why = "; ".join(dict.fromkeys(plain.beside.values()))
            yield f"by {', '.join(plain.beside)}, not in the mesh ({why})"
    on_host = [other.name for other in apps.values() if is_on_host(other)]
    if on_host:
        yield f"by {', '.join(on_host)}, on the host's network"


def _still_published(app: App, options: Options) -> Iterator[int]:
    """The TCP ports that the host forwards to the app, as the override leaves them."""
    for member in app.members:
        dropped = options.publish == "drop" and not all(port.is_loopback for port in member.published)
        yield from () if dropped else (port.target for port in member.published if port.protocol == "tcp")
