"""What is an accident once, and an alarm if it happens again and again at one place. Pure.

A broken memory or cable alters a record once in a long time; whoever alters or injects bytes ends one connection after the
other. A container's address goes to a neighbour once; an impostor answers again. So what counts is how often something is
met at one place within :data:`SECONDS`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

FEW = 3
SECONDS = 600.0
MAX_PLACES = 256

_Place = TypeVar("_Place")


class Recurrence(Generic[_Place]):
    """When something was met lately, by place; of at most :data:`MAX_PLACES`. ``now``: seconds of a clock that does not go
    back."""

    def __init__(self) -> None:
        self._met: dict[_Place, deque[float]] = {}  # the place of the last one is last

    def met(self, place: _Place, now: float) -> bool:
        """Counts one more. Returns whether that is at least the third (:data:`FEW`) in the last ten minutes."""
        times = self._met.pop(place, None) or deque(maxlen=FEW)
        times.append(now)
        self._met[place] = times
        if len(self._met) > MAX_PLACES:
            del self._met[next(iter(self._met))]
        return len(times) == FEW and now - times[0] <= SECONDS


class Alternation:
    """Where each of many things was met last, and before: who comes back to the place before was at two at once."""

    def __init__(self, most: int = 1024) -> None:
        self._most = most
        self._places: dict[Hashable, tuple[str, str]] = {}

    def met(self, what: Hashable, place: str) -> str | None:
        """Notes a place. Returns the one in between if it is that before the last; else None."""
        last, before = self._places.get(what, ("", ""))
        if place == last:
            return None
        self._places.pop(what, None)
        self._places[what] = place, last
        if len(self._places) > self._most:
            del self._places[next(iter(self._places))]
        return last if place == before else None
