"""Finds the few rules that can cover a call among thousands. Pure.

How this works. A rule is listed under each identity that its ``from`` names, and under each port that its ``to`` names. One
that names many, as ``*`` does, or a pattern, is listed as *broad* instead: so the lists are never much longer than the file.
The candidates for a call are the rules that are on a list of its caller and on a list of its port. This decides nothing:
whether a candidate covers the call is asked of the rule.

Invariant: every rule that fits a call is among its candidates, and these are in the file's order.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from sidecar.policy.names import Target

FEW = 16
"""A rule that names more identities or ports than this is broad."""

Segments = tuple[str, ...]
_Places = frozenset[int]  # in the file
_NONE: _Places = frozenset()


class Listed(Protocol):
    """What of a rule says where it is listed."""

    @property
    def identities(self) -> frozenset[Segments]: ...

    @property
    def patterns(self) -> Sequence[object]: ...

    @property
    def targets(self) -> frozenset[Target]: ...

    @property
    def plaintext(self) -> bool: ...


_R = TypeVar("_R", bound=Listed)
_K = TypeVar("_K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class _Lists(Generic[_K]):
    named: Mapping[_K, _Places]
    broad: _Places

    @classmethod
    def of(cls, keys: Iterable[frozenset[_K] | None]) -> _Lists[_K]:
        """``keys``: what each rule names; None if it is broad."""
        named: dict[_K, set[int]] = {}
        broad: set[int] = set()
        for place, those in enumerate(keys):
            if those is None:
                broad.add(place)
            for key in those or ():
                named.setdefault(key, set()).add(place)
        return cls({key: frozenset(places) for key, places in named.items()}, frozenset(broad))


class Index(Generic[_R]):
    """The rules of a mesh file, listed."""

    __slots__ = ("_broad", "_by_source", "_by_target", "_plaintext", "_rules")

    def __init__(self, rules: Iterable[_R]) -> None:
        self._rules = tuple(rules)
        self._by_source = _Lists.of(
            None if rule.patterns or len(rule.identities) > FEW else rule.identities for rule in self._rules
        )
        self._by_target = _Lists.of(None if len(rule.targets) > FEW else rule.targets for rule in self._rules)
        self._plaintext = frozenset(place for place, rule in enumerate(self._rules) if rule.plaintext)
        self._broad = self._by_source.broad & self._by_target.broad

    def candidates(self, source: Segments, target: Target) -> list[_R]:
        """The rules that may cover a call of this port by the identity with these path segments."""
        callers, ports = self._by_source, self._by_target
        caller, port = callers.named.get(source, _NONE), ports.named.get(target, _NONE)
        # Each intersection takes the time of its shorter side.
        return self._at((caller & port) | (caller & ports.broad) | (callers.broad & port) | self._broad)

    def for_plaintext(self, target: Target) -> list[_R]:
        """The rules that may cover a call of this port by a caller without TLS."""
        ports = self._by_target
        return self._at((self._plaintext & ports.named.get(target, _NONE)) | (self._plaintext & ports.broad))

    def for_target(self, target: Target) -> list[_R]:
        """The rules that may be for this port."""
        return self._at(self._by_target.named.get(target, _NONE) | self._by_target.broad)

    def _at(self, places: _Places) -> list[_R]:
        return [self._rules[place] for place in sorted(places)]
