"""Addresses of one sidecar that conflict. Pure.

Two listeners on one address cannot both be opened. A connection to one of the sidecar's own listeners would be a loop.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from typing import Any

from sidecar.documents.address import IP, Address, parse_address
from sidecar.documents.document import DataPath, part, parts, path_text
from sidecar.documents.problems import Problems

_LOOPBACKS: tuple[IP, ...] = (ipaddress.IPv4Address("127.0.0.1"), ipaddress.IPv6Address("::1"))
_EVERY_ADDRESS = ipaddress.IPv6Address("::")  # sockets bound to it accept IPv4 too


def add_listener_faults(data: Any, problems: Problems) -> None:
    """Adds listeners on one address, and destinations that are one of this sidecar's own listeners."""
    listeners: dict[DataPath, Address] = {}
    for path, address in _addresses(data, listening=True):
        for other, taken in listeners.items():
            if _collide(address, taken):
                problems.add(path, f"'{address}' is taken already by {path_text(other)} ('{taken}')")
                break
        listeners[path] = address
    for path, address in _addresses(data, listening=False):
        for other, own in listeners.items():
            if _leads_to(address, own, listeners.values()):
                problems.add(path, f"'{address}' is this sidecar's own {path_text(other)} ('{own}'): a loop")
                break


def _addresses(data: Any, *, listening: bool) -> Iterator[tuple[DataPath, Address]]:
    """The addresses in the data, each with its path, as far as they can be parsed."""
    keys = ("listen", "mesh_listen") if listening else ("app", "peers")
    entries = [((side, index), entry) for side in ("inbound", "outbound") for index, entry in parts(part(data, side))]
    for where, entry in [*entries, (("admin",), part(data, "admin"))]:
        for key in keys:
            value = part(entry, key)
            items = parts(value) if isinstance(value, list) else [(None, value)]
            for index, text in items:
                try:
                    address = parse_address(text, listening=listening)
                except (ValueError, AttributeError):
                    continue
                yield (*where, key) if index is None else (*where, key, index), address


def _places(address: Address) -> frozenset[IP | str]:
    if address.host.lower() == "localhost":
        return frozenset(_LOOPBACKS)
    return frozenset({address.ip or address.host.lower()})


def _collide(one: Address, other: Address) -> bool:
    """Whether the two cannot both be opened. ``0.0.0.0`` takes all of IPv4, ``::`` all addresses; a host name may be any."""
    if one.port != other.port or one.port == 0:
        return False
    if _places(one) & _places(other) or _EVERY_ADDRESS in (one.ip, other.ip):
        return True
    return any(
        isinstance(place, str) or place.version == 4
        for wildcard, beside in ((one, other), (other, one))
        if wildcard.is_wildcard
        for place in _places(beside)
    )


def _leads_to(destination: Address, listener: Address, listeners: Iterable[Address]) -> bool:
    """Whether a connection to ``destination`` ends at ``listener``, one of this sidecar's ``listeners``.

    A wildcard listener accepts connections to loopback, and to the addresses of the other listeners, which are local.
    """
    if destination.port != listener.port:
        return False
    if not listener.is_wildcard:
        return bool(_places(destination) & _places(listener))
    own = frozenset[IP | str]().union(*(_places(address) for address in listeners))
    return destination.is_loopback or bool(_places(destination) & own)
