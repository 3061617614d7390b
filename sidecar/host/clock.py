"""The wall clock."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_now() -> datetime:
    """The time now, aware, as certificates are judged by it. Pure modules take it as an argument."""
    return datetime.now(UTC)
