"""Every refusal of the CA has its meaning."""

from __future__ import annotations

from certs.protocol.denial import INTERNAL_ERROR, Denial
from sidecar.meanings.meaning import Kind
from sidecar.meanings.of_denials import DENIALS


def test_every_denial_has_an_entry_and_nothing_else_has() -> None:
    assert [one.word for one in DENIALS] == [*Denial, INTERNAL_ERROR]
    assert {one.kind for one in DENIALS} == {Kind.DENIAL}


def test_each_names_causes_and_what_to_do() -> None:
    assert all(one.causes and one.steps for one in DENIALS)
