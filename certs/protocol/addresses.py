"""The addresses of the CA's name, in the order in which they are tried.

How this works. The name is looked up anew for each connection, in a thread, since the system's resolver blocks. The last
good answer is kept: if the resolver fails, or does not answer within :data:`LOOKUP_SECONDS`, that is used. A look-up that is
late still counts when it ends, for the next connection. It does not hold up others, :data:`MOST_LOOKUPS` at a time: a
question for a container that has not started yet may hang at a server outside, while the engine knows it by now.

IPv4 and IPv6 take turns (RFC 8305 4). An address where something failed is *behind* the others until it works again.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio

from sidecar.documents.address import Address
from sidecar.transport import sockets
from sidecar.transport.staggered import interleaved

LOOKUP_SECONDS = 2.0
"""How long a look-up is waited for while an earlier answer is known."""

MOST_LOOKUPS = 4
"""At a time, those that were given up included: each is a thread."""

MAX_ADDRESSES = 16
"""Of one name. A resolver that lies may send thousands."""


@dataclass(frozen=True, slots=True)
class Place:
    """One socket address. ``family``: an address family such as ``socket.AF_INET``."""

    family: int
    address: tuple[str | int, ...]

    def __str__(self) -> str:
        return sockets.text(self.address)


class CaAddresses:
    """The places of the CA at ``address``. ``resolve``: as :func:`socket.getaddrinfo`; called in a thread."""

    def __init__(self, address: Address, resolve: Callable[..., Any] = socket.getaddrinfo) -> None:
        self._address = address
        self._resolve = resolve
        self._known: tuple[Place, ...] = ()
        self._behind: dict[Place, None] = {}  # in the order in which they failed
        self._threads = trio.CapacityLimiter(MOST_LOOKUPS)

    async def places(self) -> list[Place]:
        """Where to try, best first. Raises OSError if the name has no address. The caller sets the deadline for the first
        look-up."""
        if self._address.ip is not None:
            self._look_up()  # nothing is asked: it only reads the number
        else:
            try:
                with trio.move_on_after(LOOKUP_SECONDS if self._known else float("inf")):
                    await trio.to_thread.run_sync(self._look_up, abandon_on_cancel=True, limiter=self._threads)
            except OSError:
                if not self._known:
                    raise
        known = self._known  # a late look-up may replace it
        for gone in self._behind.keys() - set(known):
            del self._behind[gone]
        order = {place: at for at, place in enumerate(self._behind)}
        return sorted(known, key=lambda place: order.get(place, -1))

    def put_behind(self, place: Place) -> None:
        """Something failed there: the others are tried first."""
        self._behind.pop(place, None)
        self._behind[place] = None

    def works(self, place: Place) -> None:
        self._behind.pop(place, None)

    def _look_up(self) -> None:
        """In a thread that may be abandoned: one assignment, so the loop sees the old answer or the new one."""
        host, port = self._address.host, self._address.port
        found = self._resolve(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICSERV)
        places = interleaved((Place(int(one[0]), tuple(one[4])) for one in found), lambda place: place.family)
        if not places:
            raise OSError("its host name has no address")
        self._known = tuple(places[:MAX_ADDRESSES])
