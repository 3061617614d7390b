"""What is put in place of the names in capitals, and what is not: a command may be pasted into a shell."""

from __future__ import annotations

import pytest

from sidecar.meanings.meaning import PLACEHOLDERS, Kind, Meaning, filled, names_in


def test_names_are_filled_in() -> None:
    known = {"CALLER": "web", "TARGET": "db:5432", "ADDRESS": "[fd00::1%eth0]:443"}
    text = "`sidecar policy explain MESH --from CALLER --to TARGET` at ADDRESS"
    assert filled(text, known) == "`sidecar policy explain MESH --from web --to db:5432` at [fd00::1%eth0]:443"
    assert names_in(filled(text, known)) == {"MESH"}


def test_a_name_is_a_whole_word_and_is_filled_in_once() -> None:
    assert (
        filled("CALLERS DIRECTORY CALLER", {"CALLER": "TARGET", "DIR": "x", "TARGET": "y"})
        == "CALLERS DIRECTORY TARGET"
    )
    assert names_in("CALLERS DIRECTORY") == set()


@pytest.mark.parametrize(
    "value", ["spiffe://shop.internal/batch/nightly", "10.0.0.1:80", "@spire", "a_b-c.d", "x" * 256]
)
def test_a_plain_value(value: str) -> None:
    assert filled("ask CALLER", {"CALLER": value}) == f"ask {value}"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "-rf",
        "--to",
        "a b",
        "a;b",
        "$(x)",
        "`x`",
        "a'b",
        'a"b',
        "a\nb",
        "a\x1b[2J",
        "a|b",
        "a&b",
        ">x",
        "*",
        "~",
        "é",
        "x" * 257,
    ],
)
def test_a_value_that_a_shell_or_a_terminal_would_obey_stays_out(value: str) -> None:
    assert filled("ask CALLER", {"CALLER": value}) == "ask CALLER"


def test_as_json() -> None:
    one = Meaning(Kind.EVENT, "word", "It means.", ("Because.",), ("Do.",))
    assert one.as_json() == {"kind": "event of the log", "means": "It means.", "causes": ["Because."], "next": ["Do."]}
    assert Meaning(Kind.REASON, "word", "It means.", side="inbound").as_json()["side"] == "inbound"


def test_every_name_says_what_it_stands_for() -> None:
    assert all(name.isupper() and text for name, text in PLACEHOLDERS.items())
