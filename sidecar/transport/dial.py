"""Where connections are carried to: several addresses a target, names looked up in the background, fail-over.

An :class:`Upstream` is one target (an app behind an inbound port, or the sidecars of a service). Its :class:`Endpoint` s are
offered least used first; one that failed stands aside for a while, longer each time, but is still tried when nothing else
is left. Compose scales by A records, so every name is looked up again every :data:`REFRESH_SECONDS`.
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

SocketAddress = tuple[str | int, ...]


class Endpoint:
    """One socket address of a target. ``live``: connections now; ``used``: the turn it had last; ``failures``: in a row."""

    __slots__ = ("address", "aside_until", "failures", "family", "live", "used")

    def __init__(self, family: int, address: SocketAddress) -> None:
        self.family, self.address = family, address
        self.live = self.failures = self.used = 0
        self.aside_until = 0.0

    def __str__(self) -> str:
        return sockets.text(self.address)

    def failed(self) -> None:
        """It could not be reached, or was not who it should be: stand aside for a while. Fifty connections that fail in
        the same moment are one failure: while it stands aside already, nothing more is held against it."""
        now, (first, longest) = trio.current_time(), BACKOFF_SECONDS
        if now >= self.aside_until:
            self.aside_until = now + min(first * 2**self.failures, longest)
            self.failures = min(self.failures + 1, 16)

    def answered(self) -> None:
        self.failures, self.aside_until = 0, 0.0


class Resolver:
    """The addresses of names: one look-up in flight a name, the last good answer kept."""

    def __init__(self) -> None:
        self._names: dict[str, _Name] = {}

    def name(self, host: str) -> _Name:
        """Registers a host; before :meth:`run`."""
        return self._names.setdefault(host, _Name(host))

    async def run(self) -> None:
        """Looks all names up, again and again."""
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
    """One target's places. ``what`` names it in errors; ``listening`` are the addresses that it must not be, our own."""

    def __init__(
        self, what: str, addresses: Iterable[Address], resolver: Resolver, listening: Iterable[SocketAddress]
    ) -> None:
        self.what = what
        self._listening = listening
        self._named = [(resolver.name(address.host), address.port) for address in addresses]
        self._hosts = ", ".join(map(str, addresses))
        self._places: dict[tuple[int, SocketAddress], Endpoint] = {}
        self._turns = count(1)

    async def endpoints(self) -> list[Endpoint]:
        """All of them, best first. Raises :class:`Refused` if no name has an address; the caller sets the deadline."""
        for name, _ in self._named:
            if not name.addresses:
                await name.looked_up.wait()
        current = {(family, (host, port)): None for name, port in self._named for family, host in name.addresses}
        if not current:
            errors = "; ".join(sorted({name.error or "no address" for name, _ in self._named}))
            raise Refused(Reason.CONNECT_FAILED, f"cannot find {self.what}: {self._hosts}: {errors}")
        for gone in self._places.keys() - current.keys():
            del self._places[gone]
        for key in current:
            if key not in self._places:
                self._places[key] = Endpoint(*key)
        now = trio.current_time()
        best = sorted(
            self._places.values(),
            key=lambda endpoint: (max(endpoint.aside_until - now, 0.0), endpoint.live, endpoint.used),
        )
        # Its turn is now, not only when it was reached: else all the connections of one moment would choose the same.
        best[0].used = next(self._turns)
        return best

    async def connect(self, endpoint: Endpoint, seconds: float) -> socket.socket:
        """A connection to one of the places within a deadline. Raises :class:`Refused`."""
        return await connect(endpoint, self.what, seconds, self._listening)

    @contextmanager
    def using(self, endpoint: Endpoint) -> Iterator[None]:
        """Counts a connection of a place."""
        endpoint.live += 1
        endpoint.used = next(self._turns)
        try:
            yield
        finally:
            endpoint.live -= 1


async def connect(endpoint: Endpoint, what: str, seconds: float, listening: Iterable[SocketAddress]) -> socket.socket:
    """A connection to a place within a deadline, and never one to ourselves: ``listening`` are our own listeners'
    addresses. Raises :class:`Refused`."""
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
    """Whether a connection from ``local`` to ``remote`` met one of our own listeners, or (a quirk of TCP) itself.

    To an address of its own a machine connects from that same address, which is how a wildcard listener is recognised.
    """
    if local[:2] == remote[:2]:
        return True
    for host, port in (address[:2] for address in listening):
        if port == remote[1]:
            here, there = sockets.plain_ip(str(remote[0])), sockets.plain_ip(str(host))
            if there == here or (there.is_unspecified and local[0] == remote[0]):
                return True
    return False
