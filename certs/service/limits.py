"""Rate limits by token buckets. Pure; time is an argument, in seconds. A clock jump can fill a bucket, not empty it."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """``burst`` at once, and ``per_second`` in the long run."""

    burst: float
    per_second: float


class Buckets:
    """One bucket for each key, for at most ``most`` keys; the one unused for longest is dropped first. A dropped bucket is
    full when its key returns, so ``most`` bounds memory, and a limit over all keys must bound what dropping gives away."""

    def __init__(self, rate: Rate, most: int = 4096) -> None:
        self.rate = rate
        self._most = most
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def left(self, key: str, now: float) -> float:
        """How many tokens the key has now."""
        level, at = self._buckets.get(key, (self.rate.burst, now))
        return min(self.rate.burst, level + max(0.0, now - at) * self.rate.per_second)

    def take(self, key: str, now: float) -> bool:
        """Takes one token; returns whether there was one."""
        left = self.left(key, now)
        self._buckets[key] = (left - 1 if left >= 1 else left, now)
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return left >= 1
