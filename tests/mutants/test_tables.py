"""The tables are true of the code as it is: what they name exists, and every mutant has its line."""

from __future__ import annotations

from tests.mutants.mutant import AND, all_mutants, awaited, equivalent, kills, named, read_rows, site

KEPT_BY_HAND = 175
"""Of the 176 of that list one cannot be written any more: a "yes" before the policy's answer. The callee's verdict is sent
behind the block that decides, so no single statement can be moved before it."""
MAX_EQUIVALENT = 0.05
MAX_AWAITED = 0
"""This number may only fall."""


def test_every_named_mutant_is_in_the_code_and_killed() -> None:
    names = named()
    assert len(read_rows("named.txt")) >= KEPT_BY_HAND, "none of the list that was kept by hand has gone"
    for id_ in names:
        for part in id_.split(AND):
            site(part)
    assert set(names) - kills().keys() == set()


def test_every_mutant_is_killed_or_has_its_reason() -> None:
    ids = {mutant.id for mutant in all_mutants()}
    reasons = equivalent()
    assert ids - kills().keys() - reasons.keys() - awaited() == set()
    assert awaited() <= ids - kills().keys() - reasons.keys()
    assert len(awaited()) <= MAX_AWAITED
    assert all(reasons.values())
    assert reasons.keys() <= ids
    assert reasons.keys() & kills().keys() == set()
    assert len(reasons) <= MAX_EQUIVALENT * len(ids)
