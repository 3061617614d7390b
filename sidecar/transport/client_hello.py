"""What a TLS client offers in its ClientHello (RFC 8446 4.1.2), read from bytes that nobody has answered yet. Pure."""

from __future__ import annotations

import struct

_HANDSHAKE, _CLIENT_HELLO, _ALPN = 22, 1, 16
_HEADER = 5
_MAX_RECORD = 1 << 14
FIRST_BYTES = _HEADER + _MAX_RECORD
"""The longest first record of a connection, header included (RFC 8446 5.1)."""

_SESSION_ID_AT = 43
"""After the headers of record (5 bytes) and message (4), the version (2) and the random (32)."""


def missing_bytes(data: bytes) -> int:
    """How many bytes are missing, at least, in the TLS record with which ``data`` begins. 0 if it is whole, or if it is no
    record in which a ClientHello can be: then there is nothing to wait for."""
    if data[:1] not in (b"", bytes((_HANDSHAKE,))):
        return 0
    if len(data) < _HEADER:
        return _HEADER - len(data)
    size = struct.unpack_from(">H", data, 3)[0]
    return 0 if size > _MAX_RECORD else max(_HEADER + size - len(data), 0)


def is_bare(data: bytes) -> bool:
    """Whether ``data`` is the beginning of something other than TLS: every connection of it begins with this one byte."""
    return data[:1] not in (b"", bytes((_HANDSHAKE,)))


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
