"""What a TLS client offers in its ClientHello (RFC 8446 4.1.2), read from bytes that nobody has answered yet. Pure."""

from __future__ import annotations

import struct

_HANDSHAKE, _CLIENT_HELLO, _ALPN = 22, 1, 16
_SESSION_ID_AT = 43
"""After the headers of record (5 bytes) and message (4), the version (2) and the random (32)."""


def offered_protocols(data: bytes) -> list[bytes]:
    """The ALPN protocols (RFC 7301 3.1) of the ClientHello with which ``data`` begins. Empty if it is none, if it offers
    none, or if what offers them has not arrived. Only the first record is read."""
    if data[:2] != bytes((_HANDSHAKE, 3)) or data[5:6] != bytes((_CLIENT_HELLO,)):
        return []
    try:
        at = _SESSION_ID_AT
        at += 1 + data[at]
        at += 2 + struct.unpack_from(">H", data, at)[0]  # cipher suites
        at += 1 + data[at]  # compression methods
        at += 2  # the length of all extensions
        while True:
            kind, size = struct.unpack_from(">HH", data, at)
            at += 4
            if kind == _ALPN:
                return _names(data[at + 2 : at + size])
            at += size
    except (IndexError, struct.error):
        return []


def _names(data: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(data):
        found.append(data[at + 1 : at + 1 + data[at]])
        at += 1 + data[at]
    return found
