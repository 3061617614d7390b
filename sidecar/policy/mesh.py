"""``mesh.yaml``: the services of a mesh and who may talk to whom, as frozen values. Pure, but for :func:`load_mesh`.

Fails closed: a file with any mistake in it gives no mesh at all but one :class:`UsageError` with a line for each mistake.
An empty policy is no mistake; it denies everything. What is decided *with* a mesh is in ``policy``.

What a rule's ``from`` and ``to`` may say:

* ``from: web`` is the service of that name, and nobody else;
* ``from: "*"`` is every service declared in this file (not every certificate of the trust domain);
* ``from: "spiffe://shop.internal/batch/*"`` is a pattern over whole path segments: ``*`` is one, ``**`` any number,
  including none; everything else stands for itself, a dot too. A pattern of one plain segment must be a declared service;
* ``to: "api:http"`` is one port, ``to: api`` all ports of a service, ``to: "*"`` all ports of all services.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import chain, product
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from sidecar.documents.document import Document
from sidecar.documents.yaml12 import load_text, parse_yaml
from sidecar.identity.spiffe import DEFAULT_MAX_LEAF_TTL, SpiffeId
from sidecar.policy.mesh_yaml import Action, Mode, RuleShape, ServiceShape, parse_shape, rule_name
from sidecar.policy.names import WILDCARDS, Names, Target

DEFAULT_STALENESS = timedelta(hours=1)
DEFAULT_REENROL_WINDOW = timedelta(hours=24)

_NAMED_BY_NO_RULE = "*"
"""A path segment that only wildcards match: the grammar of SPIFFE IDs does not have it, so no rule can name it."""
_TWICE = ("**", "**")  # says no more than one of them


@dataclass(frozen=True, slots=True)
class Pattern:
    """Path segments that an identity may have; ``*`` is any one of them and ``**`` any number."""

    segments: tuple[str, ...]

    def matches(self, segments: Sequence[str]) -> bool:
        """Whether all of ``segments`` fit. Takes time in proportion to both lengths, whatever the pattern."""
        places = self._past_any({0})
        for segment in segments:
            # An identity's segment is never "*" itself: the grammar of SPIFFE IDs has no such character.
            stay = {place for place in places if self.segments[place : place + 1] == ("**",)}
            step = {place + 1 for place in places if self.segments[place : place + 1] in {("*",), (segment,)}}
            places = self._past_any(stay | step)
        return len(self.segments) in places

    def samples(self, longest: int) -> Iterator[tuple[str, ...]]:
        """Paths that stand for all that this pattern matches: each ``*`` is a segment that no rule names, and each ``**`` is
        every number of them up to one more than ``longest``, the number of segments of the longest other pattern. If some
        path of this pattern is matched by none of the others, then so is one of these: in the place of a wildcard only
        wildcards match such a segment, and a run of them that is longer than a pattern meets a ``**`` there or nothing."""
        runs: dict[str, list[tuple[str, ...]]] = {
            "*": [(_NAMED_BY_NO_RULE,)],
            "**": [(_NAMED_BY_NO_RULE,) * length for length in range(longest + 2)],
        }
        segments = [
            one for one, before in zip(self.segments, ("", *self.segments), strict=False) if (one, before) != _TWICE
        ]
        for parts in product(*(runs.get(segment, [(segment,)]) for segment in segments)):
            if path := tuple(chain.from_iterable(parts)):
                yield path

    def _past_any(self, places: set[int]) -> set[int]:
        """``places``, and those reached from them by letting ``**`` stand for nothing."""
        reached = set(places)
        for place in range(len(self.segments)):
            if place in reached and self.segments[place] == "**":
                reached.add(place + 1)
        return reached


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of the policy. ``from_`` and ``to`` are as the file has them.

    ``identities`` (their path segments) and ``patterns`` are what ``from`` stands for in this mesh, ``targets`` is ``to``.
    """

    trust_domain: str
    name: str
    line: int
    from_: tuple[str, ...]
    to: tuple[str, ...]
    identities: frozenset[tuple[str, ...]]
    patterns: tuple[Pattern, ...]
    targets: frozenset[Target]
    action: Action
    mode: Mode
    until: date | None

    def applies(self, source: SpiffeId, target: Target, now: datetime) -> bool:
        """Whether the rule is about this call and in force at ``now``, whatever its action and its mode. A time without a
        time zone is a ValueError."""
        return self.fits(source, target) and not self.ran_out(now)

    def fits(self, source: SpiffeId, target: Target) -> bool:
        """Whether the rule is about this call, in force or not."""
        return target in self.targets and self.has_source(source)

    def has_source(self, source: SpiffeId) -> bool:
        """Whether ``from`` names this identity: never one of another trust domain."""
        return source.trust_domain == self.trust_domain and (
            source.segments in self.identities or any(pattern.matches(source.segments) for pattern in self.patterns)
        )

    def ran_out(self, now: datetime) -> bool:
        """Whether the rule's last day is over: it holds through the whole of ``until``, in UTC."""
        if now.tzinfo is None:
            raise ValueError("a time without a time zone cannot decide when a rule runs out")
        return self.until is not None and now.astimezone(UTC).date() > self.until


