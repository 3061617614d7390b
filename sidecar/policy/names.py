"""What the names in a mesh file refer to: ``web``, ``api:http``, ``*``, ``spiffe://shop.internal/batch/*``. Pure.

Fails closed: a name that is not declared raises :class:`ValueError` with a message for people; it never refers to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from sidecar.documents.problems import did_you_mean
from sidecar.identity.spiffe import MAX_ID_BYTES, PEOPLE, SpiffeId, is_segment, parse_spiffe_id, shown

ADMIN_PORT = "mesh-admin"
"""A port that every service has and none declares: its sidecar's own health and metrics. A rule means it only if it is
written in full (``api:mesh-admin``): neither ``api`` nor ``*`` includes it, in a ``deny`` rule neither."""

WILDCARDS = frozenset({"*", "**"})

_SPIFFE = "spiffe://"
_PERSON = f"{PEOPLE}/"


@dataclass(frozen=True, slots=True)
class Plaintext:
    """Whoever calls a permissive port without TLS. It is no identity: it proves nothing, so all of them are one caller to a
    rule, which must name it."""

    def __str__(self) -> str:
        return "plaintext"


PLAINTEXT = Plaintext()
"""The word that means it is reserved: no service has this name. Neither ``*`` nor a pattern includes it."""

Caller = SpiffeId | Plaintext
"""Whom the policy judges."""


class Target(NamedTuple):
    """A named port of a service, which a rule allows or forbids to call."""

    service: str
    port: str

    def __str__(self) -> str:
        return f"{self.service}:{self.port}"


@dataclass(frozen=True, slots=True)
class Names:
    """What a mesh file declares: its trust domain, the port names of each service, and people.

    None stands for a part that is present but cannot be read. It was reported where it was read, so names that refer to it
    are no further mistake, and have no target.
    """

    trust_domain: str | None
    ports: Mapping[str, tuple[str, ...] | None]
    people: tuple[str, ...] | None = ()

    def targets(self, text: str) -> tuple[Target, ...]:
        """The ports that ``api:http``, ``api`` or ``*`` refers to. Raises :class:`ValueError`."""
        if text == "*":
            return tuple(Target(service, port) for service, names in self.ports.items() for port in names or ())
        service, colon, port = text.partition(":")
        names = self._of(service)
        if port == ADMIN_PORT:
            return (Target(service, port),)
        if names is None:
            return ()
        if not names:
            raise ValueError(f"service {shown(service)} has no ports, so it cannot be called")
        if not colon:
            return tuple(Target(service, name) for name in names)
        if port not in names:
            hint = did_you_mean(port, names) or f" (it has {', '.join(map(shown, names))})"
            raise ValueError(f"service {shown(service)} has no port {shown(port)}{hint}")
        return (Target(service, port),)

    def target(self, text: str) -> Target:
        """The one port that ``api:http``, or ``api`` if it has one port, refers to. Raises :class:`ValueError`."""
        if text == "*":
            raise ValueError("'*' is not one port: say service:port")
        found = self.targets(text)
        if len(found) > 1:
            raise ValueError(
                f"{shown(text)} has several ports: say which of {', '.join(str(target) for target in found)}"
            )
        return found[0] if found else Target(text.partition(":")[0], "")

    def identity(self, text: str) -> SpiffeId:
        """The identity of a declared service, of a declared person (``user/alice``), or any whole SPIFFE ID. Raises
        :class:`ValueError`."""
        if text.startswith(_SPIFFE):
            return parse_spiffe_id(text)
        if text.startswith(_PERSON):
            return SpiffeId(self.trust_domain or "", (PEOPLE, self._person(text)))
        self._of(text)
        return SpiffeId(self.trust_domain or "", (text,))

    def source(self, text: str) -> Caller:
        """A caller: ``plaintext``, or :meth:`identity`. Raises :class:`ValueError`."""
        return PLAINTEXT if text == str(PLAINTEXT) else self.identity(text)

    def pattern(self, text: str) -> tuple[str, ...]:
        """The path segments, with wildcards, that an entry of a rule's ``from`` refers to: a declared service or person, or
        a pattern of this trust domain. Raises :class:`ValueError`.
        """
        if not text.startswith(_SPIFFE):
            return self.identity(text).segments
        trust_domain, *segments = text.removeprefix(_SPIFFE).split("/")
        if len(text) > MAX_ID_BYTES or not segments:
            raise ValueError(
                f"{shown(text)} is no pattern for identities: spiffe://<trust domain>/<segment or * or **>/…"
            )
        if self.trust_domain is not None and trust_domain != self.trust_domain:
            raise ValueError(f"{shown(text)} is of another trust domain than {shown(self.trust_domain)}")
        for segment in segments:
            if segment not in WILDCARDS and not is_segment(segment):
                why = "* and ** stand for whole segments only" if "*" in segment else "it is not of A-Z a-z 0-9 . _ -"
                raise ValueError(f"{shown(text)}: path segment {shown(segment)} is no pattern: {why}")
        if len(segments) == 1 and segments[0] not in WILDCARDS:
            self._of(segments[0])  # must be a declared service: a deny rule with a mistyped name would deny nothing
        return tuple(segments)

    def _of(self, service: str) -> tuple[str, ...] | None:
        """The port names of a declared service."""
        if service not in self.ports:
            hint = did_you_mean(service, self.ports)
            if service in (self.people or ()):
                hint = f" (the person of that name is {shown(_PERSON + service)})"
            raise ValueError(f"unknown service {shown(service)}{hint}")
        return self.ports[service]

    def _person(self, text: str) -> str:
        """The name of a declared person, written ``user/alice``."""
        name = text.removeprefix(_PERSON)
        if self.people is not None and name not in self.people:
            known = did_you_mean(name, self.people).replace("'", f"'{_PERSON}", 1)
            raise ValueError(f"unknown person {shown(text)}{known or ': `people:` declares none of that name'}")
        return name
