"""Addresses to listen on and to connect to: ``host:port`` as a value. Pure; fails closed.

A host whose text differs from the address that a resolver would make of it is refused, because checks look at the text.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from sidecar.identity.spiffe import shown

IP = ipaddress.IPv4Address | ipaddress.IPv6Address
DEVICE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,14}")
"""The name of a network interface."""

_HOST_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_LIKE_A_NUMBER = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")
_PORT = re.compile(r"[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Address:
    """A host, by name or IP address, and a port. As text, IPv6 is in brackets: ``[::1]:80``."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def ip(self) -> IP | None:
        """``host`` as an IP address, None for a name. An IPv4-mapped IPv6 address is given as IPv4."""
        try:
            found = ipaddress.ip_address(self.host)
        except ValueError:
            return None
        return found.ipv4_mapped or found if isinstance(found, ipaddress.IPv6Address) else found

    @property
    def is_wildcard(self) -> bool:
        """Whether a listener here listens on every address of the machine."""
        return self.ip is not None and self.ip.is_unspecified

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine (or this container) can connect to it."""
        return self.host.lower() == "localhost" if self.ip is None else self.ip.is_loopback


def parse_address(text: str, *, listening: bool = False) -> Address:
    """Parses ``host:port``. The host is a name, an IPv4 address, or an IPv6 address in brackets.

    Port 0 ("any free port") and the wildcard addresses are allowed for ``listening`` only. Raises :class:`ValueError` with
    a message for the user. A host like ``0``, ``127.1`` or ``0x7f.1`` is refused: the system's resolver would read it as
    an IPv4 address, which checks on the text would miss.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not _PORT.fullmatch(port) or int(port) > 65535:
        raise ValueError(f"{shown(text)} is no host:port, with a port of 1 to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        _, zone, device = host.partition("%")
        if not _is_ip(ipaddress.IPv6Address, host) or (zone and not DEVICE.fullmatch(device)):
            raise ValueError(f"{shown(text)}: what is in the brackets is no IPv6 address")
    elif not host:
        raise ValueError(f"{shown(text)} has no host: say which address")
    elif ":" in host:
        raise ValueError(f"{shown(text)} is no host:port; an IPv6 address is written in brackets, as [::1]:80")
    elif not _is_ip(ipaddress.IPv4Address, host) and not _is_host_name(host):
        raise ValueError(f"{shown(text)}: {shown(host)} is no host name or IP address")
    address = Address(host, int(port))
    if not listening and (address.port == 0 or address.is_wildcard):
        raise ValueError(f"{shown(text)} can be listened on, not connected to: say which address and port")
    return address


def ca_address(url: str) -> Address:
    """The address in a CA's URL: ``https://ca:8443``, without a path; port 443 by default. Raises :class:`ValueError`."""
    host = url.removeprefix("https://").removesuffix("/")
    try:
        if not url.startswith("https://"):
            raise ValueError("no https")
        return parse_address(host if re.search(r":[0-9]+$", host) else f"{host}:443")
    except ValueError as error:
        raise ValueError(f"{shown(url)} is no address of a CA: write it as https://ca:8443") from error


def _is_ip(kind: type[IP], host: str) -> bool:
    try:
        kind(host)
    except ValueError:
        return False
    return True


def _is_host_name(host: str) -> bool:
    labels = host.split(".")
    return (
        len(host) <= 253
        and all(_HOST_LABEL.fullmatch(label) for label in labels)
        and not _LIKE_A_NUMBER.fullmatch(labels[-1])
    )
