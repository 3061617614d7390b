"""The newest view of the mesh, for all who wait for it. I/O: it waits.

Each page is told what has changed since what it was told before, however slow it is: what came between is never sent.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import trio

from sidecar.dashboard.changes import changes

STILL_SECONDS = 5.0
"""After so long without news a page gets a sign, by which it knows that we are there, and we notice that it is gone."""

MOST_PAGES = 16
STILL = b": still here\n\n"


class Board:
    """``forgets``: nothing is kept while nobody looks, since nobody makes it anew meanwhile."""

    def __init__(self, *, forgets: bool = False) -> None:
        self.view: dict[str, Any] = {}
        self._forgets = forgets
        self.pages = 0
        self._news = trio.Event()

    def put(self, view: dict[str, Any]) -> None:
        self.view = view
        self._news.set()
        self._news = trio.Event()

    def is_looked_at(self) -> bool:
        return self.pages > 0

    async def events(self) -> AsyncGenerator[bytes, None]:
        """What one page is sent (server-sent events): ``view``, then each ``change``."""
        self.pages += 1
        try:
            sent = self.view
            yield event("view", sent)
            while True:
                if self.view is sent:
                    with trio.move_on_after(STILL_SECONDS):
                        await self._news.wait()
                view = self.view
                change = changes(sent, view)
                sent = view
                yield event("change", change) if change else STILL
        finally:
            self.pages -= 1
            if self._forgets and not self.pages:
                self.view = {}


def event(name: str, data: Any) -> bytes:
    """One event. JSON in ASCII has no line break, so no text can begin a line of its own."""
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
