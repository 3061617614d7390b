"""The budget for connections that nobody has judged yet, and whom to cut when it is full. Pure.

How this works. Whoever reaches a port can open connections. Until the other end has proved an identity, a connection is a
*stranger*, and at most ``limit`` strangers are held. What belongs to judged peers is not counted here, so strangers cannot
use it up. While the budget is not full, it makes no difference between addresses: a NAT, a balancer, or a container
engine's proxy gives many callers one address. When it is full, a newcomer's place is taken from the address that holds most
of it. So a single address that floods a port displaces itself, and a caller from elsewhere keeps its place.

A stranger is in one of these stages:

* *silent*: its ClientHello (or its request, where there is no TLS) is not complete;
* *known*: it is;
* *busy*: we work for it, so it is not cut. It counts in the budget, but not in its address's share.

Of the address with the most strangers, the silent ones are cut first, then the known ones, in each stage those first that
have been in it longest; nobody who has been in its stage for less than :data:`SAFE_SECONDS`. If nobody qualifies, there is
no room: newcomers stay in the listener's backlog. Between addresses with equally many strangers, one with a silent stranger
comes first, then the one that has been that large for longer.

Every operation takes constant time. Times are seconds of a monotonic clock.
"""

from __future__ import annotations

import enum
import math
from collections import defaultdict
from collections.abc import Callable
from ipaddress import IPv6Address, IPv6Network

SAFE_SECONDS = 1.0
"""How long a stranger is safe in each stage. An honest handshake takes a few round trips."""

ENDING_AT_ONCE = 16
"""Of those who were cut, how many may not have left yet. More are not cut meanwhile, so that ends do not pile up."""


class _Stage(enum.Enum):
    SILENT = enum.auto()
    KNOWN = enum.auto()
    BUSY = enum.auto()
    CUT = enum.auto()
    GONE = enum.auto()


class Stranger:
    """One connection in the budget. It is given back to :class:`Strangers` at each change. ``_cut``: None once it has left,
    as what it refers to mostly refers to the stranger."""

    __slots__ = ("_address", "_cut", "_since", "_stage")

    def __init__(self, address: _Address, cut: Callable[[], object], now: float) -> None:
        self._address, self._since, self._stage = address, now, _Stage.SILENT
        self._cut: Callable[[], object] | None = cut

    @property
    def address(self) -> str:
        """What counts as its address, see :func:`address_key`."""
        return self._address.key

    @property
    def is_cut(self) -> bool:
        """Whether it was cut to make room."""
        return self._stage is _Stage.CUT


_Queue = dict[Stranger, None]
"""Strangers in the order in which they entered a stage."""

_Rank = tuple[int, bool]
"""Of an address: how many strangers it has that may be cut, and whether one of them is silent."""


class _Address:
    """The strangers of one address. ``busy``: how many of them are."""

    __slots__ = ("busy", "key", "known", "silent")

    def __init__(self, key: str) -> None:
        self.key = key
        self.silent: _Queue = {}
        self.known: _Queue = {}
        self.busy = 0

    @property
    def rank(self) -> _Rank:
        return len(self.silent) + len(self.known), bool(self.silent)


