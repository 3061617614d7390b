"""A TLS endpoint over a socket as a plain stream, for what is no relay: the CA's HTTP, at both ends.

The caller sets the deadlines. All that goes wrong with the connection is a :class:`BrokenStreamError`.
"""

from __future__ import annotations

import socket

from sidecar.relay.duplex import MAX_SILENT_CIPHERTEXT, ChannelError
from sidecar.transport import sockets
from sidecar.transport.tls import TlsChannel

_READ_BYTES = 16 * 1024


class BrokenStreamError(Exception):
    """The connection ended otherwise than by a close_notify, or something in it was no TLS."""


class CutStreamError(BrokenStreamError):
    """The connection's end came without a close_notify: somebody may have cut it."""


class SilentStreamError(BrokenStreamError):
    """Ciphertext came and came without any data: a flood of KeyUpdates, say."""


async def read_data(sock: socket.socket, channel: TlsChannel, limit: int) -> bytes | None:
    """The next decrypted bytes, at least one and at most ``limit``; None at the peer's close_notify.

    Reads not one byte of data more than that: what follows may be somebody else's. Raises :class:`CutStreamError`,
    :class:`SilentStreamError`, :class:`~sidecar.relay.duplex.ChannelError` and OSError.
    """
    silent = 0
    while (data := channel.read_some(limit)) == b"":
        received = await sockets.receive(sock, _READ_BYTES)
        if not received:
            raise CutStreamError("the connection was cut: it ended without a TLS close_notify")
        silent += len(received)
        if silent > MAX_SILENT_CIPHERTEXT:
            raise SilentStreamError(f"{silent} bytes of TLS records came without any data")
        channel.feed_bytes(received)
    return data


class SecureStream:
    """An endpoint whose handshake is done, and its socket, which it owns."""

    def __init__(self, sock: socket.socket, channel: TlsChannel) -> None:
        self._sock = sock
        self.channel = channel

    async def receive_some(self) -> bytes:
        """The next decrypted bytes; b"" at the peer's close_notify."""
        try:
            return await read_data(self._sock, self.channel, _READ_BYTES) or b""
        except (ChannelError, OSError) as error:
            raise BrokenStreamError(f"the connection was cut: {error}") from error

    async def send_all(self, data: bytes) -> None:
        """Sends everything."""
        try:
            self.channel.write_bytes(data)
            await sockets.send_all(self._sock, self.channel.take_all())
        except (ChannelError, OSError) as error:
            raise BrokenStreamError(f"the connection was cut: {error}") from error

    async def close(self) -> None:
        """Says close_notify, and closes once the peer has had what we said last, or a second."""
        try:
            self.channel.close()
            await sockets.send_all(self._sock, self.channel.take_all())
            await sockets.linger(self._sock)
        except OSError:
            return  # it is gone already
        finally:
            sockets.hard_close(self._sock)
