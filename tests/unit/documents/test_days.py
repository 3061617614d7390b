"""Days: the whole string or nothing; over at midnight in UTC."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pytest

from sidecar.documents.days import is_over, parse_day


def test_a_day_and_what_is_none() -> None:
    assert parse_day("2027-01-31") == date(2027, 1, 31)
    for text in ("", "20270131", "2027-W01-1", "2027-02-30", "2027-1-31", "2027-01-31 ", "２027-01-31"):
        with pytest.raises(ValueError, match="is no day: write it as 2027-01-31"):
            parse_day(text)


def test_it_is_over_at_its_end_in_utc() -> None:
    day = date(2027, 1, 31)
    assert not is_over(day, datetime(2027, 1, 31, 23, 59, 59, tzinfo=UTC))
    assert is_over(day, datetime(2027, 2, 1, tzinfo=UTC))
    west = timezone(timedelta(hours=-5))
    assert not is_over(day, datetime(2027, 1, 31, 18, 59, tzinfo=west))
    assert is_over(day, datetime(2027, 1, 31, 19, 0, tzinfo=west))
    with pytest.raises(ValueError, match="without a time zone"):
        is_over(day, datetime(2027, 2, 1))
