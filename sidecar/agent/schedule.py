"""When to renew, and when to try again. Pure: the time and the random number are arguments."""

from __future__ import annotations

from datetime import datetime, timedelta

SPREAD = 0.1
"""How far renewal is moved at random, as a share of half the life: sidecars that started together do not renew together."""

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.5, 60.0


def refresh_after(life: timedelta, chance: float) -> timedelta:
    """How long after its beginning a certificate is renewed: half of its life, give or take a tenth of that. ``chance``: a
    random number from 0 to 1, one for each certificate."""
    return life / 2 * (1 - SPREAD + 2 * SPREAD * chance)


def refresh_at(not_before: datetime, not_after: datetime, chance: float) -> datetime:
    """The same as a time of the wall clock."""
    return not_before + refresh_after(not_after - not_before, chance)


def backoff(failures: int, chance: float) -> float:
    """Seconds to wait after the ``failures``-th failure in a row (from 1). The upper bound is half a second at first and
    doubles up to a minute; the result is between half of the bound (``chance`` 0) and the bound (``chance`` 1)."""
    longest = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(failures - 1, 10))
    return longest * (0.5 + chance / 2)
