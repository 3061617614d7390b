"""The way from web's sidecar to the CA, which can be turned to somebody else: what a poisoned name or route does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import trio

Where = tuple[str, int]


class Wire:
    """Carries bytes to :attr:`target`, as a listener of its own. ``change``: what becomes of them on the way."""

    def __init__(self, target: Where) -> None:
        self.target = target
        self.change: Callable[[bytes], bytes] = bytes
        self._carried: set[trio.CancelScope] = set()

    async def serve(self, port: int, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED) -> None:
        await trio.serve_tcp(self._carry, port, host="127.0.0.1", task_status=task_status)

    def turn(self, target: Where) -> None:
        """New connections lead there; those that lead elsewhere are cut."""
        self.target = target
        for scope in list(self._carried):
            scope.cancel()

    async def _carry(self, client: trio.SocketStream) -> None:
        with trio.CancelScope() as scope:
            self._carried.add(scope)
            try:
                async with await trio.open_tcp_stream(*self.target) as server, trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, client, server)
                    nursery.start_soon(self._pump, server, client)
            except* OSError:
                pass  # nobody is there
            finally:
                self._carried.discard(scope)

    async def _pump(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        with contextlib.suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in source:
                await sink.send_all(self.change(bytes(data)))
            await sink.send_eof()
            return
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(sink)
