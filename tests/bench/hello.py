"""What two proxies agreed on, read from the hellos between them (RFC 8446 4.1), which TLS 1.3 leaves in the clear. Pure.

Nothing else tells it for every contestant alike: configuration says what was asked for, not what was negotiated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tests.bench.errors import BenchError

_HANDSHAKE = 22
_CLIENT_HELLO, _SERVER_HELLO = 1, 2
_PRE_SHARED_KEY, _SUPPORTED_VERSIONS, _KEY_SHARE = 41, 43, 51
_RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
"""The random of a ServerHello that is a HelloRetryRequest (RFC 8446 4.1.3)."""

VERSIONS = {0x0303: "TLS 1.2", 0x0304: "TLS 1.3"}
CIPHERS = {
    0x1301: "TLS_AES_128_GCM_SHA256",
    0x1302: "TLS_AES_256_GCM_SHA384",
    0x1303: "TLS_CHACHA20_POLY1305_SHA256",
}
GROUPS = {23: "P-256", 24: "P-384", 29: "X25519", 30: "X448", 4588: "X25519MLKEM768"}


@dataclass(frozen=True, slots=True)
class Negotiated:
    """``resumes``: the client offered a session to resume, or the server took one. ``retried``: the client's key share
    was of the wrong group, and cost both another hello."""

    version: str
    cipher: str
    group: str
    resumes: bool = False
    retried: bool = False

    def __str__(self) -> str:
        more = [name for name, it_is in (("resumes", self.resumes), ("retried", self.retried)) if it_is]
        return ", ".join([self.version, self.cipher, self.group, *more])


def read_hellos(from_client: bytes, from_server: bytes) -> Negotiated:
    """Reads the beginnings of both directions. Raises :class:`BenchError` if that is no complete pair of hellos."""
    try:
        offers = [_extensions(body, 34, client=True) for kind, body in _messages(from_client) if kind == _CLIENT_HELLO]
        answers = [body for kind, body in _messages(from_server) if kind == _SERVER_HELLO]
        final = answers[-1]
        if not offers or final[2:34] == _RETRY:
            raise IndexError
        cipher_at = 35 + final[34]
        extensions = _extensions(final, 34, client=False)
        return Negotiated(
            _name(VERSIONS, extensions.get(_SUPPORTED_VERSIONS, final[:2])),
            _name(CIPHERS, final[cipher_at : cipher_at + 2]),
            _name(GROUPS, extensions.get(_KEY_SHARE, b"\0\0")[:2]),
            resumes=_PRE_SHARED_KEY in extensions or any(_PRE_SHARED_KEY in offer for offer in offers),
            retried=len(answers) > 1,
        )
    except IndexError as error:
        raise BenchError("saw no complete TLS hellos between the two proxies") from error


def _messages(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """The handshake messages that are in the clear: up to the first record that is not, or is cut."""
    handshake, at = b"", 0
    while at + 5 <= len(stream):
        kind, size = stream[at], int.from_bytes(stream[at + 3 : at + 5])
        if kind == _HANDSHAKE:
            handshake += stream[at + 5 : at + 5 + size]
        at += 5 + size
    at = 0
    while at + 4 <= len(handshake):
        size = int.from_bytes(handshake[at + 1 : at + 4])
        body = handshake[at + 4 : at + 4 + size]
        if len(body) < size:
            return
        yield handshake[at], body
        at += 4 + size


def _extensions(body: bytes, at: int, *, client: bool) -> dict[int, bytes]:
    """A hello's extensions by number; ``at`` is where the session ID's length is."""
    at += 1 + body[at]
    if client:
        at += 2 + int.from_bytes(body[at : at + 2])  # cipher suites
        at += 1 + body[at]  # compression methods
    else:
        at += 3
    end = at + 2 + int.from_bytes(body[at : at + 2])
    at += 2
    found = {}
    while at + 4 <= min(end, len(body)):
        size = int.from_bytes(body[at + 2 : at + 4])
        found[int.from_bytes(body[at : at + 2])] = body[at + 4 : at + 4 + size]
        at += 4 + size
    return found


def _name(names: dict[int, str], number: bytes) -> str:
    value = int.from_bytes(number)
    return names.get(value, f"0x{value:04x}")
