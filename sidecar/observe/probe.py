"""A client of a running sidecar's admin port. I/O with the standard library's sockets only. What answers there may be
something else, so its answer is bounded and, before it is printed, escaped.

A health check runs every few seconds beside every service for as long as the service lives. So the imports of this module
and of ``__main__`` are what the mesh costs at rest: there is no command line, no file and no parser here.
"""

from __future__ import annotations

import socket
import sys
import time

LISTEN = "SIDECAR_ADMIN_LISTEN"
"""The environment variable for ``admin: {listen: …}``. The image sets it: commands in the container need no file name."""

SECONDS = 5.0
MAX_ANSWER_BYTES = 4 * 1024 * 1024


def ask(listen: str, target: str, sent: bytes | None = None, seconds: float = SECONDS) -> tuple[int, bytes]:
    """``GET target`` of the admin port at ``listen`` (``127.0.0.1:15000``, ``unix:/…``), or POST with the body ``sent``.
    Returns the status and the body.

    Raises :class:`OSError` if no complete answer comes within ``seconds``, and :class:`ValueError` if the answer is not
    HTTP or longer than :data:`MAX_ANSWER_BYTES`, or ``listen`` is not an address.
    """
    until = time.monotonic() + seconds
    method, length = ("GET", "") if sent is None else ("POST", f"Content-Length: {len(sent)}\r\n")
    head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n{length}Connection: close\r\n\r\n"
    answer = bytearray()
    with _connect(listen) as sock:
        sock.sendall(head.encode("ascii") + (sent or b""))
        while more := _receive(sock, until, seconds):
            answer += more
            if len(answer) > MAX_ANSWER_BYTES:
                raise ValueError(f"what answers there does not stop after {MAX_ANSWER_BYTES >> 20} MiB")
    first, blank, body = bytes(answer).partition(b"\r\n\r\n")
    version, _, rest = first.partition(b" ")
    if not blank or not version.startswith(b"HTTP/1.") or not rest[:3].isdigit():
        raise ValueError("what answers there is not a sidecar")
    return int(rest[:3]), body


def health(listen: str) -> int:
    """Prints ``well`` on stdout, or on stderr why the sidecar is not; returns the exit code, 0 or 1."""
    try:
        status, body = ask(listen, "/healthz")
    except (OSError, ValueError) as error:
        print(describe_failure(listen, error), file=sys.stderr)
        return 1
    if status == 200:
        print("well")
        return 0
    import json  # only a sidecar that is not well needs these

    from sidecar.documents.printable import printable

    try:
        print("not well: " + printable("; ".join(json.loads(body)["unwell"])), file=sys.stderr)
    except (ValueError, LookupError, TypeError, RecursionError):
        print(f"not well: {listen} answers with status {status}", file=sys.stderr)
    return 1


def describe_failure(listen: str, error: Exception) -> str:
    """The error message for an :func:`ask` that failed."""
    why = getattr(error, "strerror", None) or error
    return f"error: no sidecar answers at {listen}: {why}; is it running, and is this the address of its `admin:`?"


def _receive(sock: socket.socket, until: float, seconds: float) -> bytes:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError(f"no complete answer within {seconds:g} s")
    sock.settimeout(left)
    return sock.recv(65536)


def _connect(listen: str) -> socket.socket:
    kind, _, path = listen.partition("unix:")
    if path and not kind:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(SECONDS)
            sock.connect(path)
        except BaseException:
            sock.close()
            raise
        return sock
    host, _, port = listen.rpartition(":")
    if not port.isdecimal():
        raise ValueError("the address is neither host:port nor unix:/…")
    return socket.create_connection((host.strip("[]"), int(port)), SECONDS)
