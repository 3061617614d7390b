"""One dashboard from its first look to Ctrl-C: what a source tells becomes views, and the server shows them. Wiring."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from importlib.util import find_spec
from typing import Any

import trio

from sidecar.dashboard.board import Board
from sidecar.dashboard.server import DashboardServer
from sidecar.dashboard.sources import Documents
from sidecar.dashboard.view import View, Watching
from sidecar.host.clock import utc_now
from sidecar.identity.reasons import UsageError
from sidecar.observe.logs import Log

Task = Callable[[], Awaitable[object]]


def require_layout() -> None:
    """Raises :class:`UsageError` if the package is missing that finds the places of what is drawn."""
    if find_spec("fast_sugiyama") is None:
        raise UsageError(
            "the dashboard needs one more package, which places what it draws: install mtls-sidecar[dashboard], or, where "
            "pipx installed it, `pipx inject mtls-sidecar fast-sugiyama`"
        )


def viewed(watching: Watching, document: Mapping[str, Any], log: Log) -> View:
    """The view of a document. A bug here costs a look and not the dashboard, or the mesh that shares its process."""
    try:
        return watching.take(document, utc_now())
    except Exception as error:
        log.bug("dashboard_failed", error)
        return watching.failed()


async def follow(documents: Documents, watching: Watching, board: Board, log: Log) -> None:
    """Shows what a source tells, until it ends."""
    async with aclosing(documents):
        async for document in documents:
            view = partial(viewed, watching, document, log)
            try:
                # In a thread: with many services it takes some milliseconds, and other work may share this loop.
                board.put(await trio.to_thread.run_sync(view))
            except RuntimeError:  # the system has no thread left
                board.put(view())


def beside(looks: Callable[[Callable[[], bool]], Documents], where: str, log: Log, port: int) -> tuple[str, list[Task]]:
    """The page's address, and what is to run so that it is answered. It listens already. ``looks``: a source in this
    process, which looks only while it is told that somebody wants it. Raises :class:`UsageError` if the port is taken."""
    board = Board(forgets=True)
    server = DashboardServer(board, log, port)
    return server.url, [server.run, partial(follow, looks(board.is_looked_at), Watching(where), board, log)]


async def run(
    documents: Documents,
    where: str,
    log: Log,
    port: int,
    say: Callable[[str], object],
    not_seen: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Serves until SIGINT or SIGTERM. ``say``: is called with the page's address. ``not_seen``: by service, the ways past
    its sidecar. Raises :class:`UsageError` if the first look finds no CA, or the port is taken."""
    async with aclosing(documents):
        first = await anext(documents)
        if "error" in first:
            raise UsageError(str(first["error"]))
        board, watching = Board(), Watching(where, not_seen)
        server = DashboardServer(board, log, port)
        try:
            board.put(viewed(watching, first, log))
            say(server.url)
            async with trio.open_nursery() as nursery:
                with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                    nursery.start_soon(_end, signals, nursery.cancel_scope)
                    nursery.start_soon(server.run)
                    await follow(documents, watching, board, log)
        finally:
            server.close()


async def _end(signals: AsyncIterator[int], everything: trio.CancelScope) -> None:
    async for _ in signals:
        everything.cancel()
