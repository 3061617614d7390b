"""The last report of each sidecar, in memory: for people, and for no decision. Pure.

A CA that was restarted has them again after a turn of the sidecars' polls. Several CAs on one store each have those of the
sidecars that poll them. Bounded: by identity, in number, and in bytes.
"""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Any

MOST_OF_ONE_IDENTITY = 256
"""As many as its followers may be."""

MOST_BYTES = 3 << 20
"""Of all: they are one answer of the admin socket."""

FORGOTTEN = timedelta(hours=1)
"""How long the last report of a sidecar is kept that sends none any more."""

FRESH = timedelta(seconds=20)
"""A report that is older is not of now: a sidecar polls each five seconds."""


@dataclass(frozen=True, slots=True)
class Kept:
    """``address``: where it came from. ``serial``: of the certificate that proved the identity, hexadecimal. ``report``: as
    :func:`certs.protocol.report.encode` makes it, which takes a fifth of the memory of its values."""

    identity: str
    instance: str
    address: str
    serial: str
    at: datetime
    report: bytes

    def to_dict(self, now: datetime) -> dict[str, Any]:
        return {**self._about(now), "report": json.loads(self.report)}

    def to_json(self, now: datetime) -> bytes:
        """The same, as JSON in one line."""
        return b"".join((json.dumps(self._about(now))[:-1].encode(), b', "report": ', self.report, b"}"))

    def _about(self, now: datetime) -> dict[str, Any]:
        return {
            "identity": self.identity,
            "instance": self.instance,
            "address": self.address,
            "serial": self.serial,
            "received": f"{self.at:%FT%TZ}",
            "fresh": now - self.at <= FRESH,
        }


class Reports:
    """Bounded: the one that was heard of longest ago goes first. ``heard``: is called after each report."""

    def __init__(self) -> None:
        self.heard: Callable[[], object] = lambda: None
        self._kept: OrderedDict[tuple[str, str], Kept] = OrderedDict()
        self._of_one = Counter[str]()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def take(self, new: Kept) -> None:
        """Keeps a report in the place of the one before."""
        key = (new.identity, new.instance)
        self._drop(key)
        if self._of_one[new.identity] >= MOST_OF_ONE_IDENTITY:
            self._drop(next(key for key in self._kept if key[0] == new.identity))
        self._kept[key] = new
        self._of_one[new.identity] += 1
        self._bytes += len(new.report)
        while self._bytes > MOST_BYTES or next(iter(self._kept.values())).at < new.at - FORGOTTEN:
            self._drop(next(iter(self._kept)))
        self.heard()

    def current(self, now: datetime) -> list[Kept]:
        """Those that are not too old to be of use, by identity."""
        found = [one for one in self._kept.values() if now - one.at <= FORGOTTEN]
        return sorted(found, key=lambda one: (one.identity, one.instance))

    def fresh(self, now: datetime) -> int:
        """How many are of now."""
        return sum(1 for _ in takewhile(lambda one: now - one.at <= FRESH, reversed(self._kept.values())))

    def _drop(self, key: tuple[str, str]) -> None:
        if (gone := self._kept.pop(key, None)) is not None:
            self._bytes -= len(gone.report)
            self._of_one[gone.identity] -= 1
            if not self._of_one[gone.identity]:
                del self._of_one[gone.identity]