class Strangers:
    """The budget: at most ``limit`` strangers. ``freed`` is called whenever one leaves."""

    def __init__(self, limit: int, freed: Callable[[], object] = lambda: None) -> None:
        self.limit = limit
        self._freed = freed
        self._held = self._ending = 0
        self._addresses: dict[str, _Address] = {}
        self._ranked: defaultdict[_Rank, dict[_Address, None]] = defaultdict(dict)
        self._largest = 0  # the size of the highest rank

    def __len__(self) -> int:
        """How many are held, without those that were cut."""
        return self._held

    @property
    def full(self) -> bool:
        """Whether a newcomer must wait for :meth:`make_room`."""
        return self._held >= self.limit or self._ending >= ENDING_AT_ONCE

    def enter(self, host: str, now: float, cut: Callable[[], object]) -> Stranger:
        """Counts a new connection from ``host``, also if there is no room. ``cut`` must end it soon, without waiting."""
        key = address_key(host)
        address = self._addresses.get(key)
        if address is None:
            address = self._addresses[key] = _Address(key)
        stranger = Stranger(address, cut, now)
        self._held += 1
        before = address.rank
        address.silent[stranger] = None
        self._rank(address, before)
        return stranger

    def known(self, stranger: Stranger, now: float) -> None:
        """Its ClientHello (or its request) is complete; or it is no longer :meth:`busy`."""
        if stranger._stage in (_Stage.SILENT, _Stage.BUSY):
            self._set(stranger, _Stage.KNOWN, now)

    def busy(self, stranger: Stranger, now: float) -> None:
        """We work for it: it is not cut until it is :meth:`known` again."""
        if stranger._stage in (_Stage.SILENT, _Stage.KNOWN):
            self._set(stranger, _Stage.BUSY, now)

    def leave(self, stranger: Stranger, now: float) -> None:
        """It was judged, or it has ended. Further calls do nothing."""
        if stranger._stage is _Stage.GONE:
            return
        if stranger._stage is _Stage.CUT:
            self._ending -= 1
            stranger._stage = _Stage.GONE
        else:
            self._held -= 1
            self._set(stranger, _Stage.GONE, now)
        stranger._cut = None
        self._freed()

    def make_room(self, now: float) -> float:
        """Makes room for one more if there is none. Returns 0 if there is room; otherwise after how many seconds to try
        again, infinity if not before somebody has left."""
        if not self.full:
            return 0.0
        return self.cut_one(now)

    def cut_one(self, now: float) -> float:
        """Cuts one stranger, full or not: the system has no descriptor left. Returns what :meth:`make_room` does."""
        if self._ending >= ENDING_AT_ONCE:
            return math.inf
        soonest = math.inf
        for queue in self._candidates():
            first = next(iter(queue), None)
            if first is None:
                continue
            wait = first._since + SAFE_SECONDS - now
            if wait <= 0:
                self._held -= 1
                self._ending += 1
                self._set(first, _Stage.CUT, now)
                if first._cut is not None:
                    first._cut()
                return 0.0
            soonest = min(soonest, wait)
        return soonest

    def _candidates(self) -> list[_Queue]:
        """The queues whose first members may be cut, in this order."""
        ranks = (self._ranked.get((self._largest, silent)) for silent in (True, False))
        first = [next(iter(addresses)) for addresses in ranks if addresses]
        return [one.silent for one in first] + [one.known for one in first]

    def _set(self, stranger: Stranger, stage: _Stage, now: float) -> None:
        """Moves a stranger to another stage, and its address to its new rank."""
        address = stranger._address
        before = address.rank
        queues = {_Stage.SILENT: address.silent, _Stage.KNOWN: address.known}
        if (queue := queues.get(stranger._stage)) is not None:
            del queue[stranger]
        if (queue := queues.get(stage)) is not None:
            queue[stranger] = None
        address.busy += (stage is _Stage.BUSY) - (stranger._stage is _Stage.BUSY)
        stranger._stage, stranger._since = stage, now
        self._rank(address, before)

    def _rank(self, address: _Address, before: _Rank) -> None:
        after = address.rank
        if after != before:
            if before[0]:
                del self._ranked[before][address]
                if not self._ranked[before]:
                    del self._ranked[before]
            if after[0]:
                self._ranked[after][address] = None
            self._largest = max(self._largest, after[0])
            # A size changes by one at a time, so this loop ends after one step.
            while self._largest and not {(self._largest, True), (self._largest, False)} & self._ranked.keys():
                self._largest -= 1
        if not after[0] and not address.busy:
            del self._addresses[address.key]


def address_key(host: str) -> str:
    """What counts as one address: an IPv4 address, also written as IPv6 (RFC 4291 2.5.5.2), or the /64 of an IPv6 address,
    of which one host has as many as it likes. Any other text (a Unix socket has none) stands for itself."""
    if ":" not in host:
        return host
    ip = IPv6Address(host.partition("%")[0])
    return str(ip.ipv4_mapped or IPv6Network((int(ip) >> 64 << 64, 64)))
