"""Tables of the benchmark and of the siege."""

from __future__ import annotations

from tests.bench.table import table


def test_a_table_as_text() -> None:
    assert table(["pair of", "caller's\nRSS", "per s"], [["sidecar", "25.1", "1,200"], ["none", "-"]]) == (
        "pair of  caller's  per s\n"
        "              RSS\n"
        "------------------------\n"
        "sidecar      25.1  1,200\n"
        "none            -\n"
    )


def test_a_table_without_rows() -> None:
    assert table(["bar", "measured"], []) == "bar  measured\n-------------\n"
