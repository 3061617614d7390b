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

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, ValidationInfo

from sidecar.durations import parse_duration
from sidecar.identity import (
    DEFAULT_MAX_LEAF_TTL,
    MAX_ID_BYTES,
    SpiffeId,
    is_segment,
    is_trust_domain,
    parse_spiffe_id,
    shown,
)
from sidecar.yamlfile import (
    DataPath,
    Document,
    Problems,
    Shape,
    did_you_mean,
    fault,
    load_text,
    nothing_is_empty,
    nothing_is_none_of_them,
    one_is_a_list,
    parse_yaml,
    part,
    parts,
)

Action = Literal["allow", "deny"]
Mode = Literal["enforce", "dry-run"]

_PORT_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_SPIFFE = "spiffe://"
_WILDCARDS = frozenset({"*", "**"})


class Target(NamedTuple):
    """A named port of a service: what a rule allows to call."""

    service: str
    port: str

    def __str__(self) -> str:
        return f"{self.service}:{self.port}"


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

    def has_source(self, segments: tuple[str, ...]) -> bool:
        """Whether ``from`` names the identity with these path segments (in our trust domain)."""
        return segments in self.identities or any(pattern.matches(segments) for pattern in self.patterns)


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
    """A whole, valid ``mesh.yaml``."""

    filename: str
    trust_domain: str
    services: Mapping[str, Service]
    rules: tuple[Rule, ...]
    tests: tuple[PolicyTest, ...]
    max_leaf_ttl: timedelta

    def identity(self, service: str) -> SpiffeId:
        """The identity of a declared service. Raises :class:`KeyError` for any other name."""
        return SpiffeId(self.trust_domain, (self.services[service].name,))

    def targets(self, text: str) -> tuple[Target, ...]:
        """The ports that ``api:http``, ``api`` or ``*`` stand for. Raises :class:`ValueError`, worded for people."""
        return resolve_targets(text, {name: tuple(service.ports) for name, service in self.services.items()})

    def target(self, text: str) -> Target:
        """The one port that ``api:http``, or ``api`` if it has one port, stands for. Raises :class:`ValueError`."""
        return one_target(text, {name: tuple(service.ports) for name, service in self.services.items()})

    def source(self, text: str) -> SpiffeId:
        """The identity that a declared service's name, or a whole SPIFFE ID, stands for. Raises :class:`ValueError`."""
        return _identity(text, _Names(self.trust_domain, dict.fromkeys(self.services, ())))


def load_mesh(path: Path) -> Mesh:
    """Reads a mesh file from disk. Raises :class:`UsageError`."""
    return parse_mesh(load_text(path), str(path))


def parse_mesh(text: str, filename: str) -> Mesh:
    """Reads a mesh file's text. Raises :class:`UsageError` with every mistake in it, a line each."""
    return mesh_of(parse_yaml(text, filename))


def mesh_of(document: Document) -> Mesh:
    """The mesh that a document describes. Raises :class:`UsageError` with every mistake in it, a line each."""
    problems = Problems(document)
    names = _Names.of(document.data)
    _add_cross_faults(document, names, problems)
    try:
        file = MeshShape.model_validate(document.data, context=names)
    except ValidationError as error:
        problems.add_validation(error, MeshShape)
        raise problems.error() from error
    problems.raise_any()
    return _mesh(file, names, document)


@dataclass(frozen=True, slots=True)
class _Names:
    """What the file declares, as far as it can be read: references are checked even where other parts are broken.

    A service whose ports cannot be read has None for them, so that one mistake is not told as many.
    """

    trust_domain: str | None
    ports: Mapping[str, tuple[str, ...] | None] = field(default_factory=dict)

    @classmethod
    def of(cls, data: Any) -> _Names:
        trust_domain = part(data, "trust_domain")
        services = part(data, "services")
        ports: dict[str, tuple[str, ...] | None] = {}
        for name, service in parts(services) if isinstance(services, dict) else ():
            declared = {} if service is None else part(service, "ports")
            if isinstance(service, dict) and "ports" not in service:
                declared = {}
            if isinstance(declared, dict):
                ports[name] = tuple(declared)
            else:
                ports[name] = (str(declared),) if isinstance(declared, int) else None
        return cls(trust_domain if isinstance(trust_domain, str) else None, ports)


