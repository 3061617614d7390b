"""HTTP for the users and programs of this machine alone: on loopback, or on a Unix socket. What it answers is the caller's.

How this works. A web page in a local browser can reach loopback, also under a name that resolves to 127.0.0.1 (DNS
rebinding). Its requests carry the page's host name, so any other ``Host`` (RFC 9110 7.2) than ``localhost`` or an address
of loopback gets a 403. A request of HTTP/1.0 may have none: no browser sends such. On a Unix socket the kernel reports the
user who connects (SO_PEERCRED, unix(7)), and other users are cut.

A health check always gets in. At :data:`MAX_CONNECTIONS`, or without a free descriptor, the oldest connection that waits for
its client's request is closed to make room; if none does, the oldest of those whose client does not take its answer.
"""

from __future__ import annotations

import ipaddress
import math
import os
import socket
import struct
from pathlib import Path

import trio

from sidecar.documents.address import Address
from sidecar.host.follow import ReportOnce
from sidecar.identity.reasons import UsageError
from sidecar.observe.logs import Log
from sidecar.transport import sockets
from sidecar.transport.accepting import accept_all
from sidecar.transport.http1 import Closing, Handler, Peer, Request, Response, Routes, converse, error
from sidecar.transport.stream import BrokenStreamError

MAX_CONNECTIONS = 64
FIRST_REQUEST_SECONDS = 5.0
"""Within this time a connection's first request must be complete."""


class LocalServer:
    """Answers ``routes``. It listens from its construction on, which raises :class:`UsageError` if it cannot.
    ``where``: what errors call the address."""

    def __init__(self, where: str, listen: Address | Path, routes: Routes, log: Log) -> None:
        self._routes = {
            path: {method: self._require_local_host(handler) for method, handler in methods.items()}
            for path, methods in routes.items()
        }
        self._log = log
        self._faults = ReportOnce[str](lambda event, fault: log.warning(event, message=f"{where}: {fault}"))
        self._path = listen if isinstance(listen, Path) else None
        if isinstance(listen, Path):
            self.sockets = [listen_unix(where, listen)]
        else:
            self.sockets = sockets.listen_all(where, listen.host, listen.port)
        self._open: dict[PlainStream, None] = {}  # in order of arrival

    @property
    def address(self) -> str:
        if self._path is not None:
            return str(self._path)
        return ", ".join(sockets.text(sock.getsockname()) for sock in self.sockets)

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    async def run(self) -> None:
        """Answers requests until cancelled, then closes the listener."""
        try:
            async with trio.open_nursery() as connections, trio.open_nursery() as accepting:
                for listener in self.sockets:
                    accepting.start_soon(
                        accept_all,
                        listener,
                        lambda sock: self._admit(connections, sock),
                        lambda fault: self._faults.report("accept_paused", fault),
                        self._close_oldest,
                    )
        finally:
            self.close()

    def _admit(self, connections: trio.Nursery, sock: socket.socket) -> None:
        if not self._is_permitted(sock):
            sock.close()
            return
        if len(self._open) >= MAX_CONNECTIONS:
            self._close_oldest()
        stream = PlainStream(sock)
        self._open[stream] = None
        connections.start_soon(self._connection, stream)

    def _close_oldest(self) -> bool:
        """Makes room; returns whether there was a connection to close."""
        oldest = next((one for one in self._open if one.is_idle), None) or next(iter(self._open), None)
        if oldest is None:
            return False
        del self._open[oldest]
        oldest.scope.cancel()
        return True

    def _require_local_host(self, handler: Handler) -> Handler:
        async def answer(request: Request) -> Response:
            host = request.headers.get("host")
            if self._path is None and host is not None and not _is_loopback(host):
                return error(
                    403,
                    "forbidden",
                    "only requests for localhost are answered, and this one names another host",
                )
            return await handler(request)

        return answer

    def _is_permitted(self, sock: socket.socket) -> bool:
        """Whether the caller is our own user or root (Unix socket). The file's mode requires it too, but may be changed."""
        if self._path is None or not hasattr(socket, "SO_PEERCRED"):
            return True
        _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return uid in (0, os.geteuid())

    async def _connection(self, stream: PlainStream) -> None:
        try:
            stream.scope.deadline = trio.current_time() + FIRST_REQUEST_SECONDS
            with stream.scope:
                await converse(stream, Peer("", None, ()), self._routes, lambda _path, _status: None, Closing())
        except (BrokenStreamError, OSError):
            pass  # the client is gone
        except Exception as fault:  # a bug in one answer must not end the sidecar
            self._log.bug("internal_error", fault)
        finally:
            self._open.pop(stream, None)
            stream.close()


def listen_unix(where: str, path: Path) -> socket.socket:
    """A listening Unix socket that only its owner can open. A socket file without a listener is replaced. Raises
    :class:`UsageError`."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(str(path)) == 0:
                    raise UsageError(f"{where}: another process listens on {path}")
            path.unlink()
        before = os.umask(0o177)
        try:
            sock.bind(str(path))
        finally:
            os.umask(before)
        sock.listen(16)
        sock.setblocking(False)
    except OSError as fault:
        sock.close()
        raise UsageError(f"{where}: cannot listen on {path}: {fault.strerror or fault}") from fault
    except BaseException:
        sock.close()
        raise
    return sock


class PlainStream:
    """A plain socket as a :class:`~sidecar.transport.http1.Stream`. ``scope`` wraps its connection's task. ``is_idle``:
    whether no complete request is there to be answered."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self.scope = trio.CancelScope()
        self.is_idle = True
        self._has_received = False

    def close(self) -> None:
        self._sock.close()

    async def receive_some(self) -> bytes:
        self.is_idle = True
        first, self._has_received = not self._has_received, True
        try:
            return await sockets.receive(self._sock, 16 * 1024, first=first)
        except OSError as fault:
            raise BrokenStreamError(str(fault)) from fault

    async def send_all(self, data: bytes) -> None:
        self.is_idle = False
        self.scope.deadline = math.inf  # from now on the server's own times count
        try:
            await sockets.send_all(self._sock, data)
        except OSError as fault:
            raise BrokenStreamError(str(fault)) from fault


def _is_loopback(host: str) -> bool:
    """Whether a ``Host`` is ``localhost`` or an address of loopback, with a port or without."""
    name, colon, port = host.rpartition(":")
    name = (name if colon and port.isdigit() else host).lower()
    try:
        return name == "localhost" or ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
