"""Every reason has its meaning, at each end at which it is met."""

from __future__ import annotations

import pytest

from sidecar.identity.reasons import MITM_SUSPECTS, Reason
from sidecar.meanings.first_steps import as_step, find_who
from sidecar.meanings.meaning import Kind, Meaning
from sidecar.meanings.of_reasons import REASONS

WITHOUT_ACTION = {Reason.OK, Reason.PROBE, Reason.MAX_AGE}
"""Endings after which nobody has to do anything."""


def test_every_reason_has_an_entry_and_nothing_else_has() -> None:
    assert {one.word for one in REASONS} == set(Reason)
    assert {one.kind for one in REASONS} == {Kind.REASON}


@pytest.mark.parametrize("reason", Reason)
def test_at_each_end_one_entry(reason: Reason) -> None:
    sides = [one.side for one in REASONS if one.word == reason]
    assert sides in ([""], ["inbound", "outbound"], ["outbound", "inbound"], ["outbound"]), reason
    if sides == ["outbound"]:
        assert reason is Reason.UNEXPECTED_PEER  # only the caller expects one service


@pytest.mark.parametrize("one", REASONS, ids=lambda one: f"{one.word}-{one.side}")
def test_whoever_must_act_learns_why_and_what_to_do(one: Meaning) -> None:
    assert bool(one.causes) == (one.word != Reason.OK)
    # A caller's own app that breaks off is found in the app's log.
    if one.word not in WITHOUT_ACTION and (one.word, one.side) != (Reason.CLIENT_RESET, "outbound"):
        assert one.steps


def test_whoever_answers_in_a_peer_s_place_is_to_be_found() -> None:
    """What raises an alarm says first how to find out who has the address."""
    found = {one.word for one in REASONS if one.side == "outbound" and as_step(find_who()) in one.steps}
    assert found == MITM_SUSPECTS - {Reason.BAD_IDENTITY, Reason.WRONG_TRUST_DOMAIN}
