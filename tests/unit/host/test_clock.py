"""The wall clock is aware, and in UTC."""

from datetime import UTC, datetime, timedelta

from sidecar.host.clock import utc_now


def test_it_is_now_in_utc() -> None:
    before, now, after = datetime.now(UTC), utc_now(), datetime.now(UTC)
    assert before <= now <= after
    assert now.utcoffset() == timedelta()
