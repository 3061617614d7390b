"""How often: token buckets. Pure; time is an argument, in seconds. A clock that jumps may fill one, and empties none."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """``burst`` at once, and ``per_second`` in the long run."""

    burst: float
    per_second: float


class Buckets:
    """One bucket a key; of at most ``most`` keys, the longest unused forgotten first. A forgotten one is full again, so
    ``most`` bounds memory, and a limit over all keys bounds what forgetting gives away."""

    def __init__(self, rate: Rate, most: int = 4096) -> None:
        self.rate = rate
        self._most = most
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def left(self, key: str, now: float) -> float:
        """How many may come now."""
        level, at = self._buckets.get(key, (self.rate.burst, now))
        return min(self.rate.burst, level + max(0.0, now - at) * self.rate.per_second)

    def take(self, key: str, now: float) -> bool:
        """Takes one, if there is one."""
        left = self.left(key, now)
        self._buckets[key] = (left - 1 if left >= 1 else left, now)
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return left >= 1

    def give_back(self, key: str, now: float) -> None:
        """Puts back one that was taken and not needed. A bucket that was forgotten meanwhile is full already."""
        if key in self._buckets:
            self._buckets[key] = (min(self.rate.burst, self.left(key, now) + 1), now)
