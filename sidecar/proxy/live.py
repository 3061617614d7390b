"""Live connections: registered before they are judged, and judged again whenever policy or trust change.

An inbound connection starts as a *stranger* (:mod:`sidecar.transport.strangers`). When its peer is judged it takes one of
the places that ``limits.connections`` bounds. An outbound connection, our own app's, takes its place at once. So strangers
use up no places.

How it works. A connection enters the registry when it is accepted. Its :class:`Admission` is set, and first judged against
the snapshot in force, without a checkpoint between the two. So every change comes either before, and the first judgement
uses it, or after, and the re-judgement finds the admission. No connection escapes both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import trio

from sidecar.config.sidecar_yaml import Inbound
from sidecar.documents.address import Address
from sidecar.identity.reasons import Reason, Refused
from sidecar.identity.spiffe import SpiffeId, Svid
from sidecar.policy.names import PLAINTEXT, Plaintext
from sidecar.proxy.draining import Carried
from sidecar.transport.strangers import Stranger

JUDGED_A_TICK = 10
"""Judgements between two checkpoints, while the relay waits. Measured: 10 µs each with 5 rules, 100 µs with 1,000, 300 µs
with 3,000."""

CUT_A_TICK = 16
"""Cuts between two checkpoints. Each closes two sockets and logs a line: about 250 µs."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What is judged of a connection: ``source`` calls ``service:port``. The other end is ``peer``, verified along ``path``
    (DER, leaf first) up to the root with the digest ``anchor``."""

    source: SpiffeId
    service: str
    port: str
    peer: Svid
    path: tuple[bytes, ...]
    anchor: bytes

    def __str__(self) -> str:
        return f"{self.source} -> {self.service}:{self.port}"


@dataclass(frozen=True, slots=True)
class BareAdmission:
    """The same of a connection without TLS. Its caller has proved nothing, so there is no more to judge: what the policy
    says of plaintext, and whether the port still takes any (``entry``)."""

    entry: Inbound
    service: str

    @property
    def source(self) -> Plaintext:
        return PLAINTEXT

    @property
    def port(self) -> str:
        return self.entry.port

    def __str__(self) -> str:
        return f"{self.source} -> {self.service}:{self.port}"


Judged = Admission | BareAdmission


class Live:
    """One connection, which can be cut: ``end`` ends it. The reason of the first cut is kept. ``admission`` is None until it
    is judged. ``stranger``: its entry in the budget for strangers (inbound). ``has_place``: whether it takes one of the
    places. ``carried``: what it has carried, while it does. ``idle``: it is a kept channel without a stream now, which may
    go at any time. ``counted``: for which listener and which rule."""

    __slots__ = ("admission", "carried", "counted", "end", "has_place", "idle", "proved", "reason", "stranger")

    def __init__(self, end: Callable[[], object] = lambda: None) -> None:
        self.end = end
        self.idle = False
        self.admission: Judged | None = None
        self.reason: Reason | None = None
        self.stranger: Stranger | None = None
        self.has_place = False
        self.proved = True
        self.carried: Carried | None = None
        self.counted: tuple[Hashable, ...] = ()

    def cut(self, reason: Reason) -> None:
        """Ends the connection, which resets both its sides."""
        if self.reason is None:
            self.reason = reason
            self.end()

    @property
    def was_displaced(self) -> bool:
        """Whether it was cut to make room for other strangers."""
        return self.reason is Reason.OVERLOADED


class Registry:
    """All open connections of one sidecar. ``places``: how many of them have a place; ``bare``: of these, how many callers
    without TLS."""

    def __init__(self) -> None:
        self._live: set[Live] = set()
        self._idle: dict[Live, None] = {}  # those of a kept channel without a stream, the longest idle first
        self.places = self.bare = 0
        self._counts: Counter[Hashable] = Counter()

    def __len__(self) -> int:
        return len(self._live)

    def admissions(self) -> list[Judged]:
        """The admissions of the live connections that were judged and not cut, without idle channels."""
        return [
            live.admission
            for live in self._live
            if live.admission is not None and live.reason is None and not live.idle
        ]

    def take_place(self, live: Live, limit: int, *, proved: bool = True) -> None:
        """Gives a connection a place. An idle channel, the one that has been idle longest, gives up its own. Callers that
        have not ``proved`` an identity have half of the places at most, and nobody gives up one for them. Raises
        :class:`Refused` if ``limit`` are taken."""
        if not proved and self.bare >= limit // 2:
            half = f"{limit // 2} connections without TLS, half of limits.connections"
            raise Refused(Reason.OVERLOADED, f"has reached its limit of {half}")
        if proved and self.places >= limit and self._idle:
            next(iter(self._idle)).cut(Reason.IDLE_TIMEOUT)
        if self.places >= limit:
            raise Refused(Reason.OVERLOADED, f"has reached its limit of {limit} connections (limits.connections)")
        live.has_place, live.proved = True, proved
        self.places += 1
        self.bare += not proved

    def give_back(self, live: Live) -> None:
        """Ends a connection's place, if it has one."""
        self.places -= live.has_place
        self.bare -= live.has_place and not live.proved
        live.has_place = False

    def count(
        self,
        live: Live,
        listener: tuple[str, str, Address],
        most: int | None,
        rules: Sequence[tuple[str | None, int | None]] = (),
    ) -> str | None:
        """Counts a connection that the policy allows, or one stream, for its ``listener`` (its list in the file, its name
        and address), which takes ``most``, and for the first of ``rules`` that has room. Returns that rule. It counts until
        :meth:`uncount` or :meth:`leave`; where there is no limit too, as a reload may bring one. Raises :class:`Refused` if
        the listener or every rule is full; then it counts for neither."""
        if most is not None and self._counts[listener] >= most:
            entries, name, _ = listener
            limit = f"{most} connections of {name} (limits.connections of that entry of `{entries}`)"
            raise Refused(Reason.OVERLOADED, f"has reached its limit of {limit}")
        counted: tuple[Hashable, ...] = (listener,)
        rule: str | None = None
        if rules:
            free = [name for name, limit in rules if limit is None or self._counts["rule", name] < limit]
            if not free:
                full = ", ".join(f"{limit} connections of rule '{name}'" for name, limit in rules)
                raise Refused(Reason.OVERLOADED, f"has reached the limit of {full} (connections)")
            rule = free[0]
            counted += (("rule", rule),)
        live.counted = counted
        for what in counted:
            self._counts[what] += 1
        return rule

    def uncount(self, live: Live) -> None:
        """The stream has ended, or the connection: its listener and its rule have room for another one."""
        for what in live.counted:
            self._counts[what] -= 1
            if not self._counts[what]:
                del self._counts[what]  # rules come and go
        live.counted = ()

    def enter(self, live: Live) -> None:
        """Registers a connection until :meth:`leave`."""
        self._live.add(live)

    def leave(self, live: Live) -> None:
        """The connection has ended, and its place is free."""
        self._live.discard(live)
        self._idle.pop(live, None)
        self.uncount(live)
        self.give_back(live)

    def set_idle(self, live: Live, idle: bool) -> None:
        """A kept channel carries no stream now, or one again."""
        live.idle = idle
        if idle:
            self._idle[live] = None
        else:
            self._idle.pop(live, None)

    @property
    def idle(self) -> int:
        """How many kept channels carry no stream now."""
        return len(self._idle)

    def end_idle(self) -> None:
        """Ends every kept channel that carries no stream."""
        for live in list(self._idle):
            live.cut(Reason.DRAINED)

    async def rejudge(self, judge: Callable[[Judged], Reason | None]) -> int:
        """Cuts every connection for whose admission ``judge`` returns a reason. Returns how many. Works in portions, so that
        the relay runs between them; so ``judge`` must use the snapshot in force at each call."""
        cut = 0
        for number, live in enumerate(list(self._live), start=1):
            if live.admission is not None and live.reason is None and (reason := judge(live.admission)) is not None:
                live.cut(reason)
                cut += 1
                if cut % CUT_A_TICK == 0:
                    await trio.lowlevel.checkpoint()
            if number % JUDGED_A_TICK == 0:
                await trio.lowlevel.checkpoint()
        return cut
