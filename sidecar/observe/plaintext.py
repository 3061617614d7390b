"""Who still speaks plaintext: the callers of a sidecar's permissive ports, to be moved, or cut by a date. Pure.

A caller is an address, as nothing else is known of it. The name that its address leads to is looked up elsewhere; whoever
owns the address chooses it, so it is shown and never trusted.

Bounded: :data:`MAX_CALLERS`. A flood of refused callers pushes out refused ones, and never one that was let in; one from
many addresses of a network pushes out its own (:func:`sidecar.transport.strangers.address_key`). What has no place is
counted in ``unlisted``. Callers that did not come for :data:`KEPT_DAYS` are forgotten.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sidecar.transport.strangers import address_key

MAX_CALLERS = 256
MAX_NAME = 100
KEPT_DAYS = 30
RECENT_DAYS = 7
"""Who came within these days counts as a caller that would be cut."""

MAX_SHOWN = 8
MAX_COUNT = 2**53
VERSION = 1


@dataclass(slots=True)
class Caller:
    """``count``: connections. ``allowed``: whether the last one was let in. ``let_in``: when one was last; None: never.
    ``name``: what its address leads to, empty if nothing; ``asked``: whether that was looked up by this process.
    ``network``: what one host has all addresses of."""

    port: str
    address: str
    first: datetime
    last: datetime
    count: int = 0
    allowed: bool = False
    let_in: datetime | None = None
    name: str = ""
    asked: bool = False
    network: str = field(init=False)

    def __post_init__(self) -> None:
        self.network = address_key(self.address)

    def __str__(self) -> str:
        return f"{self.address} ({self.name})" if self.name else self.address

    def as_json(self) -> dict[str, Any]:
        return {
            "port": self.port,
            "address": self.address,
            "name": self.name,
            "count": self.count,
            "first": f"{self.first:%FT%TZ}",
            "last": f"{self.last:%FT%TZ}",
            "allowed": self.allowed,
            "let_in": None if self.let_in is None else f"{self.let_in:%FT%TZ}",
        }


class PlaintextCallers:
    """Of one sidecar. ``changes``: rises with each change."""

    def __init__(self) -> None:
        self._callers: dict[tuple[str, str], Caller] = {}
        self.unlisted = 0
        self.changes = 0

    def note(self, port: str, peer_address: str | None, now: datetime, *, allowed: bool) -> None:
        """A connection was judged. ``peer_address``: ``host:port``."""
        address = "unknown" if peer_address is None else peer_address.rpartition(":")[0].strip("[]")
        self.changes += 1
        caller = self._callers.get((port, address))
        if caller is None:
            if len(self._callers) >= MAX_CALLERS and not self._make_room(now, allowed=allowed):
                self.unlisted += 1
                return
            caller = self._callers[port, address] = Caller(port, address, now, now)
        caller.last, caller.allowed = now, allowed
        if allowed:
            caller.let_in = now
        caller.count = min(caller.count + 1, MAX_COUNT)

    def _make_room(self, now: datetime, *, allowed: bool) -> bool:
        """Drops who has the least claim to its place: one that is too old; one that was refused; or, for one that is let in,
        any. Of several, one of those whose network has the most, and who was not here for longest. Returns whether there
        is a place."""
        self.forget(now)
        if len(self._callers) < MAX_CALLERS:
            return True
        refused = [key for key, caller in self._callers.items() if caller.let_in is None]
        if not (candidates := refused or (list(self._callers) if allowed else [])):
            return False
        crowd = Counter(self._callers[key].network for key in candidates)
        least = min((self._callers[key] for key in candidates), key=lambda one: (-crowd[one.network], one.last))
        del self._callers[least.port, least.address]
        self.unlisted += 1
        return True

    def forget(self, now: datetime) -> None:
        """Forgets who did not come for :data:`KEPT_DAYS`."""
        oldest = now - timedelta(days=KEPT_DAYS)
        for key in [key for key, caller in self._callers.items() if caller.last < oldest]:
            del self._callers[key]
            self.changes += 1

    def current(self) -> list[Caller]:
        """All, those that were let in first, the latest first."""
        return sorted(self._callers.values(), key=lambda one: (one.let_in is None, -one.last.timestamp(), one.address))

    def unnamed(self) -> Iterator[Caller]:
        """Those whose name this process has not looked up."""
        return (caller for caller in list(self._callers.values()) if not caller.asked)

    def name(self, caller: Caller, name: str) -> None:
        """What a caller's address leads to, as the resolver says; empty if nothing."""
        caller.asked = True
        caller.name = "".join(one if one.isascii() and one.isprintable() else "?" for one in name[:MAX_NAME])
        self.changes += 1

    def recent(self, port: str, now: datetime) -> list[Caller]:
        """Who was let in at this port lately, and so would be cut if it were strict, the latest first."""
        return recent(self.current(), port, now)

    # -- kept over a restart -------------------------------------------------------------------------------------------

    def to_keep(self) -> dict[str, Any]:
        """As values that JSON can hold."""
        return {"version": VERSION, "callers": [caller.as_json() for caller in self.current()]}

    def take_kept(self, kept: Iterable[Caller]) -> None:
        """Adds what was kept. What came since stays as it is."""
        for caller in list(kept)[: MAX_CALLERS - len(self._callers)]:
            self._callers.setdefault((caller.port, caller.address), caller)


def recent(callers: Iterable[Caller], port: str, now: datetime) -> list[Caller]:
    """Those that were let in at this port within :data:`RECENT_DAYS`."""
    since = now - timedelta(days=RECENT_DAYS)
    return [one for one in callers if one.port == port and one.let_in is not None and one.let_in >= since]


def callers_of(kept: Any) -> list[Caller]:
    """What :meth:`PlaintextCallers.to_keep` has made. Raises :class:`ValueError` if it is anything else."""
    if not isinstance(kept, Mapping) or kept.get("version") != VERSION or not isinstance(kept.get("callers"), list):
        raise ValueError("it is no inventory of plaintext callers")
    return [_caller(one) for one in kept["callers"][:MAX_CALLERS]]


def _caller(one: Any) -> Caller:
    if not isinstance(one, Mapping):
        raise ValueError("a caller is no mapping")  # noqa: TRY004 (a wrong value, as the others)
    port, address, name, count = (one.get(key) for key in ("port", "address", "name", "count"))
    times = one.get("first"), one.get("last"), one.get("let_in")
    texts = (port, address, name, times[0], times[1], times[2] or "")
    if not all(isinstance(text, str) and len(text) <= 255 and text.isascii() and text.isprintable() for text in texts):
        raise ValueError("a caller has a text that is none, or that cannot be printed")
    if type(count) is not int or not 0 < count <= MAX_COUNT or type(one.get("allowed")) is not bool:
        raise ValueError("a caller has a count that is none")
    if address != "unknown":
        ipaddress.ip_address(str(address))
    first, last, let_in = (None if at is None else _time_of(str(at)) for at in times)
    assert first is not None and last is not None  # noqa: S101, PT018 (they are texts)
    return Caller(str(port), str(address), first, last, count, one["allowed"], let_in, str(name)[:MAX_NAME])


def _time_of(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def listed(callers: Iterable[Caller]) -> str:
    """Callers in a sentence, for people: each with its number of connections and its last one."""
    every = list(callers)
    shown = ", ".join(
        f"{one}: {one.count} connection{'' if one.count == 1 else 's'}, last {one.last:%F %H:%M}"
        for one in every[:MAX_SHOWN]
    )
    return shown + (f" and {len(every) - MAX_SHOWN} more" if len(every) > MAX_SHOWN else "")
