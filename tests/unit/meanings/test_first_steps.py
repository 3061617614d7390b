"""The first steps are one text, in an alarm's line and in the glossary."""

from __future__ import annotations

from sidecar.meanings.first_steps import FIND_BETWEEN, FIND_WHAT, WAIT_FOR_MORE, as_step, find_who
from sidecar.meanings.glossary import look_up


def test_who_has_an_address() -> None:
    assert find_who("10.0.0.7:6379") == "find out who has the address 10.0.0.7:6379; nothing was sent to it"
    assert as_step(find_who()) == "Find out who has the address ADDRESS; nothing was sent to it."


def test_the_glossary_says_the_same() -> None:
    for text, word in (
        *((find_who(), word) for word in ("unexpected_peer", "plaintext_refused")),
        *((FIND_WHAT, "mitm_suspected"), (FIND_BETWEEN, "tampering_suspected"), (WAIT_FOR_MORE, "neighbour_met")),
    ):
        assert any(text[1:] in step for one in look_up(word) for step in one.steps), word
