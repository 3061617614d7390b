"""The port ``mesh-admin`` of every service: its sidecar's own health and metrics, for callers whom a rule lets in.

How it works. It is an inbound port like any other, with the same handshake, policy, verdict, record and end. Only its app is
not another process: a connection to it is a pair of sockets, at whose other end this process answers HTTP
(:mod:`sidecar.observe.admin` says what). Nothing there changes anything, and nothing there names an address or a person.

Fails closed: at most :data:`MAX_CONNECTIONS` at a time, so that a scraper which opens them without end takes the memory of
these alone; a connection without a request ends after a few seconds; and before :meth:`OwnApp.run` none is taken.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from sidecar.identity.reasons import Reason, Refused
from sidecar.observe.local import FIRST_REQUEST_SECONDS, PlainStream
from sidecar.observe.logs import Log
from sidecar.relay.strand import Steps
from sidecar.transport import sockets
from sidecar.transport.dial import Endpoint
from sidecar.transport.http1 import Peer, Routes, converse
from sidecar.transport.stream import BrokenStreamError

MAX_CONNECTIONS = 16


class OwnApp:
    """This process, as the app of a port: what :class:`sidecar.transport.dial.Upstream` is for another process."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._open = 0
        self._answering: tuple[trio.Nursery, Routes] | None = None
        self._endpoint = Endpoint(socket.AF_UNIX, ("", 0))
        self._endpoint.text = "this sidecar"  # in the log

    async def run(self, routes: Routes) -> None:
        """Answers until cancelled."""
        async with trio.open_nursery() as nursery:
            self._answering = nursery, routes
            try:
                await trio.sleep_forever()
            finally:
                self._answering = None

    def reach_only(
        self, until: float, failures: dict[Endpoint, Refused], waits: Callable[[], Steps[None]]
    ) -> Steps[tuple[socket.socket, Endpoint] | None]:
        """A connection, at once. Raises :class:`Refused`."""
        del until, failures, waits  # nothing is waited for
        if self._answering is None:
            raise Refused(Reason.CONNECT_FAILED, "does not answer on mesh-admin yet")
        if self._open >= MAX_CONNECTIONS:
            raise Refused(Reason.OVERLOADED, f"has reached its limit of {MAX_CONNECTIONS} connections to mesh-admin")
        nursery, routes = self._answering
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:  # no descriptor is left
            raise Refused(
                Reason.CONNECT_FAILED, f"cannot answer on mesh-admin now: {error.strerror or error}"
            ) from error
        ours.setblocking(False)
        self._open += 1
        nursery.start_soon(self._answer, theirs, routes)
        return ours, self._endpoint
        yield  # a generator, as others have to wait

    async def reach(self, seconds: float, failures: dict[Endpoint, Refused]) -> tuple[socket.socket, Endpoint] | None:
        """Not asked: :meth:`reach_only` is the answer, or raises."""
        del seconds, failures
        raise Refused(Reason.CONNECT_FAILED, "has no other mesh-admin")

    @contextmanager
    def using(self, endpoint: Endpoint) -> Iterator[None]:
        """Nothing to count: there is one."""
        del endpoint
        yield

    async def _answer(self, sock: socket.socket, routes: Routes) -> None:
        stream = PlainStream(sock)
        try:
            stream.scope.deadline = trio.current_time() + FIRST_REQUEST_SECONDS
            with stream.scope:
                await converse(stream, Peer("", None, ()), routes, lambda _path, _status: None)
            await sockets.linger(sock)  # a pair of sockets knows no half-close: a close now would be a reset
        except (BrokenStreamError, OSError):
            pass  # the caller is gone
        except Exception as fault:  # a bug in one answer must not end the sidecar
            self._log.bug("internal_error", fault)
        finally:
            self._open -= 1
            stream.close()