# --- what names mean -------------------------------------------------------------------------------------------------


def resolve_targets(text: str, ports: Mapping[str, tuple[str, ...] | None]) -> tuple[Target, ...]:
    """The targets that ``api:http``, ``api`` or ``*`` stand for, given each service's port names.

    Raises :class:`ValueError`, worded for people. A service whose ports are None is not complained of, and has no target.
    """
    if text == "*":
        return tuple(Target(service, port) for service, names in ports.items() for port in names or ())
    service, colon, port = text.partition(":")
    if service not in ports:
        raise ValueError(f"unknown service {shown(service)}{did_you_mean(service, ports)}")
    names = ports[service]
    if names is None:
        return ()
    if not names:
        raise ValueError(f"service {shown(service)} has no ports, so nobody can call it")
    if not colon:
        return tuple(Target(service, name) for name in names)
    if port not in names:
        have = "" if did_you_mean(port, names) else f" (it has {', '.join(map(shown, names))})"
        raise ValueError(f"service {shown(service)} has no port {shown(port)}{did_you_mean(port, names)}{have}")
    return (Target(service, port),)


def one_target(text: str, ports: Mapping[str, tuple[str, ...] | None]) -> Target:
    """As :func:`resolve_targets`, for a place where exactly one port is meant."""
    if text == "*":
        raise ValueError("'*' is not one port: say service:port")
    found = resolve_targets(text, ports)
    if len(found) > 1:
        raise ValueError(f"{shown(text)} has several ports: say which of {', '.join(str(target) for target in found)}")
    return found[0] if found else Target(text.partition(":")[0], "")


def _source_segments(text: str, names: _Names) -> tuple[str, ...]:
    """The path segments, with wildcards, that one entry of ``from`` other than ``*`` stands for.

    Raises :class:`ValueError`, worded for people.
    """
    if not text.startswith(_SPIFFE):
        return _identity(text, names).segments
    trust_domain, *segments = text.removeprefix(_SPIFFE).split("/")
    if len(text) > MAX_ID_BYTES or not segments:
        raise ValueError(f"{shown(text)} is no pattern for identities: spiffe://<trust domain>/<segment or * or **>/…")
    if names.trust_domain is not None and trust_domain != names.trust_domain:
        raise ValueError(f"{shown(text)} is of another trust domain than {shown(names.trust_domain)}")
    for segment in segments:
        if segment not in _WILDCARDS and not is_segment(segment):
            why = "* and ** stand for whole segments only" if "*" in segment else "it is not of A-Z a-z 0-9 . _ -"
            raise ValueError(f"{shown(text)}: path segment {shown(segment)} is no pattern: {why}")
    if len(segments) == 1 and segments[0] not in _WILDCARDS:
        _identity(segments[0], names)  # one plain segment is a service, and a mistyped one would deny nothing
    return tuple(segments)


def _identity(text: str, names: _Names) -> SpiffeId:
    """The identity of a declared service, or any whole SPIFFE ID. Raises :class:`ValueError`, worded for people."""
    if text.startswith(_SPIFFE):
        return parse_spiffe_id(text)
    if text not in names.ports:
        raise ValueError(f"unknown service {shown(text)}{did_you_mean(text, names.ports)}")
    return SpiffeId(names.trust_domain or "", (text,))


# --- the file's shape ------------------------------------------------------------------------------------------------


def _names(info: ValidationInfo) -> _Names:
    if not isinstance(info.context, _Names):
        raise TypeError("a mesh file's shape is only checked with the names that the file declares")
    return info.context


def _checked(text: str, info: ValidationInfo, meaning: Callable[[str, _Names], object]) -> str:
    try:
        meaning(text, _names(info))
    except ValueError as error:
        raise fault(str(error)) from error
    return text


def _trust_domain(text: str) -> str:
    if not is_trust_domain(text):
        raise fault(f"{shown(text)} is no trust domain: 1 to 255 of a-z 0-9 . _ -")
    return text


def _service_name(text: str, info: ValidationInfo) -> str:
    if not is_segment(text):
        raise fault(f"{shown(text)} is no service name: of A-Z a-z 0-9 . _ -, and not . or ..")
    if len(str(SpiffeId(_names(info).trust_domain or "", (text,)))) > MAX_ID_BYTES:
        raise fault(f"a SPIFFE ID has at most {MAX_ID_BYTES} bytes, this service's would have more")
    return text


