"""The keys of a ``mesh.yaml``, the values that each may have, and the keys that go together. Pure; fails closed.

Each key is a field here and nowhere else, with its default. The classes in ``mesh`` inherit these fields and add what their
values refer to: ``from`` and ``to`` stay text here, and are checked against the :class:`Names` that the file declares.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from datetime import date, timedelta
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

from sidecar.documents.checks import Info, as_text
from sidecar.documents.days import DAY_PATTERN, parse_day
from sidecar.documents.document import DataPath, Document, part, parts
from sidecar.documents.durations import PATTERN, parse_duration
from sidecar.documents.problems import Problems, did_you_mean
from sidecar.documents.schema import (
    After,
    Before,
    Between,
    Named,
    Shape,
    fit,
    frozen,
    nothing_is_empty,
    nothing_is_none_of_them,
    nothing_is_the_default,
    one_is_a_list,
    read_by,
)
from sidecar.identity.spiffe import (
    DEFAULT_MAX_LEAF_TTL,
    MAX_ID_BYTES,
    PEOPLE,
    SpiffeId,
    is_segment,
    is_trust_domain,
    shown,
)
from sidecar.policy.alarm_url import parse_alarm_url
from sidecar.policy.names import ADMIN_PORT, PLAINTEXT, Names, Target

Action = Literal["allow", "deny"]
Mode = Literal["enforce", "dry-run"]

_T = TypeVar("_T")

MOST_INSTANCES = 60
"""The CA names 64 certificates of an identity, and each renewal and restart leaves one for a while."""

LEAST_STALENESS_SECONDS = 120
"""The CA signs the list of revocations once a minute, and a sidecar fetches it every five seconds."""

MAX_PERSON = 200
"""Characters of a person's name."""

_PORT_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def parse_shape(document: Document) -> tuple[MeshShape, Names]:
    """The checked file and the names that it declares. Raises :class:`UsageError` with every mistake, a line each."""
    problems = Problems(document)
    names = declared_names(document.data)
    _add_rule_faults(document, problems)
    _add_dev_faults(document, names, problems)
    if names.people != () and PEOPLE in names.ports:
        problems.add(
            ("services", PEOPLE),
            f"with `people:` no service may be called {shown(PEOPLE)}: their identities begin with that word, and a pattern "
            "for them would mean it too",
        )
    return fit(MeshShape, document.data, problems, names), names


def declared_names(data: Any) -> Names:
    """What the file declares, as far as it can be read, so that names are checked even where other parts are broken."""
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
    people = one_is_a_list(part(data, "people") or ())
    known = isinstance(people, tuple) and all(isinstance(name, str) for name in people)
    return Names(trust_domain if isinstance(trust_domain, str) else None, ports, people if known else None)


def rule_name(sources: Iterable[str], targets: Iterable[str]) -> str:
    """The name of a rule without a ``name``: ``web->api:http``."""
    return f"{','.join(sources)}->{','.join(targets)}"


# --- values ----------------------------------------------------------------------------------------------------------


def _resolved_by(resolve: Callable[[Names, str], object]) -> After:
    """The text must be resolved by ``resolve`` among the names that the file declares."""

    def check(text: str, info: Info) -> str:
        resolve(_names(info), text)
        return text

    return After(check)


def _names(info: Info) -> Names:
    if not isinstance(info.context, Names):
        raise TypeError("a mesh file's shape can be checked only with the names that the file declares")
    return info.context


def _trust_domain(text: str) -> str:
    if not is_trust_domain(text):
        raise ValueError(f"{shown(text)} is no trust domain: 1 to 255 of a-z 0-9 . _ -")
    return text


def _service_name(text: str, info: Info) -> str:
    if not is_segment(text):
        raise ValueError(f"{shown(text)} is no service name: of A-Z a-z 0-9 . _ -, and not . or ..")
    if text == str(PLAINTEXT):
        raise ValueError(
            f"{shown(text)} is reserved: in a rule it is whoever calls without TLS; call your service by another name"
        )
    if len(str(SpiffeId(_names(info).trust_domain or "", (text,)))) > MAX_ID_BYTES:
        raise ValueError(f"a SPIFFE ID has at most {MAX_ID_BYTES} bytes, this service's would have more")
    return text


