"""The wall clock."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_now() -> datetime:
    """The current time, as an aware datetime in UTC. Pure modules take it as an argument."""
    return datetime.now(UTC)
