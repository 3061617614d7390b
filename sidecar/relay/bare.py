"""The stream of a peer without TLS, in the place of a TLS channel: bytes are what they are. Pure, but for ``end``.

:class:`~sidecar.relay.duplex.Duplex` carries it like any other channel, with ``tolerate_missing_close_notify``: a FIN is the
peer's clean end. Our own end is a FIN as well. There is no message for it in the stream, so ``end`` sends it, when all that
comes before it was taken.
"""

from __future__ import annotations

from collections.abc import Callable

from sidecar.relay.duplex import Buffer


class BareChannel:
    """See :class:`sidecar.relay.duplex.Channel`. ``end``: ends our direction of the peer's connection; must not raise."""

    dataless = 0
    ended = quiet = False

    def __init__(self, end: Callable[[], object]) -> None:
        self._end: Callable[[], object] | None = end
        self._closed = False
        self._received, self._written = b"", b""

    @property
    def unread(self) -> bool:
        """See ``Channel``."""
        return bool(self._received)

    def feed(self, buffer: Buffer, size: int) -> None:
        """See ``Channel``."""
        self._received += buffer.view[:size]

    def read(self, buffer: Buffer) -> int:
        """See ``Channel``. Never -1: the end of the stream is the socket's."""
        piece, self._received = self._received[: buffer.size], self._received[buffer.size :]
        buffer.view[: len(piece)] = piece
        return len(piece)

    def write(self, buffer: Buffer, size: int) -> None:
        """See ``Channel``."""
        self._written += buffer.view[:size]

    def close(self) -> None:
        """Our direction ends behind what was written; the peer's continues."""
        self._closed = True

    def pending(self) -> int:
        """See ``Channel``."""
        return len(self._written)

    def take(self, buffer: Buffer) -> int:
        """See ``Channel``."""
        piece, self._written = self._written[: buffer.size], self._written[buffer.size :]
        buffer.view[: len(piece)] = piece
        if self._closed and not piece and self._end is not None:
            end, self._end = self._end, None
            end()
        return len(piece)

    def rest(self) -> None:
        """See ``Channel``: nothing is kept."""
