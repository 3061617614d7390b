"""The header of the PROXY protocol, version 2, with which an app behind a port learns who calls. Pure; fails closed.

How this works. HAProxy's specification (proxy-protocol.txt, section 2.2) puts a binary header before the first byte of a
connection: a signature, a command, both addresses, and then TLVs (a type, two bytes of length, a value). Everything in it
was judged, or comes from the kernel. Nothing is copied that a caller merely claims: no SNI, and no subject of a certificate.

* Addresses: of the connection between the two sidecars. The source is the *caller's sidecar*, the destination our listener.
  Of a caller without TLS it is the caller itself, and nothing else is told of it, in whatever mode.
* ``tls``: PP2_TYPE_SSL with the TLS version and a CN; and the caller's SPIFFE ID, in a TLV of its own.
* ``tls-full``: the caller's certificate as well, in the sub-TLV where ghostunnel writes it.

The CN is the judged identity: a service's name, and of an identity that is no service its whole SPIFFE ID. The two cannot be
confused, as a service's name has no ``/``. The subject of our CA's certificates is empty; that of another CA's says
anything. No PP2_TYPE_ALPN: ``mesh/2/http`` is no protocol of the app's.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

from sidecar.identity.spiffe import SpiffeId

Mode = Literal["conn", "tls", "tls-full"]
End = tuple[IPv4Address | IPv6Address, int]
"""An IP address and a port."""

MAX_HEADER = 4096
"""Bytes: what nginx reads of a header. With a certificate of our CA it has about 800."""

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_FIXED = len(_SIGNATURE) + 4
_LOCAL, _PROXY = 0x20, 0x21
_TCP_OVER = {4: 0x11, 6: 0x21}

TYPE_SSL = 0x20
SUBTYPE_VERSION = 0x21
SUBTYPE_CN = 0x22
SUBTYPE_CERTIFICATE = 0x28
TYPE_SPIFFE_ID = 0xE0
"""The first of the types that the specification leaves to applications (section 2.2.7)."""

_CLIENT_SSL = 0x01
_CLIENT_CERTIFICATE = 0x02 | 0x04  # on this connection, and in this TLS session: there is no resumption
_VERIFIED = 0
_TLS_VERSION = b"TLS 1.3"  # as ghostunnel writes it; there is no other one

LOCAL = _SIGNATURE + struct.pack("!BBH", _LOCAL, 0, 0)
"""The header of a connection of the sidecar's own, which carries nobody's bytes: section 2.2 wants one there too."""


class HeaderTooLongError(ValueError):
    """The header would be longer than apps read. The message says why."""


def header(mode: Mode, source: End, destination: End, caller: SpiffeId, certificate: bytes) -> bytes:
    """The header of one connection. ``certificate``: the caller's, DER. Raises :class:`HeaderTooLongError`: to leave
    something out would tell the app less than it was promised."""
    tlvs = b""
    if mode != "conn":
        identity = str(caller).encode("ascii")
        inner = _tlv(SUBTYPE_VERSION, _TLS_VERSION) + _tlv(SUBTYPE_CN, (caller.service or str(caller)).encode("ascii"))
        if mode == "tls-full":
            inner += _tlv(SUBTYPE_CERTIFICATE, certificate)
        client = struct.pack("!BI", _CLIENT_SSL | _CLIENT_CERTIFICATE, _VERIFIED)
        tlvs = _tlv(TYPE_SSL, client + inner) + _tlv(TYPE_SPIFFE_ID, identity)
    return _whole(source, destination, tlvs)


def bare_header(source: End, destination: End) -> bytes:
    """The header of a connection whose caller speaks no TLS: its address, and no TLV. So nothing says it has an identity."""
    return _whole(source, destination, b"")


def _whole(source: End, destination: End, tlvs: bytes) -> bytes:
    addresses = _addresses(source, destination)
    size = _FIXED + len(addresses) + len(tlvs)
    if size > MAX_HEADER:
        raise HeaderTooLongError(f"the PROXY protocol header would have {size} bytes; apps read {MAX_HEADER}")
    family = _TCP_OVER[source[0].version]
    return _SIGNATURE + struct.pack("!BBH", _PROXY, family, len(addresses) + len(tlvs)) + addresses + tlvs


def _addresses(source: End, destination: End) -> bytes:
    (caller, calling), (here, port) = source, destination
    if caller.version != here.version:
        raise ValueError(f"{caller} and {here} cannot be the ends of one connection")
    return caller.packed + here.packed + struct.pack("!HH", calling, port)


def _tlv(kind: int, value: bytes) -> bytes:
    if len(value) > MAX_HEADER:  # before its length is packed into two bytes
        raise HeaderTooLongError(f"a value of the PROXY protocol header would have {len(value)} bytes, of {MAX_HEADER}")
    return struct.pack("!BH", kind, len(value)) + value
