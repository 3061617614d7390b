"""A TLS channel over a socket as a plain stream, for connections outside the relay: the CA's HTTP, at both ends.

The caller sets the deadlines. Every fault of the connection is raised as :class:`BrokenStreamError`.
"""

from __future__ import annotations

import socket

import trio

from sidecar.relay.duplex import MAX_DATALESS_RECORDS, MAX_SILENT_CIPHERTEXT, ChannelError
from sidecar.transport import sockets
from sidecar.transport.tls import TlsChannel

_READ_BYTES = 16 * 1024
_SEND_BYTES = 64 * 1024
"""How much is encrypted at once: what a connection whose peer does not read keeps in memory."""


class BrokenStreamError(Exception):
    """The connection ended without a close_notify, or carried something that is not valid TLS."""


class CutStreamError(BrokenStreamError):
    """The connection ended without a close_notify: an attacker may have cut it (RFC 8446 6.1)."""


class SilentStreamError(BrokenStreamError):
    """Too much ciphertext came without any data, such as a flood of KeyUpdates."""


async def read_data(sock: socket.socket, channel: TlsChannel, limit: int) -> bytes | None:
    """The next decrypted bytes, at least one and at most ``limit``; None at the peer's close_notify.

    Reads no byte of data beyond them, since what follows may belong to the app. Raises :class:`CutStreamError`,
    :class:`SilentStreamError`, :class:`~sidecar.relay.duplex.ChannelError` and OSError.
    """
    silent = 0
    while (data := channel.read_some(limit)) == b"":
        if channel.dataless > MAX_DATALESS_RECORDS:
            raise SilentStreamError(f"{channel.dataless} TLS records came without any data")
        if channel.unread:
            await trio.lowlevel.checkpoint()  # others have their turn
            continue
        received = await sockets.receive(sock, _READ_BYTES)
        if not received:
            raise CutStreamError("the connection was cut: it ended without a TLS close_notify")
        silent += len(received)
        if silent > MAX_SILENT_CIPHERTEXT:
            raise SilentStreamError(f"{silent} bytes of TLS records came without any data")
        channel.feed_bytes(received)
    return data


class SecureStream:
    """A channel whose handshake is done, with its socket, which this object owns."""

    def __init__(self, sock: socket.socket, channel: TlsChannel) -> None:
        self._sock = sock
        self.channel = channel

    async def receive_some(self) -> bytes:
        """The next decrypted bytes; b"" at the peer's close_notify. Raises :class:`BrokenStreamError`."""
        try:
            return await read_data(self._sock, self.channel, _READ_BYTES) or b""
        except (ChannelError, OSError) as error:
            raise BrokenStreamError(f"the connection was cut: {error}") from error

    async def send_all(self, data: bytes) -> None:
        """Sends all of ``data``. Raises :class:`BrokenStreamError`."""
        rest = memoryview(data)
        try:
            while rest:
                self.channel.write_bytes(bytes(rest[:_SEND_BYTES]))
                await sockets.send_all(self._sock, self.channel.take_all())
                rest = rest[_SEND_BYTES:]
        except (ChannelError, OSError) as error:
            raise BrokenStreamError(f"the connection was cut: {error}") from error

    def abandon(self) -> None:
        """Closes at once, with a reset."""
        sockets.hard_close(self._sock)

    async def close(self) -> None:
        """Sends close_notify, then closes when the peer has read what was sent last, or after a second of silence."""
        try:
            self.channel.close()
            await sockets.send_all(self._sock, self.channel.take_all())
            await sockets.linger(self._sock)
        except OSError:
            return  # the connection is gone already
        finally:
            sockets.hard_close(self._sock)
