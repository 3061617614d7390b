"""``mesh.yaml``: the services of a mesh and which may call which, as frozen values. Pure, but for :func:`load_mesh`.

Fails closed: a file with any mistake in it yields no mesh, but one :class:`UsageError` with a line for each mistake. An
empty policy is no mistake; it denies everything. Decisions are in ``decide``.

The values of a rule's ``from`` and ``to``:

* ``from: web`` is the service of that name, and no other identity;
* ``from: user/alice`` is the declared person of that name;
* ``from: "*"`` is every service declared in this file (not every certificate of the trust domain);
* ``from: plaintext`` is whoever calls a port in ``mode: permissive`` without TLS; nothing else includes it;
* ``from: "spiffe://shop.internal/batch/*"`` is a pattern over whole path segments: ``*`` is one, ``**`` any number,
  including none; every other segment is itself, dots included. A pattern of one plain segment must be a declared service;
* ``to: "api:http"`` is one port, ``to: api`` all ports of a service, ``to: "*"`` all ports of all services; but
  ``to: "api:mesh-admin"``, the metrics of its sidecar, is in neither of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from itertools import chain, product
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from sidecar.documents.regular import Read, read_regular
from sidecar.documents.schema import Made, fields_of, frozen, values
from sidecar.documents.yaml12 import load_text, parse_yaml
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import SpiffeId
from sidecar.policy.index import Index
from sidecar.policy.mesh_yaml import MeshShape, RuleShape, ServiceShape, TestShape, parse_shape, rule_name
from sidecar.policy.names import ADMIN_PORT, PLAINTEXT, WILDCARDS, Caller, Names, Plaintext, Target

_NAMED_BY_NO_RULE = "*"
"""A path segment that only wildcards match: the grammar of SPIFFE IDs excludes it, so no rule can name it."""
_TWICE = ("**", "**")  # matches the same paths as a single one


@dataclass(frozen=True, slots=True)
class Pattern:
    """The path segments of an identity, with wildcards: ``*`` is any one segment, ``**`` any number of segments."""

    segments: tuple[str, ...]

    def matches(self, segments: Sequence[str]) -> bool:
        """Whether the path of these segments matches. The time is at most proportional to the product of both lengths."""
        places = self._past_any({0})
        for segment in segments:
            # An identity's segment is never "*" itself: the grammar of SPIFFE IDs has no such character.
            stay = {place for place in places if self.segments[place : place + 1] == ("**",)}
            step = {place + 1 for place in places if self.segments[place : place + 1] in {("*",), (segment,)}}
            places = self._past_any(stay | step)
        return len(self.segments) in places

    def samples(self, longest: int) -> Iterator[tuple[str, ...]]:
        """Sample paths of this pattern, enough to decide whether other patterns match all of its paths.

        In a sample each ``*`` is a segment that no rule names, and each ``**`` is a run of 0 to ``longest`` + 1 such
        segments. ``longest`` is the number of segments of the longest other pattern. If this pattern has a path that no
        other pattern matches, then it has such a path among the samples, for two reasons:

        * a segment that no rule names is matched by wildcards alone, so no other segment is matched by fewer patterns;
        * another pattern can match a run that is longer than itself only by a ``**``, which matches longer runs as well.

        The empty path is left out: no identity has it.
        """
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
        """``places``, and those that are reached from them where a ``**`` matches no segment."""
        reached = set(places)
        for place in range(len(self.segments)):
            if place in reached and self.segments[place] == "**":
                reached.add(place + 1)
        return reached


@frozen(kw_only=True)
class Rule(RuleShape):
    """One rule of the policy: its keys, and its line. ``from_`` and ``to`` are as they are written in the file.

    ``identities`` (by their path segments), ``patterns`` and ``plaintext`` (callers without TLS) are what ``from`` refers to
    in this mesh, ``targets`` is what ``to`` refers to.
    """

    trust_domain: str
    name: str
    line: int
    from_: tuple[str, ...]
    to: tuple[str, ...]
    identities: Made[frozenset[tuple[str, ...]]]
    patterns: Made[tuple[Pattern, ...]]
    targets: Made[frozenset[Target]]
    plaintext: bool = False

    def applies(self, source: Caller, target: Target, now: datetime) -> bool:
        """Whether the rule covers this call and is in force at ``now``, with any action and mode. Raises ValueError where it
        covers the call and ``now`` has no time zone."""
        return self.fits(source, target) and not self.ran_out(now)

    def fits(self, source: Caller, target: Target) -> bool:
        """Whether the rule covers this call, in force or not."""
        return target in self.targets and self.has_source(source)

    def has_source(self, source: Caller) -> bool:
        """Whether ``from`` includes this caller. It never includes one of another trust domain."""
        if isinstance(source, Plaintext):
            return self.plaintext
        return source.trust_domain == self.trust_domain and (
            source.segments in self.identities or any(pattern.matches(source.segments) for pattern in self.patterns)
        )

    def ran_out(self, now: datetime) -> bool:
        """Whether the rule's last day is over: it holds through the whole of ``until``, in UTC. Raises ValueError for a time
        without a time zone."""
        if now.tzinfo is None:
            raise ValueError("a time without a time zone cannot decide when a rule runs out")
        return self.until is not None and now.astimezone(UTC).date() > self.until

    def as_written(self) -> dict[str, object]:
        """The value of each key that a rule has in the file."""
        return {name: getattr(self, name) for name in fields_of(RuleShape)}


@frozen(kw_only=True)
class Service(ServiceShape):
    """A service and the line on which it is declared."""

    name: str
    line: int


@frozen(kw_only=True)
class PolicyTest(TestShape):
    """An expectation in the file: ``source`` may, or may not, call each of ``targets``."""

    from_: str
    to: tuple[str, ...]
    source: Made[Caller]
    targets: Made[tuple[Target, ...]]
    line: int


@frozen(kw_only=True)
class Mesh(MeshShape):
    """A whole, valid ``mesh.yaml``: its keys, and what its names refer to."""

    filename: str
    services: Made[Mapping[str, Service]]
    rules: Made[tuple[Rule, ...]]
    tests: Made[tuple[PolicyTest, ...]]
    version: str = ""
    """A digest of what the file says, comments and layout aside: sidecars with the same have the same policy in force."""
    ended: bool = False
    """Whether the text ends with a line ``...``."""
    _index: Made[Index[Rule]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_index", Index(self.rules))
        MeshShape.__post_init__(self)  # `super` does not find the class that `frozen` makes anew, with slots

    def rules_that_fit(self, source: Caller, target: Target) -> list[Rule]:
        """The rules that cover this call, in force or not, in the file's order."""
        if isinstance(source, Plaintext):
            return [rule for rule in self._index.for_plaintext(target) if rule.fits(source, target)]
        return [rule for rule in self._index.candidates(source.segments, target) if rule.fits(source, target)]

    def rules_for(self, target: Target) -> list[Rule]:
        """The rules for this port, in force or not, in the file's order."""
        return [rule for rule in self._index.for_target(target) if target in rule.targets]

    def identity(self, service: str) -> SpiffeId:
        """The identity of a declared service. Raises :class:`KeyError` for any other name."""
        return SpiffeId(self.trust_domain, (self.services[service].name,))

    def has(self, target: Target) -> bool:
        """Whether there is such a port."""
        service = self.services.get(target.service)
        return service is not None and (target.port in service.ports or target.port == ADMIN_PORT)

    def targets(self, text: str) -> tuple[Target, ...]:
        """The ports that ``api:http``, ``api`` or ``*`` refers to. Raises :class:`ValueError` with a message for people."""
        return self._names().targets(text)

    def target(self, text: str) -> Target:
        """The one port that ``api:http``, or ``api`` if it has one port, refers to. Raises :class:`ValueError`."""
        return self._names().target(text)

    def source(self, text: str) -> Caller:
        """The caller that ``plaintext``, a declared service's name, ``user/alice`` for a declared person, or a whole SPIFFE
        ID refers to. Raises :class:`ValueError`."""
        return self._names().source(text)

    def _names(self) -> Names:
        ports = {name: tuple(service.ports) for name, service in self.services.items()}
        return Names(self.trust_domain, ports, self.people)


