"""The defences, and how to run the product without one: the siege's own test. With any of them removed, the siege must fail.

A removal replaces one constant or function of a module before the program starts. It runs in the product's process, see
:mod:`tests.siege.launch`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Defence:
    """``kinds``: the attacks that must succeed without it. ``many``: from many addresses. ``floods``: how many it takes."""

    name: str
    what: str
    kinds: Sequence[str]
    remove: Callable[[], object]
    many: bool = True
    floods: int = 1


DEFENCES: Mapping[str, Defence] = {}
