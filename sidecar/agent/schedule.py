"""When to renew, and when to try again. Pure: time and chance are arguments."""

from __future__ import annotations

from datetime import datetime, timedelta

SPREAD = 0.1
"""A tenth of half a life, to each side: sidecars that started together do not renew together."""

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.5, 60.0


def refresh_after(life: timedelta, chance: float) -> timedelta:
    """How long after its beginning a certificate is renewed: half of its life, give or take a tenth of that. ``chance``: 0
    to 1, drawn once a certificate."""
    return life / 2 * (1 - SPREAD + 2 * SPREAD * chance)


def refresh_at(not_before: datetime, not_after: datetime, chance: float) -> datetime:
    """The same, by the wall clock."""
    return not_before + refresh_after(not_after - not_before, chance)


def backoff(failures: int, chance: float) -> float:
    """How many seconds to wait after the ``failures``-th failure in a row (from 1): half a second, then twice as long each
    time, up to a minute; of that, between a half and the whole."""
    longest = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(failures - 1, 10))
    return longest * (0.5 + chance / 2)