@dataclass(frozen=True, slots=True)
class Dev:
    """Where on a laptop a service's app listens (port name → local port) and where its calls enter the mesh."""

    app: Mapping[str, int]
    calls: Mapping[Target, int]


@dataclass(frozen=True, slots=True)
class Service:
    """``ports`` by name; empty for a service that calls and is not called."""

    name: str
    ports: Mapping[str, int]
    dev: Dev | None
    line: int


@dataclass(frozen=True, slots=True)
class PolicyTest:
    """An expectation written into the file: ``source`` may, or may not, call each of ``targets``."""

    source: SpiffeId
    from_: str
    to: tuple[str, ...]
    targets: tuple[Target, ...]
    expect: Action
    line: int


@dataclass(frozen=True, slots=True)
class Mesh:
    """A whole, valid ``mesh.yaml``.

    ``revocation_staleness``: how old a list of revocations may be before nobody new is let in. ``reenrol_window``: how long
    after its end a certificate may still be renewed by its key."""

    filename: str
    trust_domain: str
    services: Mapping[str, Service]
    rules: tuple[Rule, ...]
    tests: tuple[PolicyTest, ...]
    max_leaf_ttl: timedelta
    revocation_staleness: timedelta
    reenrol_window: timedelta

    def identity(self, service: str) -> SpiffeId:
        """The identity of a declared service. Raises :class:`KeyError` for any other name."""
        return SpiffeId(self.trust_domain, (self.services[service].name,))

    def targets(self, text: str) -> tuple[Target, ...]:
        """The ports that ``api:http``, ``api`` or ``*`` stand for. Raises :class:`ValueError`, worded for people."""
        return self._names().targets(text)

    def target(self, text: str) -> Target:
        """The one port that ``api:http``, or ``api`` if it has one port, stands for. Raises :class:`ValueError`."""
        return self._names().target(text)

    def source(self, text: str) -> SpiffeId:
        """The identity that a declared service's name, or a whole SPIFFE ID, stands for. Raises :class:`ValueError`."""
        return self._names().identity(text)

    def _names(self) -> Names:
        return Names(self.trust_domain, {name: tuple(service.ports) for name, service in self.services.items()})


def load_mesh(path: Path) -> Mesh:
    """Reads a mesh file from disk. Raises :class:`UsageError`."""
    return parse_mesh(load_text(path), str(path))


def parse_mesh(text: str, filename: str) -> Mesh:
    """Reads a mesh file's text. Raises :class:`UsageError` with every mistake in it, a line each."""
    document = parse_yaml(text, filename)
    file, names = parse_shape(document)
    every = _Every(frozenset((service,) for service in names.ports), frozenset(names.targets("*")))
    return Mesh(
        filename=filename,
        trust_domain=file.trust_domain,
        services=MappingProxyType(
            {name: _service(name, shape, names, document) for name, shape in file.services.items()}
        ),
        rules=tuple(_rule(shape, every, names, document, index) for index, shape in enumerate(file.policy)),
        tests=tuple(
            PolicyTest(
                source=names.identity(test.from_),
                from_=test.from_,
                to=tuple(test.to),
                targets=tuple(dict.fromkeys(chain.from_iterable(map(names.targets, test.to)))),
                expect=test.expect,
                line=document.line(("tests", index)),
            )
            for index, test in enumerate(file.tests)
        ),
        max_leaf_ttl=file.max_leaf_ttl or DEFAULT_MAX_LEAF_TTL,
        revocation_staleness=file.revocation_staleness or DEFAULT_STALENESS,
        reenrol_window=file.reenrol_window or DEFAULT_REENROL_WINDOW,
    )


class _Every(NamedTuple):
    """What ``*`` stands for, made once: a thousand rules for it cost no more than one."""

    services: frozenset[tuple[str, ...]]
    targets: frozenset[Target]


def _service(name: str, shape: ServiceShape, names: Names, document: Document) -> Service:
    dev = None
    if shape.dev is not None:
        calls = {names.target(text): port for text, port in shape.dev.calls.items()}
        dev = Dev(app=MappingProxyType(shape.dev.app), calls=MappingProxyType(calls))
    return Service(name, MappingProxyType(shape.ports), dev, document.line(("services", name)))


def _rule(shape: RuleShape, every: _Every, names: Names, document: Document, index: int) -> Rule:
    sources = [names.pattern(text) for text in shape.from_ if text != "*"]
    plain = frozenset(segments for segments in sources if not WILDCARDS.intersection(segments))
    identities = plain
    if "*" in shape.from_:
        identities = every.services | plain if plain else every.services
    targets = frozenset(chain.from_iterable(names.targets(text) for text in shape.to if text != "*"))
    return Rule(
        trust_domain=names.trust_domain or "",
        name=shape.name or rule_name(shape.from_, shape.to),
        line=document.line(("policy", index)),
        from_=tuple(shape.from_),
        to=tuple(shape.to),
        identities=identities,
        patterns=tuple(Pattern(segments) for segments in dict.fromkeys(sources) if segments not in plain),
        targets=every.targets if "*" in shape.to else targets,
        action=shape.action,
        mode=shape.mode,
        until=shape.until,
    )