def _port_name(text: str) -> str:
    if not _PORT_NAME.fullmatch(text):
        raise fault(f"{shown(text)} is no port name: 1 to 63 of a-z 0-9 and, inside, -")
    return text


def _port_number(number: int) -> int:
    if not 1 <= number <= 65535:
        raise fault(f"a port is 1 to 65535, not {number}")
    return number


def _source(text: str, info: ValidationInfo) -> str:
    return text if text == "*" else _checked(text, info, _source_segments)


def _test_source(text: str, info: ValidationInfo) -> str:
    return _checked(text, info, _identity)


def _targets(text: str, info: ValidationInfo) -> str:
    return _checked(text, info, lambda text, names: resolve_targets(text, names.ports))


def _call(text: str, info: ValidationInfo) -> str:
    return _checked(text, info, lambda text, names: one_target(text, names.ports))


def _not_empty(items: list[str]) -> list[str]:
    if not items:
        raise fault("is empty, so the rule is about nobody")
    return items


def _rule_name(text: str) -> str:
    if not text or len(text) > 200:
        raise fault("a name has 1 to 200 characters")
    return text


def _date(text: str) -> str:
    try:
        _parsed_date(text)
    except ValueError as error:
        raise fault(f"{shown(text)} is no day: write it as 2027-01-31") from error
    return text


def _parsed_date(text: str) -> date:
    if not _DATE.fullmatch(text):  # fromisoformat would take "20270131" and week dates as well
        raise ValueError("not YYYY-MM-DD")
    return date.fromisoformat(text)


def _duration(text: str) -> str:
    try:
        parse_duration(text)
    except ValueError as error:
        raise fault(str(error)) from error
    return text


_PortNumber = Annotated[int, AfterValidator(_port_number)]
_Ports = Annotated[
    dict[Annotated[str, AfterValidator(_port_name)], _PortNumber],
    BeforeValidator(lambda value: {str(value): value} if type(value) is int else nothing_is_empty(value)),
]
_TargetList = Annotated[
    list[Annotated[str, AfterValidator(_targets)]], BeforeValidator(one_is_a_list), AfterValidator(_not_empty)
]


class DevShape(Shape):
    app: Annotated[dict[str, _PortNumber], BeforeValidator(nothing_is_empty)] = Field({})
    calls: Annotated[dict[Annotated[str, AfterValidator(_call)], _PortNumber], BeforeValidator(nothing_is_empty)] = (
        Field({})
    )


class ServiceShape(Shape):
    ports: _Ports = Field({})
    dev: DevShape | None = None


class RuleShape(Shape):
    name: Annotated[str, AfterValidator(_rule_name)] | None = None
    from_: Annotated[
        list[Annotated[str, AfterValidator(_source)]], BeforeValidator(one_is_a_list), AfterValidator(_not_empty)
    ] = Field(alias="from")
    to: _TargetList
    action: Action = "allow"
    mode: Mode = "enforce"
    until: Annotated[str, AfterValidator(_date)] | None = None


class TestShape(Shape):
    __test__ = False  # pytest, this is not a test case

    from_: Annotated[str, AfterValidator(_test_source)] = Field(alias="from")
    to: _TargetList
    expect: Action


class MeshShape(Shape):
    """The keys of a ``mesh.yaml``."""

    trust_domain: Annotated[str, AfterValidator(_trust_domain)]
    services: dict[
        Annotated[str, AfterValidator(_service_name)], Annotated[ServiceShape, BeforeValidator(nothing_is_empty)]
    ]
    policy: Annotated[list[RuleShape], BeforeValidator(nothing_is_none_of_them)] = Field([])
    tests: Annotated[list[TestShape], BeforeValidator(nothing_is_none_of_them)] = Field([])
    max_leaf_ttl: Annotated[str, AfterValidator(_duration)] | None = None


# --- what spans several parts of the file ----------------------------------------------------------------------------


