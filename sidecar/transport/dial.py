"""Connecting to upstreams: several addresses per target, names resolved in the background, fail-over.

How this works. An :class:`Upstream` is one target: an app behind an inbound port, or the sidecars of a service. Compose
scales a service by adding A records, so a :class:`Resolver` resolves every name again each :data:`REFRESH_SECONDS`. The last
good answer stays in use while a look-up fails.

:meth:`Upstream.endpoints` sorts the target's :class:`Endpoint` objects: those that did not fail first, then by live
connections, then by last use. An endpoint that failed is held back for a time that doubles with each failure in a row,
within :data:`BACKOFF_SECONDS`. It is still offered, last, so that it is tried when no other works. A connection to one of
our own listeners is refused, since it would loop.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count

import trio

from sidecar.documents.address import Address
from sidecar.identity.reasons import Reason, Refused
from sidecar.transport import sockets

REFRESH_SECONDS = 5.0
LOOKUP_SECONDS = 10.0
BACKOFF_SECONDS = (0.5, 30.0)
"""How long an endpoint is held back after its first failure, and at most."""

SocketAddress = tuple[str | int, ...]


class Endpoint:
    """One socket address of a target. ``live``: connections now. ``used``: when it was chosen last, as a serial number.
    ``failures``: how many in a row."""

    __slots__ = ("address", "aside_until", "failures", "family", "live", "used")

    def __init__(self, family: int, address: SocketAddress) -> None:
        self.family, self.address = family, address
        self.live = self.failures = self.used = 0
        self.aside_until = 0.0

    def __str__(self) -> str:
        return sockets.text(self.address)

    def failed(self) -> None:
        """Holds the endpoint back for a while: it could not be reached, or had another identity than expected.

        Failures while it is held back do not count: fifty connections that fail at the same moment are one failure.
        """
        now, (first, longest) = trio.current_time(), BACKOFF_SECONDS
        if now >= self.aside_until:
            self.aside_until = now + min(first * 2**self.failures, longest)
            self.failures = min(self.failures + 1, 16)

    def answered(self) -> None:
        """Ends the back-off: the endpoint works."""
        self.failures, self.aside_until = 0, 0.0


class Resolver:
    """Resolves names: at most one look-up in flight per name; the last good answer is kept."""

    def __init__(self) -> None:
        self._names: dict[str, _Name] = {}

    def name(self, host: str) -> _Name:
        """Registers a host. To be called before :meth:`run`."""
        return self._names.setdefault(host, _Name(host))

    async def run(self) -> None:
        """Resolves all names periodically until cancelled."""
        async with trio.open_nursery() as nursery:
            for name in self._names.values():
                nursery.start_soon(name.refresh)


class _Name:
    def __init__(self, host: str) -> None:
        self._host = host
        self.addresses: list[tuple[int, str]] = []
        self.error: str | None = None
        self.looked_up = trio.Event()
        ip = Address(host, 0).ip
        self._fixed = ip is not None
        if ip is not None:
            self.addresses = [(socket.AF_INET6 if ip.version == 6 else socket.AF_INET, str(ip))]

    async def refresh(self) -> None:
        while not self._fixed:
            with trio.move_on_after(LOOKUP_SECONDS) as deadline:
                try:
                    answers = await trio.socket.getaddrinfo(self._host, None, type=socket.SOCK_STREAM)
                    self.addresses = list(dict.fromkeys((int(family), str(a[0])) for family, _, _, _, a in answers))
                    self.error = None
                except OSError as error:
                    self.error = error.strerror or str(error)
            if deadline.cancelled_caught:
                self.error = f"no answer within {LOOKUP_SECONDS:g} s"
            self.looked_up.set()
            await trio.sleep(REFRESH_SECONDS if self.addresses else REFRESH_SECONDS / 5)


class Upstream:
    """The endpoints of one target. ``what``: its name in errors. ``listening``: our own listeners, which it must not be."""

    def __init__(
        self, what: str, addresses: Iterable[Address], resolver: Resolver, listening: Iterable[SocketAddress]
    ) -> None:
        self.what = what
        self._listening = listening
        self._named = [(resolver.name(address.host), address.port) for address in addresses]
        self._hosts = ", ".join(map(str, addresses))
        self._endpoints: dict[tuple[int, SocketAddress], Endpoint] = {}
        self._turns = count(1)

    async def endpoints(self) -> list[Endpoint]:
        """All endpoints, best first. Waits for the first look-ups; the caller sets the deadline. Raises :class:`Refused` if
        no name has an address."""
        for name, _ in self._named:
            if not name.addresses:
                await name.looked_up.wait()
        current = {(family, (host, port)): None for name, port in self._named for family, host in name.addresses}
        if not current:
            errors = "; ".join(sorted({name.error or "no address" for name, _ in self._named}))
            raise Refused(Reason.CONNECT_FAILED, f"cannot find {self.what}: {self._hosts}: {errors}")
        for gone in self._endpoints.keys() - current.keys():
            del self._endpoints[gone]
        for key in current:
            if key not in self._endpoints:
                self._endpoints[key] = Endpoint(*key)
        now = trio.current_time()
        best = sorted(
            self._endpoints.values(),
            key=lambda endpoint: (max(endpoint.aside_until - now, 0.0), endpoint.live, endpoint.used),
        )
        # It counts as used now, not when it is reached: otherwise all connections of one moment would choose the same one.
        best[0].used = next(self._turns)
        return best

    async def connect(self, endpoint: Endpoint, seconds: float) -> socket.socket:
        """Connects to one of the endpoints within ``seconds``. Raises :class:`Refused`."""
        return await connect(endpoint, self.what, seconds, self._listening)

    @contextmanager
    def using(self, endpoint: Endpoint) -> Iterator[None]:
        """Counts a live connection to an endpoint."""
        endpoint.live += 1
        endpoint.used = next(self._turns)
        try:
            yield
        finally:
            endpoint.live -= 1


async def connect(endpoint: Endpoint, what: str, seconds: float, listening: Iterable[SocketAddress]) -> socket.socket:
    """Connects to an endpoint within ``seconds``, but never to this sidecar itself: ``listening`` are the addresses of our
    own listeners. Raises :class:`Refused`."""
    try:
        with trio.fail_after(seconds):
            sock = await sockets.connect(endpoint.family, endpoint.address)
        try:
            ends = sock.getsockname(), sock.getpeername()
        except OSError:  # accepted, and reset at once
            sock.close()
            raise
    except trio.TooSlowError as error:
        endpoint.failed()
        raise Refused(
            Reason.CONNECT_FAILED, f"cannot reach {what} at {endpoint}: no answer within {seconds:g} s"
        ) from error
    except OSError as error:
        endpoint.failed()
        raise Refused(Reason.CONNECT_FAILED, f"cannot reach {what} at {endpoint}: {error.strerror or error}") from error
    if is_own(*ends, listening):
        sock.close()
        endpoint.failed()
        raise Refused(Reason.CONNECT_FAILED, f"would loop: {endpoint}, where {what} should be, is this sidecar itself")
    return sock


def is_own(local: SocketAddress, remote: SocketAddress, listening: Iterable[SocketAddress]) -> bool:
    """Whether a connection from ``local`` to ``remote`` reached one of our own listeners, or itself.

    A connection to itself comes about by TCP's simultaneous open (RFC 9293 3.5). A wildcard listener is recognised by the
    source address: a machine connects to one of its own addresses from that same address.
    """
    if local[:2] == remote[:2]:
        return True
    for host, port in (address[:2] for address in listening):
        if port == remote[1]:
            here, there = sockets.plain_ip(str(remote[0])), sockets.plain_ip(str(host))
            if there == here or (there.is_unspecified and local[0] == remote[0]):
                return True
    return False
