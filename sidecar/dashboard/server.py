"""The dashboard's HTTP: the page's files, and the view of the mesh as server-sent events. Read-only.

:mod:`sidecar.observe.local` bounds connections, sizes and times, :mod:`sidecar.dashboard.guard` says who may ask. No request
is logged. The files are read once, and only those of :data:`FILES` are served: no path of a request becomes one on the disk.
"""

from __future__ import annotations

import secrets
from importlib.resources import files

from sidecar.dashboard import guard
from sidecar.dashboard.board import MOST_PAGES, Board
from sidecar.dashboard.guard import Guard
from sidecar.documents.address import Address
from sidecar.observe.local import LocalServer
from sidecar.observe.logs import Log
from sidecar.transport.http1 import Feed, Handler, Request, Response, error

FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/graph.js": ("graph.js", "text/javascript; charset=utf-8"),
    "/lists.js": ("lists.js", "text/javascript; charset=utf-8"),
    "/dom.js": ("dom.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
EVENTS = "/events"


class DashboardServer:
    """It listens from its construction on, which raises :class:`~sidecar.identity.reasons.UsageError` if it cannot."""

    def __init__(self, board: Board, log: Log, port: int = 0, token: str | None = None) -> None:
        """``port``: 0 is any that is free. ``token``: for a test."""
        self._board = board
        token = token or secrets.token_urlsafe(32)
        routes = {path: {"GET": self._guarded(self._file(*names), secret=False)} for path, names in FILES.items()}
        routes[EVENTS] = {"GET": self._guarded(self._events, secret=True)}
        self._server = LocalServer("sidecar dashboard", Address(guard.LISTENED, port), routes, log)
        number = self._server.sockets[0].getsockname()[1]
        self._guard = Guard(guard.hosts_of(number), token)
        self.url = f"http://{guard.LISTENED}:{number}/#{token}"

    async def run(self) -> None:
        """Answers until cancelled."""
        await self._server.run()

    def close(self) -> None:
        self._server.close()

    def _guarded(self, handler: Handler, *, secret: bool) -> Handler:
        async def answer(request: Request) -> Response:
            fault = self._guard.fault(request.headers, secret=secret)
            if fault is not None:
                return error(fault[0], "forbidden", fault[1], guard.HEADERS)
            return await handler(request)

        return answer

    def _file(self, name: str, content_type: str) -> Handler:
        body = (files("sidecar.dashboard") / "page" / name).read_bytes()

        async def answer(_request: Request) -> Response:
            return Response(200, body, content_type, guard.HEADERS)

        return answer

    async def _events(self, _request: Request) -> Response:
        if self._board.pages >= MOST_PAGES:
            return error(503, "overloaded", f"{MOST_PAGES} pages are open already: close one", guard.HEADERS)
        return Feed(200, content_type="text/event-stream", headers=guard.HEADERS, parts=self._board.events)
