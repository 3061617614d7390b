"""What to do first about an alarm: the field ``next`` of its line, and the first step in the glossary. Pure.

A module of its own, since a running sidecar needs these few sentences and none of the tables.
"""

from __future__ import annotations

from sidecar.meanings.meaning import filled

FIND_WHAT = "find out what answers there; nothing secret was sent to it"
"""About whatever answers in the CA's place."""

FIND_BETWEEN = "find out what is between the two: a machine in the middle, or a network card or switch that is broken"
"""About altered records."""

WAIT_FOR_MORE = "nothing, unless it happens again: then it is an alarm. Nothing was sent to it"
"""About a neighbour that has an old address."""

_FIND_WHO = "find out who has the address ADDRESS; nothing was sent to it"


def find_who(address: str = "ADDRESS") -> str:
    """About whoever answers in a peer's place, at ``host:port``."""
    return filled(_FIND_WHO, {"ADDRESS": address})


def as_step(text: str) -> str:
    """Such a text as a sentence of the glossary."""
    return f"{text[0].upper()}{text[1:]}."
