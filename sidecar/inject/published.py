"""``--publish-mesh``: the mutual TLS port of a service at an address of the host, for callers from elsewhere. Pure.

How this works. The sidecar gets one more network, on which no other container is, and on it one more listener for the port:
mutual TLS and nothing else, bound to the sidecar's address there. Compose publishes a port of the host to it.

Docker chooses by itself which network of a container such a port leads to: that of its default gateway, which is the first
by name of those that are not internal (``gw_priority`` is newer than the Compose that we ask for). So two things hold:

* the network's name comes before those of the sidecar's other networks that are not internal;
* the number in the container is one at which this sidecar has no other listener on any network. A tool that chooses
  otherwise meets nobody there: never a listener that takes plaintext.

What is published stays so in later runs, until ``SERVICE=none``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network
from itertools import count
from typing import Any

from sidecar.documents.address import Address, parse_address
from sidecar.documents.problems import did_you_mean
from sidecar.identity.reasons import UsageError
from sidecar.inject.application import ComposeService
from sidecar.inject.subnets import first_fixed
from sidecar.inject.topology import sidecar_of
from sidecar.inject.visibility import App

FIRST_INSIDE = 20_000
"""Beyond those that ``scraping`` gives away, whatever the number of services."""
LOOPBACK = "127.0.0.1"

Ports = Mapping[str, Mapping[str, int]]
"""The ports of each app, by their names in ``mesh.yaml``."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Where a port is to be published. Without ``number``: at its own."""

    host: str = LOOPBACK
    number: int | None = None

    def __str__(self) -> str:
        return str(Address(self.host, self.number or 0))


@dataclass(frozen=True, slots=True)
class Published:
    """A port of an app, the address of the host that leads to it, and the number of its listener in the container."""

    app: str
    port: str
    at: Address
    inside: int

    @property
    def target(self) -> str:
        return f"{self.app}:{self.port}"


def published_network(app: str) -> str:
    """It comes before the app's other networks: ``db-mesh-…`` before ``db-plain`` and ``db-private``."""
    return f"{sidecar_of(app)}-published"


def parse_asked(texts: Collection[str]) -> dict[str, Asked | None]:
    """``db``, ``db=5433``, ``api:http=10.0.0.5:8443``, by what is before ``=``; ``db=none`` is None. Raises
    :class:`UsageError`."""
    found: dict[str, Asked | None] = {}
    for text in texts:
        target, equals, value = text.partition("=")
        if not re.fullmatch(r"[^:=]+(:[^:=]+)?", target):
            raise _malformed(text)
        found[target] = None if value == "none" else _asked(text, value) if equals else Asked()
    return found


def _asked(text: str, value: str) -> Asked:
    try:
        address = parse_address(f"{LOOPBACK}:{value}" if value.isdecimal() else value, listening=True)
    except ValueError as error:
        raise _malformed(text) from error
    if address.ip is None or not address.port:
        raise _malformed(text)
    return Asked(address.host, address.port)


def _malformed(text: str) -> UsageError:
    return UsageError(
        f"--publish-mesh: {text!r} is not SERVICE[:PORT][=ADDR:PORT]: write db, db=5433, api:http=10.0.0.5:8443 (an IP "
        "address of the host), or db=none to end it"
    )


def read_asked(data: Mapping[str, Any]) -> dict[str, Asked]:
    """From the record of a run. Raises :class:`ValueError` for anything else."""
    found = {}
    for target, text in data.items():
        address = parse_address(str(text), listening=True)
        found[str(target)] = Asked(address.host, address.port or None)
    return found


