"""Looking at a mesh for long: asks a CA's admin socket for all that it shows, again and again. I/O, with blocking sockets.

How this works. One connection is kept, and one question answers everything (``/mesh`` of :mod:`certs.service.admin`): what
is left of the cost at the CA is making that answer. Who looks is a process of its own, or a thread, that does nothing else.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SOCKET = "admin.sock"
MESH_PATH = "/mesh"

SECONDS = 5.0
"""From one look to the next: sidecars report as often."""

ANSWER_SECONDS = 5.0
MAX_ANSWER_BYTES = 8 << 20
"""All reports that a CA keeps are 3 MiB."""


class Looker:
    """``where``: the CA's directory."""

    def __init__(self, where: Path) -> None:
        self._path = str((where / SOCKET).absolute())
        self._connection: _Unix | None = None

    def look(self) -> dict[str, Any]:
        """What the CA shows now. Raises :class:`OSError` if no CA answers, and :class:`ValueError` if what answers is
        none."""
        try:
            if self._connection is not None:
                with contextlib.suppress(ConnectionError, http.client.RemoteDisconnected):
                    return self._ask()
                self.close()  # the CA closes what is kept after a while, or was restarted
            return self._ask()
        except http.client.HTTPException as error:
            self.close()
            raise OSError(f"{type(error).__name__}: {error}") from error
        except (OSError, ValueError, RecursionError) as error:
            self.close()
            if isinstance(error, OSError):
                raise
            raise ValueError(str(error) or "what answers there is no CA") from error

    def look_or_say(self, where: Path) -> dict[str, Any]:
        """The same; ``{"error": …}`` if there is none. ``where``: as people name the directory."""
        try:
            return self.look()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            return {"error": f"{where / SOCKET}: no CA answers there ({why}): is `certs serve {where}` running?"}

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self) -> dict[str, Any]:
        if self._connection is None:
            self._connection = _Unix(self._path)
        self._connection.request("GET", MESH_PATH, headers={"Host": "localhost"})
        answer = self._connection.getresponse()
        body = answer.read(MAX_ANSWER_BYTES + 1)
        if answer.status != 200 or len(body) > MAX_ANSWER_BYTES:
            raise ValueError(f"what answers there is no CA of this version (status {answer.status})")
        found = json.loads(body)
        if not isinstance(found, dict) or not isinstance(found.get("reports"), list):
            raise ValueError("what answers there is no CA")  # noqa: TRY004
        return found


def looks(where: Path, seconds: float, pause: Callable[[float], object]) -> Iterator[dict[str, Any]]:
    """What the CA of a directory shows, again and again; ``{"error": …}`` each time that none answers. ``pause``: waits."""
    looker = Looker(where)
    try:
        while True:
            yield looker.look_or_say(where)
            pause(seconds)
    finally:
        looker.close()


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ANSWER_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(self.timeout)
            self.sock.connect(self._path)
        except BaseException:
            self.close()
            raise