def _people(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not is_segment(name) or len(name) > MAX_PERSON:
            raise ValueError(
                f"{shown(name)} is no name of a person: 1 to {MAX_PERSON} of A-Z a-z 0-9 . _ -, not . or .."
            )
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{shown(twice)} is declared twice")
    return names


def _port_name(text: str) -> str:
    if not _PORT_NAME.fullmatch(text):
        raise ValueError(f"{shown(text)} is no port name: 1 to 63 of a-z 0-9 and, inside, -")
    if text == ADMIN_PORT:
        raise ValueError(
            f"{shown(text)} is reserved: every service has this port, at which its sidecar answers for itself; call yours "
            "by another name"
        )
    return text


def _not_empty(items: tuple[_T, ...]) -> tuple[_T, ...]:
    if not items:
        raise ValueError("is empty, so the rule covers no call")
    return items


def _call(value: object, info: Info) -> object:
    if info.context is None:
        return value
    target = _names(info).target(as_text(value))
    if target.port == ADMIN_PORT:
        raise ValueError(f"{target} is not served by `sidecar dev`: use `sidecar status`")
    return target


def _rule_name(text: str) -> str:
    if not text or len(text) > 200:
        raise ValueError("a name has 1 to 200 characters")
    return text


def _alarm_url(text: str) -> str:
    parse_alarm_url(text)
    return text


def _staleness(duration: timedelta) -> timedelta:
    if duration.total_seconds() < LEAST_STALENESS_SECONDS:
        raise ValueError(
            f"must be {LEAST_STALENESS_SECONDS}s or longer, not {duration.seconds}s: the CA signs a list once a minute, "
            "and with an older one no new connection is accepted"
        )
    return duration


_UNCHANGING = After(MappingProxyType)
_PortNumber = Annotated[int, Between(1, 65535, "a port is")]
Ports = Annotated[
    Mapping[Annotated[str, After(_port_name)], _PortNumber],
    Before(
        lambda value: {str(value): value} if type(value) is int else nothing_is_empty(value),
        _PortNumber | dict[str, _PortNumber] | None,
    ),
    _UNCHANGING,
]
_Some = Annotated[tuple[_T, ...], Before(one_is_a_list), After(_not_empty)]
_Source = Annotated[str, _resolved_by(lambda names, text: text in {"*", str(PLAINTEXT)} or names.pattern(text))]
_Caller = Annotated[str, _resolved_by(Names.source)]
_Targets = Annotated[str, _resolved_by(Names.targets)]
_Duration = Annotated[timedelta, read_by(parse_duration, PATTERN), Before(nothing_is_the_default)]
_Call = Annotated[Target, Before(_call, str)]

_NOTHING: Mapping[Any, Any] = MappingProxyType({})


# --- the keys --------------------------------------------------------------------------------------------------------


@frozen()
class Dev(Shape):
    """The local ports of a service under `sidecar dev`: where its app listens, and where its calls enter the mesh."""

    app: Annotated[Mapping[str, _PortNumber], Before(nothing_is_empty), _UNCHANGING] = field(
        default_factory=lambda: _NOTHING
    )
    """The local port on which the service's app listens, by port name. Default: the port's own number,
    where no other service has it."""
    calls: Annotated[Mapping[_Call, _PortNumber], Before(nothing_is_empty), _UNCHANGING] = field(
        default_factory=lambda: _NOTHING
    )
    """The local port at which this service's app reaches another service, by `service:port`. Default: chosen, and the same
    in every run."""


@frozen()
class ServiceShape(Shape):
    """One service. ``ports`` by name; empty for a service that calls and is not called."""

    ports: Ports = field(default_factory=lambda: _NOTHING)
    """The ports that other services may call: port name → port number; or a number alone, for one port named by its number.
    Without any, the service calls and is not called."""
    dev: Dev | None = None
    """Local ports for `sidecar dev`. Nothing else reads them."""
    instances: Annotated[int, Between(1, MOST_INSTANCES, "a number of instances is")] = 1
    """How many sidecars may have this service's identity at one time, each with a `state_dir` of its own. One more raises
    the alarm `identity_elsewhere`. The replicas of an app that share one sidecar count as one."""


@frozen(kw_only=True)
class AlarmShape(Shape):
    url: Annotated[str, After(_alarm_url)]
    """Where `certs serve` posts each new alarm as JSON: `https://…`, whose certificate the system's roots must verify; or
    `http://…`, to loopback and private addresses only. Whoever may read this file reads it."""


@frozen(kw_only=True)
class RuleShape(Shape):
    name: Annotated[str, After(_rule_name)] | None = None
    """The rule's name in logs, metrics and `sidecar policy explain`; unique. Default: made of its ends, such as
    `web->api:http`."""
    from_: Annotated[_Some[_Source], Named("from")]
    """The callers: a service's name; `user/alice`, a declared person; `"*"`, every declared service; or a pattern such as
    `spiffe://shop.internal/batch/*`, in which `*` is one whole path segment and `**` any number of them. One, or a list.
    A pattern includes whoever has such a certificate: `spiffe://shop.internal/**` every pass of a person too.
    `plaintext` is whoever calls a port in `mode: permissive` without TLS, and proves nothing: neither `"*"` nor a pattern
    includes it."""
    to: _Some[_Targets]
    """What is called: `service:port`; a service's name (all its ports); or `"*"` (all ports of all). One, or a list.
    `mesh-admin`, the port at which each sidecar answers for its own health and metrics, is meant only by
    `service:mesh-admin`."""
    action: Action = "allow"
    """Whether the rule allows or refuses. A `deny` rule wins over every `allow` rule."""
    mode: Mode = "enforce"
    """`dry-run`: what the rule would change is logged and counted, and not applied."""
    until: Annotated[date, read_by(parse_day, DAY_PATTERN)] | None = None
    """The last day (UTC, YYYY-MM-DD) on which the rule holds. Not for a `deny` rule. Default: no end."""
    connections: Annotated[int, Between(1, 1_000_000, "is")] | None = None
    """The most connections that the rule lets into one sidecar at a time; further ones are refused with `overloaded`, unless
    another rule allows them too. Idle kept channels do not count. Not for a `deny` rule. Default: no limit."""


@frozen(kw_only=True)
class TestShape(Shape):
    __test__ = False  # pytest, this is not a test case

    from_: Annotated[_Caller, Named("from")]
    """The caller: a service's name, `user/alice`, a whole SPIFFE ID, or `plaintext`."""
    to: _Some[_Targets]
    """What is called, as in a rule. Each port of it is a test."""
    expect: Action
    """What the policy must decide."""


@frozen(kw_only=True)
class MeshShape(Shape):
    """The keys of a ``mesh.yaml``."""

    trust_domain: Annotated[str, After(_trust_domain)]
    """The trust domain of every identity in the mesh, such as `shop.internal`: 1 to 255 of a-z 0-9 . _ -"""
    services: Annotated[
        Mapping[Annotated[str, After(_service_name)], Annotated[ServiceShape, Before(nothing_is_empty)]],
        _UNCHANGING,
    ]
    """Every service of the mesh, by name (A-Z a-z 0-9 . _ -). The identity of `web` is `spiffe://<trust domain>/web`."""
    people: Annotated[tuple[str, ...], Before(one_is_a_list), Before(nothing_is_none_of_them), After(_people)] = ()
    """People, by name (A-Z a-z 0-9 . _ -), to whom `certs pass` may give a way in for some hours. A rule names one as
    `user/alice`, whose identity is `spiffe://<trust domain>/user/alice`; `"*"` means none of them."""
    rules: Annotated[tuple[RuleShape, ...], Before(nothing_is_none_of_them), Named("policy")] = ()
    """Which callers may call which ports. A call that no rule allows is refused. The order of rules has no effect."""
    tests: Annotated[tuple[TestShape, ...], Before(nothing_is_none_of_them)] = ()
    """What the policy must decide; `sidecar policy test` checks it."""
    max_leaf_ttl: _Duration = DEFAULT_MAX_LEAF_TTL
    """The longest life of a certificate that is accepted."""
    revocation_staleness: Annotated[_Duration, After(_staleness)] = timedelta(hours=1)
    """How old the list of revocations may be, at least `2m`. With an older one a sidecar accepts no new connection."""
    reenrol_window: _Duration = timedelta(hours=24)
    """How long after its end a certificate may still be renewed with its key."""
    bundle_at_least: Annotated[int, Between(0, 2**53 - 1, "a version is")] = 0
    """The oldest version of the trust bundle that counts, as `certs renew-issuing --distrust` prints it. A sidecar with an
    older one sends no secret, takes no certificate, and lets no new connection in after `revocation_staleness`. For when
    the keys in the CA's directory were stolen: the thief may be what sidecars reach as their CA."""
    alarm: AlarmShape | None = None
    """Where alarms go. Without it, `certs alarms --follow` shows them."""


# --- keys that go together: checked in raw data, every part of which may have a wrong shape ------------------------------


def _add_rule_faults(document: Document, problems: Problems) -> None:
    """Adds deny rules with an end or a limit, and rules that share a name."""
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
        if part(rule, "connections") is not None and part(rule, "action") == "deny":
            problems.add((*at, "connections"), "a deny rule lets nothing in that could be counted")


def _name_of(rule: Any) -> str | None:
    """A rule's name, given or made of its ends; None where the rule is too broken for that."""
    name = part(rule, "name")
    if name is not None:
        return name if isinstance(name, str) else None
    sources, targets = (one_is_a_list(part(rule, end)) for end in ("from", "to"))
    if not all(isinstance(end, tuple) and all(isinstance(item, str) for item in end) for end in (sources, targets)):
        return None
    return rule_name(sources, targets)


def _add_dev_faults(document: Document, names: Names, problems: Problems) -> None:
    """Adds ports that the service does not have, and local ports that are used twice."""
    local: dict[int, int] = {}
    for service, shape in parts(part(document.data, "services")):
        own = names.ports.get(service)
        for key in ("app", "calls"):
            for port, number in parts(part(shape, "dev", key)):
                path: DataPath = ("services", service, "dev", key, port)
                if key == "app" and own is not None and port not in own:
                    hint = did_you_mean(str(port), own)
                    problems.add(path, f"service {shown(str(service))} has no port {shown(str(port))}{hint}")
                if isinstance(number, int) and number in local:
                    problems.add(path, f"local port {number} is taken already (line {local[number]})")
                elif isinstance(number, int):
                    local[number] = document.line(path)