def publish(
    asked: Mapping[str, Asked],
    apps: Mapping[str, App],
    ports: Ports,
    excluded: Mapping[str, str],
    taken: Mapping[str, Collection[int]],
    own: str,
) -> tuple[Published, ...]:
    """``taken`` are the numbers at which the sidecar of each app of the mesh has a listener; ``own`` is what becomes of the
    ports that the application itself publishes. Raises :class:`UsageError` with all mistakes."""
    mistakes: list[str] = []
    found: list[Published] = []
    places = list(_own(apps, ports, own))
    for target, it in sorted(asked.items()):
        app, _, port = target.partition(":")
        fault = _fault(target, app, port, apps, ports, excluded)
        if fault:
            mistakes.append(f"--publish-mesh: {fault}")
            continue
        by_number = (name for name, number in ports[app].items() if port in ("", str(number)))
        name = port if port in ports[app] else next(by_number)
        at = Address(it.host, it.number or ports[app][name])
        for host, number, whose in places:
            if number == at.port and _overlap(host, at.host):
                other = f"{target}={Address(at.host, at.port % 65_535 + 1)}"
                mistakes.append(f"--publish-mesh: {target}: {at} is taken by {whose}: give another, as {other}")
        inside = {one.inside for one in found if one.app == app}
        free = next(it for it in count(FIRST_INSIDE) if it not in taken[app] and it not in inside)
        found.append(Published(app, name, at, free))
        places.append((at.host, at.port, f"--publish-mesh {target}"))
    if mistakes:
        raise UsageError("\n".join(mistakes))
    return tuple(found)


def _fault(
    target: str, app: str, port: str, apps: Mapping[str, App], ports: Ports, excluded: Mapping[str, str]
) -> str | None:
    end = f"; `--publish-mesh {target}=none` ends it"
    if app not in apps:
        return f"there is no service '{app}' with a network of its own{did_you_mean(app, apps)}{end}"
    if app not in ports:
        return f"'{app}' is not in the mesh: it {excluded.get(app, 'is left out')}{end}"
    if not ports[app]:
        return f"no port of '{app}' is known: say which it listens on, as --port {app}=5432"
    shown = ", ".join(ports[app])
    if not port and len(ports[app]) > 1:
        return f"'{app}' has the ports {shown}: name one, as {app}:{next(iter(ports[app]))}"
    if port and all(port not in (name, str(number)) for name, number in ports[app].items()):
        return f"'{app}' has no port '{port}', but {shown}{did_you_mean(port, ports[app])}{end}"
    return None


def ports_left(member: ComposeService, own: str) -> list[dict[str, Any]]:
    """The ``ports`` that a service of the mesh has with the override: ``own`` is the option ``--publish``."""
    if own == "drop" and not all(port.is_loopback for port in member.published):
        return []
    at_loopback = {"host_ip": LOOPBACK} if own == "loopback" else {}
    return [dict(port.raw) if port.is_loopback else {**port.raw, **at_loopback} for port in member.published]


def _own(apps: Mapping[str, App], meshed: Collection[str], own: str) -> Iterator[tuple[str, int, str]]:
    """Where the application itself publishes TCP ports, with the override: host, number, whose it is."""
    for app in apps.values():
        for member in app.members:
            for raw in ports_left(member, own if app.name in meshed else "keep"):
                first, _, last = str(raw.get("published") or "").partition("-")
                if raw.get("protocol", "tcp") == "tcp" and first.isdecimal():
                    host = str(raw.get("host_ip") or "0.0.0.0")  # noqa: S104  # what Docker takes
                    for number in range(int(first), int(last or first) + 1):
                        yield host, number, f"{member.name}, which publishes it in the Compose file"


def _overlap(one: str, other: str) -> bool:
    return one == other or any(Address(host, 1).is_wildcard for host in (one, other))


def entries(published: Collection[Published], subnets: Mapping[str, IPv4Network]) -> list[dict[str, Any]]:
    """The entries of ``inbound`` for the ports of one app."""
    return [
        {
            "port": one.port,
            "listen": f"{first_fixed(subnets[published_network(one.app)])}:{one.inside}",
            "device": "auto",
        }
        for one in published
    ]


def compose_ports(published: Collection[Published]) -> list[dict[str, Any]]:
    """The ``ports`` of a sidecar in Compose."""
    return [
        {"target": one.inside, "host_ip": one.at.host, "published": str(one.at.port), "protocol": "tcp"}
        for one in published
    ]


def notes(published: Collection[Published]) -> Iterator[str]:
    """What to tell of them."""
    for one in published:
        shown = f"{one.target} answers mutual TLS at {one.at} of the host (--publish-mesh)"
        if one.at.is_loopback:
            yield f"{shown}: for whoever is on it and has a certificate that a rule names; `{one.app}=none` ends it"
        else:
            yield (
                f"{shown}: every machine that reaches this host can try, and only mutual TLS is answered, for those whom a "
                "rule names; Docker opens it in the firewall"
            )
