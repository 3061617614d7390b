"""Days as people write them, such as ``2027-01-31``, and when one is over: at its end in UTC. Pure."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime

from sidecar.identity.spiffe import shown

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")

DAY_PATTERN = f"^{_DATE.pattern}$"
"""What every day matches, as a regular expression of JSON Schema; ``2027-02-31`` matches too."""


def parse_day(text: str) -> date:
    """Raises :class:`ValueError` for anything but a day of the calendar, YYYY-MM-DD."""
    try:
        if not _DATE.fullmatch(text):  # fromisoformat would take "20270131" and week dates as well
            raise ValueError("not YYYY-MM-DD")
        return date.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{shown(text)} is no day: write it as 2027-01-31") from error


def is_over(day: date, now: datetime) -> bool:
    """Whether the day has ended in UTC. Raises :class:`ValueError` for a time without a time zone."""
    if now.tzinfo is None:
        raise ValueError("a time without a time zone cannot decide whether a day is over")
    return now.astimezone(UTC).date() > day
