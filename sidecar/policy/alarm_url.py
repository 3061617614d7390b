"""The URL that alarms are posted to. Pure; fails closed.

Plain http goes to loopback and private addresses alone: there is a relay on the same machine or network, which is not ours
to authenticate. A name says nothing about where it leads, so the sender checks the address that it has connected to:
:func:`is_near`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address

from sidecar.documents.address import Address, parse_address
from sidecar.identity.spiffe import shown

_URL = re.compile(r"(https?)://([^/?#@\s]+)((?:[/?][!-~]*)?)")
_PORTS = {"https": 443, "http": 80}
MAX_LENGTH = 2000


@dataclass(frozen=True, slots=True)
class AlarmUrl:
    """``target``: the path and query that are requested."""

    is_secure: bool
    address: Address
    target: str


def parse_alarm_url(text: str) -> AlarmUrl:
    """Raises :class:`ValueError` with a message for people."""
    found = _URL.fullmatch(text) if len(text) <= MAX_LENGTH and text.isascii() else None
    if found is None:
        raise ValueError(f"{shown(text)} is no https:// or http:// URL, without user and fragment")
    scheme, host, rest = found.groups()
    try:
        address = parse_address(host if re.search(r":[0-9]+$", host) else f"{host}:{_PORTS[scheme]}")
    except ValueError as error:
        raise ValueError(f"{shown(text)} has no address to connect to: {error}") from error
    if "#" in rest:
        raise ValueError(f"{shown(text)} is no https:// or http:// URL, without user and fragment")
    if scheme == "http" and address.ip is not None and not is_near(str(address.ip)):
        raise ValueError(f"{shown(text)}: plain http goes to loopback and private addresses only; use https")
    return AlarmUrl(scheme == "https", address, rest if rest.startswith("/") else f"/{rest}")


def is_near(ip: str) -> bool:
    """Whether an address is of this machine or of a private network (RFC 1918, RFC 4193, link-local)."""
    found = ip_address(ip.partition("%")[0])
    found = getattr(found, "ipv4_mapped", None) or found
    return found.is_loopback or (found.is_private and not found.is_unspecified) or found.is_link_local
