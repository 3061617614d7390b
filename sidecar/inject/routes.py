"""What addresses this machine has. I/O: reads the kernel's table of routes, and opens sockets that nobody can reach.

No added network may overlap one that this machine has a route to. A port can be published only at an address of its own.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from sidecar.inject.subnets import Taken

_TABLE = Path("/proc/net/route")


def taken_networks(table: Path = _TABLE) -> tuple[Taken, ...]:
    """Every IPv4 network with a route of its own. Empty without such a table (on a Mac the engine runs in a VM)."""
    try:
        lines = table.read_text().splitlines()[1:]
    except OSError:
        return ()
    found = []
    for line in lines:
        device, destination, *rest = line.split()
        network = IPv4Network((_address(destination), str(_address(rest[5]))), strict=False)
        if network.prefixlen:
            found.append(Taken(network, f"a network of this machine, on {device}"))
    return tuple(found)


def is_here(host: str) -> bool:
    """Whether an IP address is one of this machine's; the wildcard is."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.bind((host, 0))
    except OSError:
        return False
    return True


def _address(word: str) -> IPv4Address:
    """The kernel writes addresses as numbers, the lowest byte first."""
    return IPv4Address(bytes.fromhex(word)[::-1])
