"""TLS 1.3 records and messages made by hand, for what no library would send (RFC 8446 4, 5 and 7).

The secrets come from OpenSSL's key log of a genuine handshake; from then on the attacker writes the records himself.
"""

from __future__ import annotations

import hmac
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from OpenSSL import SSL

CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, DATA = 0x14, 0x15, 0x16, 0x17
CLIENT_HELLO, NEW_SESSION_TICKET, ENCRYPTED_EXTENSIONS, CERTIFICATE, CERTIFICATE_REQUEST, KEY_UPDATE = (
    1,
    4,
    8,
    11,
    13,
    24,
)

TICKETS = 2
"""Records that a server of OpenSSL's sends by itself right after the handshake, whether or not they can be used."""


def plain_record(kind: int, content: bytes, version: bytes = b"\x03\x03") -> bytes:
    return bytes([kind]) + version + len(content).to_bytes(2, "big") + content


def message(kind: int, body: bytes, *, size: int | None = None) -> bytes:
    """One handshake message; ``size`` is the length that it claims."""
    return bytes([kind]) + (len(body) if size is None else size).to_bytes(3, "big") + body


def old_client_hello(version: bytes, *ciphers: bytes) -> bytes:
    """What a client of TLS 1.2 or older says first: no supported_versions."""
    suites = b"".join(ciphers or (b"\xc0\x2b", b"\xc0\x2f", b"\x00\x2f"))
    body = version + bytes(range(32)) + b"\0" + len(suites).to_bytes(2, "big") + suites + b"\x01\0"
    return plain_record(HANDSHAKE, message(CLIENT_HELLO, body), b"\x03\x01")


def old_server_hello(version: bytes) -> bytes:
    """What a server of TLS 1.2 or older answers."""
    body = version + bytes(range(32)) + b"\0" + b"\xc0\x2f" + b"\0"
    return plain_record(HANDSHAKE, message(2, body), version)


class KeyLog:
    """The secrets of one connection by their names (RFC 8446 7.1), as OpenSSL tells them. ``configure`` is for a
    :class:`tests.beds.mesh.Foreigner`, and leaves it one cipher suite, the one that :class:`Writer` knows."""

    def __init__(self) -> None:
        self.secrets: dict[str, bytes] = {}

    def configure(self, context: SSL.Context) -> None:
        context.set_tls13_ciphersuites(b"TLS_AES_128_GCM_SHA256")
        context.set_keylog_callback(self._note)

    def _note(self, _connection: Any, line: bytes) -> None:
        name, _, secret = line.decode().split()
        self.secrets[name] = bytes.fromhex(secret)


class Writer:
    """Encrypts records of one direction, behind those that OpenSSL ``sent`` under the same secret."""

    def __init__(self, secret: bytes, *, sent: int = 0) -> None:
        self._use(secret)
        self._number = sent

    def _use(self, secret: bytes) -> None:
        self._secret = secret
        self._key = AESGCM(_expand(secret, b"key", 16))
        self._iv = int.from_bytes(_expand(secret, b"iv", 12), "big")
        self._number = 0

    def record(self, kind: int, content: bytes) -> bytes:
        nonce = (self._iv ^ self._number).to_bytes(12, "big")
        self._number += 1
        header = bytes([DATA]) + b"\x03\x03" + (len(content) + 17).to_bytes(2, "big")
        return header + self._key.encrypt(nonce, content + bytes([kind]), header)

    def key_update(self, *, wants_reply: bool = False) -> bytes:
        """One KeyUpdate; what follows it is under the next key."""
        record = self.record(HANDSHAKE, message(KEY_UPDATE, bytes([wants_reply])))
        self._use(_expand(self._secret, b"traffic upd", 32))
        return record


def _expand(secret: bytes, label: bytes, size: int) -> bytes:
    """HKDF-Expand-Label with an empty context (RFC 8446 7.1)."""
    name = b"tls13 " + label
    info = size.to_bytes(2, "big") + bytes([len(name)]) + name + b"\0"
    return hmac.digest(secret, info + b"\x01", "sha256")[:size]  # RFC 5869 2.3: one block is enough