def _add_cross_faults(document: Document, names: _Names, problems: Problems) -> None:
    """Finds what no single value shows. Works on raw data, any of which may be of a wrong shape."""
    first: dict[str, int] = {}
    for index, rule in parts(part(document.data, "policy")):
        at: DataPath = ("policy", index)
        if part(rule, "until") is not None and part(rule, "action") == "deny":
            problems.add((*at, "until"), "a deny rule cannot run out: at its end it would let in what it refuses")
        name = _name_of(rule)
        if name is not None and name in first:
            give = "" if part(rule, "name") is not None else ": give this one a name"
            problems.add(at, f"another rule (line {first[name]}) is called {shown(name)} already{give}")
        elif name is not None:
            first[name] = document.line(at)
    local: dict[int, int] = {}
    for service, shape in parts(part(document.data, "services")):
        own = names.ports.get(service)
        for key in ("app", "calls"):
            for port, number in parts(part(shape, "dev", key)):
                path: DataPath = ("services", service, "dev", key, port)
                if key == "app" and own is not None and port not in own:
                    problems.add(
                        path,
                        f"service {shown(str(service))} has no port {shown(str(port))}{did_you_mean(str(port), own)}",
                    )
                if isinstance(number, int) and number in local:
                    problems.add(path, f"local port {number} is taken already (line {local[number]})")
                elif isinstance(number, int):
                    local[number] = document.line(path)


def _name_of(rule: Any) -> str | None:
    """A rule's name, given or made of its ends; None where the rule is too broken to have one."""
    name = part(rule, "name")
    if name is not None:
        return name if isinstance(name, str) else None
    ends = [one_is_a_list(part(rule, end)) for end in ("from", "to")]
    if not all(isinstance(end, list) and all(isinstance(item, str) for item in end) for end in ends):
        return None
    return "->".join(",".join(end) for end in ends)


# --- the values ------------------------------------------------------------------------------------------------------


class _Every(NamedTuple):
    """What ``*`` stands for, made once: a thousand rules for it cost no more than one."""

    services: frozenset[tuple[str, ...]]
    targets: frozenset[Target]


def _mesh(file: MeshShape, names: _Names, document: Document) -> Mesh:
    every = _Every(frozenset((service,) for service in names.ports), frozenset(resolve_targets("*", names.ports)))
    return Mesh(
        filename=document.filename,
        trust_domain=file.trust_domain,
        services=MappingProxyType(
            {name: _service(name, shape, names, document) for name, shape in file.services.items()}
        ),
        rules=tuple(_rule(shape, every, names, document, index) for index, shape in enumerate(file.policy)),
        tests=tuple(
            PolicyTest(
                source=_identity(test.from_, names),
                from_=test.from_,
                to=tuple(test.to),
                targets=tuple(dict.fromkeys(chain.from_iterable(resolve_targets(it, names.ports) for it in test.to))),
                expect=test.expect,
                line=document.line(("tests", index)),
            )
            for index, test in enumerate(file.tests)
        ),
        max_leaf_ttl=DEFAULT_MAX_LEAF_TTL if file.max_leaf_ttl is None else parse_duration(file.max_leaf_ttl),
    )


def _service(name: str, shape: ServiceShape, names: _Names, document: Document) -> Service:
    dev = None
    if shape.dev is not None:
        calls = {one_target(text, names.ports): port for text, port in shape.dev.calls.items()}
        dev = Dev(app=MappingProxyType(shape.dev.app), calls=MappingProxyType(calls))
    return Service(name, MappingProxyType(shape.ports), dev, document.line(("services", name)))


def _rule(shape: RuleShape, every: _Every, names: _Names, document: Document, index: int) -> Rule:
    sources = [_source_segments(text, names) for text in shape.from_ if text != "*"]
    plain = frozenset(segments for segments in sources if not _WILDCARDS.intersection(segments))
    identities = plain
    if "*" in shape.from_:
        identities = every.services | plain if plain else every.services
    targets = frozenset(chain.from_iterable(resolve_targets(text, names.ports) for text in shape.to if text != "*"))
    return Rule(
        name=shape.name or f"{','.join(shape.from_)}->{','.join(shape.to)}",
        line=document.line(("policy", index)),
        from_=tuple(shape.from_),
        to=tuple(shape.to),
        identities=identities,
        patterns=tuple(Pattern(segments) for segments in dict.fromkeys(sources) if segments not in plain),
        targets=every.targets if "*" in shape.to else targets,
        action=shape.action,
        mode=shape.mode,
        until=None if shape.until is None else _parsed_date(shape.until),
    )
