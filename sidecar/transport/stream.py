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


class SecureStream:
    """An endpoint whose handshake is done, and its socket, which it owns."""

    def __init__(self, sock: socket.socket, channel: TlsChannel) -> None:
        self._sock = sock
        self.channel = channel

    async def receive_some(self) -> bytes:
        """The next decrypted bytes; b"" at the peer's close_notify."""
        silent = 0
        try:
            while not (data := self.channel.read_some(_READ_BYTES)):
                if data is None:
                    return b""
                received = await sockets.receive(self._sock, _READ_BYTES)
                if not received:
                    raise BrokenStreamError("the connection was cut: it ended without a TLS close_notify")
                silent += len(received)
                if silent > MAX_SILENT_CIPHERTEXT:
                    raise BrokenStreamError(f"{silent} bytes of TLS records came without any data")
                self.channel.feed_bytes(received)
        except (ChannelError, OSError) as error:
            raise BrokenStreamError(f"the connection was cut: {error}") from error
        return data

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
