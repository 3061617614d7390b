"""Addresses of one sidecar that are in each other's way. Pure.

Two listeners in one place could not both be opened; a connection to one of the sidecar's own listeners would run in circles.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from typing import Any

from sidecar.documents.address import IP, Address, parse_address
from sidecar.documents.document import DataPath, part, parts, path_text
from sidecar.documents.problems import Problems

_LOOPBACKS: tuple[IP, ...] = (ipaddress.IPv4Address("127.0.0.1"), ipaddress.IPv6Address("::1"))
_EVERY_ADDRESS = ipaddress.IPv6Address("::")  # the sockets made for it take IPv4 too


def add_listener_faults(data: Any, problems: Problems) -> None:
    """Two listeners in one place, and destinations that are one of our own listeners."""
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
    """Where in the data which addresses are, as far as they can be read."""
    keys = ("listen",) if listening else ("app", "peers")
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
    """Whether both cannot be listened on: ``0.0.0.0`` takes all of IPv4, ``::`` that too. A name may be any address."""
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

    At a wildcard listener ends what goes to loopback, or to any address of ours that the other listeners tell of.
    """
    if destination.port != listener.port:
        return False
    if not listener.is_wildcard:
        return bool(_places(destination) & _places(listener))
    own = frozenset[IP | str]().union(*(_places(address) for address in listeners))
    return destination.is_loopback or bool(_places(destination) & own)