def load_mesh(
    path: Path,
    read: Read = read_regular,
    in_force: Mesh | None = None,
    parse: Callable[[str, str], Mesh] | None = None,
) -> Mesh:
    """Reads a mesh file. If the text ``in_force`` ends with ``...``, one that does not is incomplete. ``parse``: in place of
    :func:`parse_mesh`. Raises :class:`UsageError`."""
    mesh = (parse or parse_mesh)(load_text(path, read), str(path))
    if in_force is not None and in_force.ended and not mesh.ended:
        raise UsageError(
            f"{path}: is incomplete: the text in force ends with a line ..., and this one does not; "
            "write that line at its end, or restart if it is to be without"
        )
    return mesh


def parse_mesh(text: str, filename: str) -> Mesh:
    """Parses a mesh file's text. Raises :class:`UsageError` with every mistake in it, a line each."""
    document = parse_yaml(text, filename)
    file, names = parse_shape(document)
    every = _Every(frozenset((service,) for service in names.ports), frozenset(names.targets("*")))
    lines = document.line
    services = {
        name: Service(**values(keys), name=name, line=lines(("services", name))) for name, keys in file.services.items()
    }
    resolved = {
        "services": MappingProxyType(services),
        "rules": tuple(_rule(keys, every, names, lines(("policy", i))) for i, keys in enumerate(file.rules)),
        "tests": tuple(_test(keys, names, lines(("tests", i))) for i, keys in enumerate(file.tests)),
    }
    version = sha256(repr(document.data).encode()).hexdigest()[:12]
    return Mesh(**values(file) | resolved, filename=filename, version=version, ended=document.ended)


class _Every(NamedTuple):
    """What ``*`` refers to. It is made once, so a thousand rules with ``*`` take no more memory than one."""

    services: frozenset[tuple[str, ...]]
    targets: frozenset[Target]


def _rule(keys: RuleShape, every: _Every, names: Names, line: int) -> Rule:
    sources = [names.pattern(text) for text in keys.from_ if text not in {"*", str(PLAINTEXT)}]
    plain = frozenset(segments for segments in sources if not WILDCARDS.intersection(segments))
    identities = plain
    if "*" in keys.from_:
        identities = every.services | plain if plain else every.services
    targets = frozenset(chain.from_iterable(names.targets(text) for text in keys.to if text != "*"))
    named = values(keys) | {"name": keys.name or rule_name(keys.from_, keys.to)}
    return Rule(
        **named,
        trust_domain=names.trust_domain or "",
        line=line,
        identities=identities,
        patterns=tuple(Pattern(segments) for segments in dict.fromkeys(sources) if segments not in plain),
        targets=every.targets if "*" in keys.to else targets,
        plaintext=str(PLAINTEXT) in keys.from_,
    )


def _test(keys: TestShape, names: Names, line: int) -> PolicyTest:
    targets = tuple(dict.fromkeys(chain.from_iterable(map(names.targets, keys.to))))
    return PolicyTest(**values(keys), source=names.source(keys.from_), targets=targets, line=line)
