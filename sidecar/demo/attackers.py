"""The attacks on the wire: a client with a stolen or forged key, and a tap that forwards, records and, on request, alters.

No root privileges are needed: the caller is configured to connect through the tap.
"""

from __future__ import annotations

import socket
import ssl  # noqa: TID251 (the attacker's TLS, not ours)
from functools import partial
from pathlib import Path

import trio


class Tap:
    """Listens at ``port``, forwards to ``target`` and records every byte in ``seen``. After ``flip_after`` bytes from the
    target, it flips one bit of the next piece."""

    def __init__(self, port: int, target: int) -> None:
        self.port, self.target = port, target
        self.seen = bytearray()
        self.flip_after: int | None = None
        self.flipped = False

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        serve = partial(trio.serve_tcp, self._forward, self.port, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            await nursery.start(serve)
            task_status.started()

    async def _forward(self, caller: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", self.target) as callee, trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, caller, callee, False)
            nursery.start_soon(self._pump, callee, caller, True)

    async def _pump(self, source: trio.SocketStream, sink: trio.SocketStream, may_flip: bool) -> None:
        count = 0
        try:
            async for data in source:
                self.seen += data
                count += len(data)
                piece = bytearray(data)
                if may_flip and not self.flipped and self.flip_after is not None and count > self.flip_after:
                    piece[len(piece) // 2] ^= 1
                    self.flipped = True
                await sink.send_all(piece)
            await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await sink.aclose()  # one end has closed, so the other is closed too


def stranger(port: int, keys: Path) -> bytes | None:
    """Calls a sidecar with the key and certificate in ``keys``, without verifying it. Returns the answer or None."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.load_cert_chain(keys / "certificate.pem", keys / "key.pem")
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as plain, context.wrap_socket(plain) as sock:
            sock.sendall(b"GET /visits HTTP/1.0\r\n\r\n")
            return sock.recv(4096) or None
    except OSError:
        return None
