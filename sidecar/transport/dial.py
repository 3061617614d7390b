"""Connecting to upstreams: several addresses per target, names resolved in the background, staggered attempts, fail-over.

How this works. An :class:`Upstream` is one target: an app behind an inbound port, or the sidecars of a service. Compose
scales a service by adding A records, so a :class:`Resolver` resolves every name again each :data:`REFRESH_SECONDS`. The last
good answer stays in use while a look-up fails. A look-up occupies a thread that cannot be cancelled. So each name has at
most :data:`MOST_LOOKUPS`, and names have no limit in common: a silent resolver delays the names that it is asked for and no
other.

:meth:`Upstream.endpoints` sorts the target's :class:`Endpoint` objects: those that did not fail first, then by live
connections, then by last use, with the address families in turn. An endpoint that failed is held back for a time that
doubles with each failure in a row, within :data:`BACKOFF_SECONDS`. It is still offered, last, so that it is tried when no
other works. :meth:`Upstream.reach` connects to the first of them that answers, by staggered attempts (RFC 8305). A
connection to one of our own listeners is refused, since it would loop.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count

import trio

from sidecar.documents.address import Address
from sidecar.identity.reasons import Reason, Refused
from sidecar.relay.poller import WRITABLE
from sidecar.relay.strand import Ready, Steps
from sidecar.transport import sockets, staggered

REFRESH_SECONDS = 5.0
LOOKUP_SECONDS = 10.0
"""When a name that was never resolved counts as one that cannot be. A later answer counts all the same."""

AGAIN_SECONDS = (1.0, 2.0, 4.0, 8.0)
"""How long after the one before another look-up begins, while none has ended. A question for a container that has not
started yet goes on to a server outside, and may hang there for half a minute; asked anew, the engine answers it at once."""

MOST_LOOKUPS = 1 + len(AGAIN_SECONDS)
"""Of one name at a time, those that were given up included; and as many that :meth:`Upstream.has_lost` asks for."""

RESOLUTION_DELAY_SECONDS = 0.01
"""How long connections that have one name's addresses wait for those of another, when look-ups begin. RFC 8305 3 has 50 ms,
for a preferred family's; the names of one target are each as good, and a network's own resolver answers within a few."""

BACKOFF_SECONDS = (0.5, 30.0)
"""How long an endpoint is held back after its first failure, and at most."""

MAX_ATTEMPTS = 16
"""The most endpoints that one connection tries. With one attempt each 250 ms all of them begin within 5 seconds, the default
time to connect; a name with hundreds of silent addresses is not worth more."""

MAX_ADDRESSES = 64
"""The most addresses of one name: they are sorted for each connection."""

_NO_ADDRESS = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
"""By which a resolver says that a name has none; other errors say that it does not know."""

SocketAddress = tuple[str | int, ...]


class Endpoint:
    """One socket address of a target. ``live``: connections now. ``used``: when it was chosen last, as a serial number.
    ``failures``: how many in a row. ``gone``: the target has this address no longer."""

    __slots__ = ("address", "aside_until", "failures", "family", "gone", "live", "text", "used")

    def __init__(self, family: int, address: SocketAddress) -> None:
        self.family, self.address = family, address
        self.text = sockets.text(address)
        self.live = self.failures = self.used = 0
        self.aside_until = 0.0
        self.gone = False

    def __str__(self) -> str:
        return self.text

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
    """Resolves names. The last good answer is kept."""

    def __init__(self) -> None:
        self._names: dict[str, _Name] = {}
        self._news = trio.Event()

    def name(self, host: str) -> _Name:
        """Registers a host. To be called before :meth:`run`."""
        return self._names.setdefault(host, _Name(host, self._tell))

    async def run(self) -> None:
        """Resolves all names periodically until cancelled."""
        async with trio.open_nursery() as nursery:
            for name in self._names.values():
                nursery.start_soon(name.refresh)

    async def news(self) -> None:
        """Waits until more is known of some name than before."""
        await self._news.wait()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()


class _Name:
    """``late``: its first look-up takes longer than other names should wait. ``known``: it has ended, or is given up."""

    def __init__(self, host: str, tell: Callable[[], None]) -> None:
        self._host = host
        self._tell = tell
        self._threads, self._threads_anew = (trio.CapacityLimiter(MOST_LOOKUPS) for _ in range(2))
        self.addresses: list[tuple[int, str]] = []
        self.error: str | None = None
        ip = Address(host, 0).ip
        self.late = self.known = self._fixed = ip is not None
        if ip is not None:
            self.addresses = [(socket.AF_INET6 if ip.version == 6 else socket.AF_INET, str(ip))]

    async def refresh(self) -> None:
        while not self._fixed:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch)
                for seconds in (0.0, *AGAIN_SECONDS):
                    await trio.sleep(seconds)
                    nursery.start_soon(self._ask, nursery.cancel_scope.cancel)
            self.late = self.known = True
            self._tell()
            await trio.sleep(REFRESH_SECONDS if self.addresses else REFRESH_SECONDS / 5)

    async def _ask(self, ended: Callable[[], None]) -> None:
        """One look-up. ``ended`` ends those beside it: what the first one says counts."""
        try:
            self.addresses, self.error = await look_up(self._host, self._threads), None
        except (OSError, RuntimeError) as error:  # RuntimeError: the system has no thread left
            self.error = getattr(error, "strerror", None) or str(error)
        ended()

    async def has_lost(self, address: tuple[int, str]) -> bool:
        """Asks the resolver anew. Returns whether the name leads to this address no more; then it is forgotten at once.
        False if the resolver cannot tell."""
        try:
            found = await look_up(self._host, self._threads_anew)  # not behind those that hang
        except socket.gaierror as error:
            if error.errno not in _NO_ADDRESS:
                return False
            found = []
        except (OSError, RuntimeError):
            return False
        if address in found:
            return False
        self.addresses = found or [one for one in self.addresses if one != address]
        self._tell()
        return True

    async def _watch(self) -> None:
        """Says how long the look-ups take. They go on."""
        await trio.sleep(RESOLUTION_DELAY_SECONDS)
        self.late = True
        self._tell()
        await trio.sleep(LOOKUP_SECONDS - RESOLUTION_DELAY_SECONDS)
        self.error, self.known = f"no answer within {LOOKUP_SECONDS:g} s", True
        self._tell()


async def look_up(host: str, threads: trio.CapacityLimiter | None = None) -> list[tuple[int, str]]:
    """The addresses of a host: family and IP, the families in turn, :data:`MAX_ADDRESSES` at most. Raises OSError.

    ``threads``: how many there may be. Not trio's common limiter: 40 look-ups that hang would keep all others from starting.
    """
    answers = await trio.to_thread.run_sync(
        partial(socket.getaddrinfo, host, None, type=socket.SOCK_STREAM),
        limiter=threads or trio.CapacityLimiter(1),
        abandon_on_cancel=True,
    )
    found = [(int(answer[0]), str(answer[4][0])) for answer in answers]
    return staggered.interleaved(found, family=lambda address: address[0])[:MAX_ADDRESSES]


class Upstream:
    """The endpoints of one target. ``what``: its name in errors. ``listening``: our own listeners, which it must not be."""

    def __init__(
        self, what: str, addresses: Iterable[Address], resolver: Resolver, listening: Iterable[SocketAddress]
    ) -> None:
        self.what = what
        self._listening = listening
        self._resolver = resolver
        self._named = [(resolver.name(address.host), address.port) for address in addresses]
        self._hosts = ", ".join(map(str, addresses))
        self._endpoints: dict[tuple[int, SocketAddress], Endpoint] = {}
        self._turns = count(1)
        self._only: tuple[object, Endpoint] | None = None  # of a target with one: the answer that says so, and it

    async def reach(self, seconds: float, failures: dict[Endpoint, Refused]) -> tuple[socket.socket, Endpoint] | None:
        """Connects to the best endpoint that answers within ``seconds``, which include the look-ups. Endpoints in
        ``failures`` are passed over, and those that fail are added. Returns None if none is left. Raises :class:`Refused`
        if no name has an address."""
        begun: list[Endpoint] = []

        async def attempt(endpoint: Endpoint) -> tuple[socket.socket, Endpoint]:
            began = trio.current_time()
            begun.append(endpoint)
            try:
                return await connect(endpoint, self.what, self._listening), endpoint
            except Refused as refusal:
                failures[endpoint] = refusal
                raise
            except trio.Cancelled:
                # Another one overtook it, or time is up: the next connection begins with another one.
                if trio.current_time() >= began + staggered.DELAY_SECONDS:
                    endpoint.failed()
                raise

        with trio.move_on_after(seconds):
            endpoints = await self.endpoints(failures)
            try:
                if len(endpoints) == 1:  # the usual case, without the cost of a race
                    return await attempt(endpoints[0])
                return await staggered.first(endpoints, attempt, lambda one: one[0].close(), faults=(Refused,))
            except (Refused, staggered.AllFailedError):
                return None
        for endpoint in begun:
            detail = f"cannot reach {self.what} at {endpoint}: no answer within {seconds:g} s"
            failures.setdefault(endpoint, Refused(Reason.CONNECT_FAILED, detail))
        if not failures:
            raise Refused(
                Reason.CONNECT_FAILED, f"cannot find {self.what}: {self._hosts}: no answer within {seconds:g} s"
            )
        return None

    def reach_only(
        self, until: float, failures: dict[Endpoint, Refused], waits: Callable[[], Steps[None]]
    ) -> Steps[tuple[socket.socket, Endpoint] | None]:
        """As :meth:`reach`, without a task: for a target with one endpoint, whose address is known. Returns None if it has
        another, or if this one fails, which is in ``failures`` then. ``waits`` is run before anything is waited for."""
        endpoint = self.best()
        if endpoint is None or self.has_another(endpoint):
            return None
        sock: socket.socket | None = None
        try:
            sock, done = sockets.begin_to_connect(endpoint.family, endpoint.address)
            if not done:
                yield from waits()
                if not (yield Ready(sock, WRITABLE, until)):
                    raise TimeoutError(errno.ETIMEDOUT, "no answer in time")
                sockets.end_to_connect(sock)
            checked(sock, endpoint, self.what, self._listening)
        except OSError as error:
            if sock is not None:
                sock.close()
            failures[endpoint] = _unreachable(endpoint, self.what, error)
            return None
        except Refused as refusal:
            failures[endpoint] = refusal
            return None
        except BaseException:
            if sock is not None:
                sock.close()
            raise
        endpoint.used = next(self._turns)
        return sock, endpoint

    async def endpoints(self, tried: Collection[Endpoint] = ()) -> list[Endpoint]:
        """The endpoints that a connection should try, best first, without those ``tried``. Waits while a look-up is in
        progress that may give the first one; the caller sets the deadline. Raises :class:`Refused` if no name has an
        address."""
        names = [name for name, _ in self._named]
        while True:
            left = [endpoint for endpoint in self._sorted() if endpoint not in tried][: MAX_ATTEMPTS - len(tried)]
            enough = bool(left) or len(tried) >= MAX_ATTEMPTS
            if all(name.late if enough else name.known for name in names):
                break
            await self._resolver.news()
        if not self._endpoints and not tried:
            errors = "; ".join(sorted({name.error or "no address" for name in names}))
            raise Refused(Reason.CONNECT_FAILED, f"cannot find {self.what}: {self._hosts}: {errors}")
        if left:
            # It counts as used now, not when it is reached: otherwise all connections of one moment would choose the same.
            left[0].used = next(self._turns)
        return left

    async def has_lost(self, endpoint: Endpoint) -> bool:
        """Whether none of the names leads to an endpoint any more, by what the resolver answers now. False if it cannot
        tell, and for an address that is written in the configuration. The caller sets the deadline."""
        address = (endpoint.family, str(endpoint.address[0]))
        lost = [await name.has_lost(address) for name, _ in self._named if address in name.addresses]
        return all(lost)

    def best(self) -> Endpoint | None:
        """The endpoint that the next connection should use, as far as is known now; None if it must be looked for."""
        answer = self._named[0][0].addresses if len(self._named) == 1 else None
        if self._only is not None and self._only[0] is answer:
            best: Endpoint | None = self._only[1]
        else:
            every = self._sorted()
            best = every[0] if every else None
            self._only = (answer, every[0]) if answer is not None and len(every) == 1 else None
        return None if best is None or best.failures else best

    def has_another(self, endpoint: Endpoint) -> bool:
        """Whether there is another endpoint than this one."""
        return any(one is not endpoint for one in self._endpoints.values())

    def _sorted(self) -> list[Endpoint]:
        """The endpoints that the names have now, best first."""
        current = {(family, (host, port)): None for name, port in self._named for family, host in name.addresses}
        for gone in self._endpoints.keys() - current.keys():
            self._endpoints.pop(gone).gone = True
        for key in current:
            if key not in self._endpoints:
                self._endpoints[key] = Endpoint(*key)
        now = trio.current_time()
        best = sorted(
            self._endpoints.values(),
            key=lambda endpoint: (max(endpoint.aside_until - now, 0.0), endpoint.live, endpoint.used),
        )
        ready = [endpoint for endpoint in best if endpoint.aside_until <= now]
        return [*staggered.interleaved(ready, family=lambda endpoint: endpoint.family), *best[len(ready) :]]

    @contextmanager
    def using(self, endpoint: Endpoint) -> Iterator[None]:
        """Counts a live connection to an endpoint."""
        endpoint.live += 1
        endpoint.used = next(self._turns)
        try:
            yield
        finally:
            endpoint.live -= 1


async def connect(endpoint: Endpoint, what: str, listening: Iterable[SocketAddress]) -> socket.socket:
    """Connects to an endpoint, but never to this sidecar itself: ``listening`` are the addresses of our own listeners. The
    caller sets the deadline. Raises :class:`Refused`."""
    try:
        sock = await sockets.connect(endpoint.family, endpoint.address)
        checked(sock, endpoint, what, listening)
    except OSError as error:
        raise _unreachable(endpoint, what, error) from error
    return sock


def checked(sock: socket.socket, endpoint: Endpoint, what: str, listening: Iterable[SocketAddress]) -> None:
    """Returns if a connected socket reached another program than this sidecar. Otherwise closes it, by a reset, so that our
    own listener takes it for no call, and raises :class:`Refused`, or OSError if it was accepted and reset at once."""
    try:
        ends = sock.getsockname(), sock.getpeername()
    except OSError:
        sock.close()
        raise
    if is_own(*ends, listening):
        sockets.hard_close(sock)
        endpoint.failed()
        raise Refused(
            Reason.CONNECT_FAILED,
            f"would loop: {endpoint}, where {what} should be, is this sidecar itself; correct that address in its file",
        )


def _unreachable(endpoint: Endpoint, what: str, error: OSError) -> Refused:
    endpoint.failed()
    return Refused(Reason.CONNECT_FAILED, f"cannot reach {what} at {endpoint}: {error.strerror or error}")


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
