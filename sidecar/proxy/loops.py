"""Recognises a caller of a plaintext listener that is a sidecar itself, whose ``peers`` name the wrong port: a loop, often.

How this works. If the ``peers`` of two sidecars name each other's plaintext listener, each connection makes another one at
the other sidecar, without end: hundreds a second. A sidecar begins with a ClientHello that offers ``mesh/2/…`` or
``mesh/1/…``; apps do not. So the first bytes are examined, without reading them, after a peer was reached and before
anything is sent to it.

An app whose server speaks first sends nothing, and is not delayed: normally nothing is waited for. The next connection of a
loop is therefore made before the first one is recognised. From then on, and for :data:`SUSPECT_SECONDS`, the listener gives
its callers :data:`FIRST_BYTES_SECONDS` to send something before it dials: a sidecar sends its ClientHello at once, so the
loop ends there.
"""

from __future__ import annotations

import socket

import trio

from sidecar.identity.reasons import Reason, Refused
from sidecar.transport import sockets
from sidecar.transport.client_hello import offered_protocols
from sidecar.transport.tls import ALPN_PREFIXES

SUSPECT_SECONDS = 10.0
FIRST_BYTES_SECONDS = 0.25

_HELLO_BYTES = 2048
_OURS = tuple(prefix.encode() for prefix in ALPN_PREFIXES)


class LoopGuard:
    """The guard of one plaintext listener. ``upstream``: the listener's target, for messages."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._suspect_until = 0.0

    @property
    def suspects(self) -> bool:
        """Whether a sidecar has called lately."""
        return trio.current_time() < self._suspect_until

    async def before_dialling(self, sock: socket.socket) -> None:
        """Waits for a caller's first bytes, where the guard ``suspects`` one. Raises :class:`Refused`."""
        with trio.move_on_after(FIRST_BYTES_SECONDS):
            await trio.lowlevel.wait_readable(sock)
        self.check(sock)

    def check(self, sock: socket.socket) -> None:
        """Raises :class:`Refused` if the caller is a sidecar, by what it has sent so far, or is gone."""
        try:
            protocols = offered_protocols(sockets.peek(sock, _HELLO_BYTES))
        except OSError as error:
            raise Refused(
                Reason.CLIENT_RESET, f"lost the connection while it looked for a peer: {error.strerror or error}"
            ) from error
        for protocol in protocols:
            if protocol.startswith(_OURS):
                self._suspect_until = trio.current_time() + SUSPECT_SECONDS
                raise Refused(
                    Reason.CONNECT_FAILED,
                    f"would loop: its caller is a sidecar, which begins with mutual TLS, but this listener takes its own "
                    f"app's plaintext for {self._upstream}; correct the `peers` of that sidecar: they must name an "
                    "`inbound` listener",
                )
