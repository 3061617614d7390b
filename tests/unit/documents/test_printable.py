"""Nothing of others drives a terminal; letters of every language stay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.documents.printable import printable, printable_values


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("", ""),
        ("all is well: é 漢 €", "all is well: é 漢 €"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\x9b2J", r"\x9b2J"),
        ("one\ntwo\r\tthree", r"one\ntwo\r\tthree"),
        ("\u202egnihtemos\u2066", r"\u202egnihtemos\u2066"),
        ("\u2028\u200b\ufeff\U000e0001", r"\u2028\u200b\ufeff\U000e0001"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_drives_a_terminal_is_escaped_and_words_are_not(text: str, safe: str) -> None:
    assert printable(text) == safe


@given(st.text())
def test_it_is_always_printable_and_changes_nothing_twice(text: str) -> None:
    safe = printable(text)
    assert safe.isprintable()
    assert printable(safe) == safe


def test_all_text_of_a_document_is_escaped() -> None:
    document = {"a\n": ["\x1b", {"b": "\x07"}, 5, None, True, 1.5]}
    assert printable_values(document) == {r"a\n": [r"\x1b", {"b": r"\x07"}, 5, None, True, 1.5]}
