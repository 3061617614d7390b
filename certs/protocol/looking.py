"""Looking at a mesh for long: what a CA's admin socket shows, line by line. I/O, with blocking sockets.

How this works. ``/follow`` (:mod:`certs.service.admin`) answers with a line of JSON that has everything, and goes on with
another each few seconds, when the CA is awake anyway: nothing is asked again, so a look costs the CA the making of its line.
The request is of HTTP/1.0, whose answer is lines and nothing else, until either end closes.

``python -m certs.protocol.looking DIRECTORY`` prints these lines, for the dashboard in a CA's container. Its imports are
what it costs there, so they are few.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

SOCKET = "admin.sock"
REPORTS_PATH = "/reports"
ALARMS_PATH = "/alarms"
FOLLOW_PATH = "/follow"

SECONDS = 5.0
"""From one look to the next, about: sidecars report as often. After a fault, until the CA is asked again."""

ANSWER_SECONDS = 5.0
MAX_ANSWER_BYTES = 8 << 20
"""All reports that a CA keeps are 3 MiB."""

_REQUEST = f"GET {FOLLOW_PATH} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode()
_MAX_HEAD_BYTES = 8 << 10
_BLOCK = 1 << 16

Wait = Callable[[list[socket.socket], float], object]
"""Waits until one of them can be read, for at most so many seconds."""


def _wait(socks: list[socket.socket], seconds: float) -> None:
    _readable(socks, seconds)


def _readable(files: Sequence[int | socket.socket], seconds: float) -> set[int]:
    """Waits; returns the descriptors of those that can be read. Not by select(2): the process that shows a mesh may hold a
    thousand connections, and descriptors above 1,023 are beyond it."""
    poller = select.poll()
    for one in files:
        poller.register(one, select.POLLIN)
    return {descriptor for descriptor, _ in poller.poll(seconds * 1000)}


class Looker:
    """``where``: the CA's directory. ``wait``: may raise, to end a look."""

    def __init__(self, where: Path, wait: Wait = _wait) -> None:
        self._path = str((where / SOCKET).absolute())
        self._wait = wait
        self._sock: socket.socket | None = None
        self._held = bytearray()

    def look(self) -> dict[str, Any]:
        """What the CA shows next: at once at first, and then about each :data:`SECONDS`. Raises :class:`OSError` if no CA
        answers, and :class:`ValueError` if what answers is none."""
        try:
            if self._sock is None:
                self._begin()
            return _parsed(self._until(b"\n", MAX_ANSWER_BYTES))
        except BaseException:
            self.close()
            raise

    def look_or_say(self, where: Path) -> dict[str, Any]:
        """The same; ``{"error": …}`` if there is none. ``where``: as people name the directory."""
        try:
            return self.look()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            return {"error": f"{where / SOCKET}: no CA answers there ({why}): is `certs serve {where}` running?"}

    def close(self) -> None:
        """A look that goes on in another thread ends."""
        sock, self._sock = self._sock, None
        self._held.clear()
        if sock is not None:
            with contextlib.suppress(OSError):  # it was not connected
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _begin(self) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(ANSWER_SECONDS)
        self._sock.connect(self._path)
        self._sock.sendall(_REQUEST)
        status = self._until(b"\r\n\r\n", _MAX_HEAD_BYTES).partition(b" ")[2][:3]
        if status != b"200":
            raise ValueError("what answers there is no CA of this version")

    def _until(self, end: bytes, most: int) -> bytes:
        """What comes up to an end, with it."""
        while (at := self._held.find(end)) < 0:
            if len(self._held) > most:
                raise ValueError("what answers there does not end its line")
            sock = self._sock
            if sock is None:
                raise ConnectionError("the look was ended")
            self._wait([sock], SECONDS)
            block = sock.recv(_BLOCK)
            if not block:
                raise ConnectionError("it closed the connection")
            self._held += block
        found = bytes(self._held[: at + len(end)])
        del self._held[: at + len(end)]
        return found


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("reports"), list):
        raise ValueError("what answers there is no CA")  # noqa: TRY004
    return found


def looks(where: Path, wait: Wait = _wait) -> Iterator[dict[str, Any]]:
    """What the CA of a directory shows, again and again; ``{"error": …}`` each time that none answers."""
    looker = Looker(where, wait)
    try:
        while True:
            found = looker.look_or_say(where)
            yield found
            if "error" in found:
                wait([], SECONDS)
    finally:
        looker.close()


def while_read(stdin: int = 0) -> Wait:
    """Waits, and raises :class:`KeyboardInterrupt` when stdin is a pipe and is closed: the program that started this one in
    a container has ended, and nothing else tells this one."""
    try:
        mode = os.fstat(stdin).st_mode
        piped = [stdin] if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else []
    except OSError:
        piped = []  # there is no stdin

    def wait(socks: list[socket.socket], seconds: float) -> None:
        if stdin in _readable([*piped, *socks], seconds) and not os.read(stdin, 4096):
            raise KeyboardInterrupt

    return wait


def main() -> None:
    try:
        for found in looks(Path(sys.argv[1]), while_read()):
            sys.stdout.write(f"{json.dumps(found)}\n")
            sys.stdout.flush()
    except (KeyboardInterrupt, BrokenPipeError):
        return


if __name__ == "__main__":
    main()
