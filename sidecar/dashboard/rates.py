"""Counters of successive reports become rates. Pure: time is an argument.

How this works. A report counts since its process began. Of each counter the samples of the last :data:`WINDOW` seconds are
kept; the rate is the difference of the last and the first of them over the time between. A process that was restarted has
another name here, so its counters begin anew; a counter that falls is taken for one as well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping

WINDOW = 30.0
"""Seconds: six reports. Long enough that a call every few seconds is a rate and no flicker."""

STALE = 25.0
"""Seconds after which a counter of which nothing more was heard has no rate."""

Counts = tuple[int, ...]


class Rates:
    """Of many counters, each a tuple of numbers that rise together."""

    def __init__(self) -> None:
        self._samples: dict[Hashable, deque[tuple[float, Counts]]] = {}

    def take(self, counters: Mapping[Hashable, tuple[float, Counts]]) -> None:
        """What the counters are, each with the time (seconds) at which that was said. Those that are not there any more are
        forgotten."""
        for key in self._samples.keys() - counters.keys():
            del self._samples[key]
        for key, (at, counts) in counters.items():
            samples = self._samples.setdefault(key, deque())
            if samples and at == samples[-1][0]:
                continue  # the same report as before
            # An earlier time: the CA's clock was set back.
            if samples and (
                at < samples[-1][0] or any(new < old for new, old in zip(counts, samples[-1][1], strict=True))
            ):
                samples.clear()
            samples.append((at, counts))
            while at - samples[0][0] > WINDOW:
                samples.popleft()

    def of(self, key: Hashable, now: float) -> tuple[float, ...] | None:
        """Of each number its rise a second; None while too little is known."""
        samples = self._samples.get(key)
        if not samples or len(samples) < 2 or now - samples[-1][0] > STALE:
            return None
        (began, first), (ended, last) = samples[0], samples[-1]
        return tuple((new - old) / (ended - began) for new, old in zip(last, first, strict=True))
