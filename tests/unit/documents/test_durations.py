"""Durations: the whole string or nothing."""

from __future__ import annotations

import contextlib
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.documents.durations import parse_duration


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30s", timedelta(seconds=30)),
        ("90m", timedelta(minutes=90)),
        ("1h", timedelta(hours=1)),
        ("24h", timedelta(days=1)),
        ("7d", timedelta(days=7)),
        ("1h30m", timedelta(minutes=90)),
        ("1d2h3m4s", timedelta(days=1, hours=2, minutes=3, seconds=4)),
        ("0h5m", timedelta(minutes=5)),
        ("007s", timedelta(seconds=7)),
    ],
)
def test_what_people_write(text: str, expected: timedelta) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "1", "h", "1 h", " 1h", "1h ", "1h\n", "-1h", "+1h", "1.5h", "1H", "1w", "1ms", "0s", "0h0m",
        "1h1h", "30m1h", "1h, 30m", "١h", "1_000s", "1e3s", "9999999d", "1h\0",
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(ValueError, match="write it like"):
        parse_duration(text)


@given(st.text(alphabet="0123456789smhd -", max_size=12))
def test_it_returns_a_positive_duration_or_raises(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_duration(text) > timedelta(0)


def test_the_longest_still_fits() -> None:
    assert parse_duration("999999d999999h999999m999999s") > timedelta(days=999999)
    with pytest.raises(ValueError) as refused:
        parse_duration("x" * 10_000)
    assert len(str(refused.value)) < 200
