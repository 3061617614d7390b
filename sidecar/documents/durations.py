"""Durations as people write them: ``1h``, ``90m``, ``1h30m``. Pure."""

from __future__ import annotations

import re
from datetime import timedelta

# At most six digits in each number: the largest sum still fits a timedelta, and a date plus that sum is still valid.
_DURATION = re.compile(r"(?:([0-9]{1,6})d)?(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,6})s)?")


PATTERN = f"^(?=.){_DURATION.pattern}$"
"""What every duration matches, as a regular expression of JSON Schema; zero matches too."""


def parse_duration(text: str) -> timedelta:
    """Parses days, hours, minutes and seconds, in this order, each at most once, with nothing between or around them.

    Raises :class:`ValueError` for anything else and for zero. A bare number has no unit and is refused.
    """
    match = _DURATION.fullmatch(text)
    days, hours, minutes, seconds = (int(number or 0) for number in match.groups()) if match else (0, 0, 0, 0)
    duration = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    if not duration:
        raise ValueError(f"{text[:40]!a} is not a duration: write it like 30s, 90m, 1h or 1h30m, and more than zero")
    return duration
