"""When to renew and when to try again: pure arithmetic of time and chance."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from sidecar.agent.schedule import FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS, backoff, refresh_after, refresh_at

BEGIN = datetime(2026, 3, 29, 0, 59, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("chance", "minutes"),
    [(0.0, 27), (0.5, 30), (1.0, 33)],
)
def test_a_certificate_is_renewed_at_half_of_its_life_give_or_take_a_tenth(chance: float, minutes: int) -> None:
    assert refresh_after(HOUR, chance) == timedelta(minutes=minutes)
    assert refresh_at(BEGIN, BEGIN + HOUR, chance) == BEGIN + timedelta(minutes=minutes)


@pytest.mark.parametrize("life", [timedelta(minutes=5), HOUR, 24 * HOUR])
def test_it_is_never_before_its_beginning_nor_at_its_end(life: timedelta) -> None:
    for tenth in range(11):
        assert life * 0.44 < refresh_after(life, tenth / 10) < life * 0.56


def test_a_life_that_is_over_is_due_at_once() -> None:
    assert refresh_after(-HOUR, 0.5) < timedelta()
    assert refresh_after(timedelta(), 0.5) == timedelta()


def test_the_longest_waits_double_from_half_a_second_to_a_minute() -> None:
    assert [backoff(failures, 1.0) for failures in range(1, 10)] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


def test_each_wait_is_between_half_of_the_longest_and_the_longest() -> None:
    for failures in range(1, 12):
        assert backoff(failures, 0.0) == backoff(failures, 1.0) / 2
        assert backoff(failures, 0.0) < backoff(failures, 0.3) < backoff(failures, 1.0)


def test_however_often_it_failed_there_is_a_next_time() -> None:
    assert backoff(1, 0.0) == FIRST_RETRY_SECONDS / 2
    assert backoff(10**9, 1.0) == LAST_RETRY_SECONDS
