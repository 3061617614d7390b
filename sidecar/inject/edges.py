"""Which service calls which, and the evidence for it. Pure.

Evidence is everything that the application itself declares: ``depends_on``, links, URLs and hosts in variables and commands,
and text in configuration that a service mounts or in the source that it alone is built from. A file that several services
share (the repository's root) is evidence for a port and not for a caller: otherwise every service could call every other.

Evidence is quoted by its place, never by its text: a variable's value may be a password.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from sidecar.inject.application import Application, ComposeService
from sidecar.inject.attribution import commands_of
from sidecar.inject.keys import is_certain_host, words
from sidecar.inject.references import in_command, in_environment, in_text, variables_of
from sidecar.inject.visibility import App, app_of, leads_to, names_for, neighbours
from sidecar.inject.wellknown import PROTOCOLS, Known, known, serves_files

Kind = Literal["depends_on", "links", "environment", "command", "healthcheck", "mounted", "build", "shared", "cluster"]

_CONFIGURATION = re.compile(r"(?i).*\.(?:ya?ml|json|toml|ini|conf|cfg|cnf|properties|env|xml|template)")
_PROGRAM = re.compile(
    r"(?i).*\.(?:pyi?|[cm]?[jt]sx?|vue|svelte|go|rs|java|kt|scala|cs|php|rb|exs?|cc?|cpp|h|hpp|swift|html?)"
)
_DOTENV = re.compile(r"(?:.*/)?\.env(?:\.\w+)?")
_FACE = re.compile(r"(?i)(?:^|[-_])(?:front(?:end)?|client|ui|static|assets|spa|webapp)(?:$|[-_\d])")
"""A program for browsers. It is often given the variables of its server's database too."""
_SHELL = re.compile(r"^\W*(?:\S*/)?(?:ba|da)?sh\s+(?:-\w+\s+)*")
_ON_FILES = re.compile(
    r"[\s\"'({]*(?:(?:\S*/)?(?:cp|mv|rm|ln|ls|cat|chown|chmod|mkdir|touch|tar|rsync|echo|true|set|exit|install)\b.*)?[\s\"')}]*"
)
_UPSTREAM = re.compile(r"^\s*upstream\s+([\w.-]+)\s*\{", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Text:
    """A text file of a service: ``mounted`` into it, in its own ``build`` context, or ``shared`` with other services."""

    label: str
    text: str
    kind: Literal["mounted", "build", "shared"]

    @property
    def is_configuration(self) -> bool:
        """Whether a bare name may be a host there: in what is mounted and is no program, and in a source's settings."""
        if self.kind == "mounted":
            return _PROGRAM.fullmatch(self.label) is None
        return self.kind == "build" and _CONFIGURATION.fullmatch(self.label) is not None

    @property
    def is_of_a_program(self) -> bool:
        """Whether it is a program, or the settings that a program reads from its own directory."""
        return _PROGRAM.fullmatch(self.label) is not None or _DOTENV.fullmatch(self.label) is not None


@dataclass(frozen=True, slots=True)
class Mention:
    """One place where ``caller`` names ``callee``, with a port or without."""

    caller: str
    callee: str
    port: int | None
    kind: Kind
    where: str


@dataclass(frozen=True, slots=True)
class StaticReference:
    """One place where ``caller`` names ``callee`` by its fixed address on a network. ``why`` is the reason if there is
    another: a cluster whose members tell each other their addresses."""

    caller: str
    callee: str
    network: str
    where: str
    why: str = ""

    @property
    def reason(self) -> str:
        return self.why or f"{self.caller} calls {self.callee} by its fixed address there ({self.where})"


@dataclass(frozen=True, slots=True)
class Edge:
    """All mentions of one caller and callee. Empty ``ports``: every port of the callee. ``bare``: some place names the
    callee and no port, and is more than an order of start."""

    caller: str
    callee: str
    ports: tuple[int, ...]
    where: tuple[str, ...]
    bare: bool = False


def find_mentions(
    application: Application,
    apps: Mapping[str, App],
    texts: Mapping[str, tuple[Text, ...]],
    dockerfiles: Mapping[str, str],
) -> tuple[Mention, ...]:
    """Every mention of an app by another app that shares a network with it."""
    owners = app_of(apps)
    images = {name: known(it.image) for name, it in application.services.items()}
    stores = {name for name, image in images.items() if image is not None and image.is_store}
    listens = {
        app.name: frozenset().union(*(_listens(it, images[it.name]) for it in app.members)) for app in apps.values()
    }
    faces = {name for name, image in images.items() if (image is not None and image.is_web) or _FACE.search(name)}
    found: dict[Mention, None] = {}
    for app in apps.values():
        near = neighbours(app, apps)
        names = leads_to(names_for(app, apps, near))
        for service in app.members:
            prefix = "" if service.name == app.name else f"{service.name}: "
            built = variables_of(dockerfiles.get(service.name, ""))
            started = " ".join(commands_of(dockerfiles.get(service.name, ""), "")) if not service.command else ""
            given = _given(service.name, application, stores, faces)
            found_here = _references_of(service, names, owners, texts.get(service.name, ()), built, started, given)
            for callee, port, kind, where in found_here:
                if callee != app.name and callee in near:
                    ports = (port,) if port is not None or kind != "environment" else _meant(where, listens[callee])
                    for it in ports:
                        found[Mention(app.name, callee, it, kind, prefix + where)] = None
    return tuple(found)


def _listens(service: ComposeService, image: Known | None) -> frozenset[int]:
    known_ports = (*image.clients, *image.administration) if image is not None else ()
    return frozenset({*service.declared("tcp"), *known_ports})


def _meant(key: str, ports: Collection[int]) -> tuple[int | None, ...]:
    """The ports that the protocol in a key's name means, if the callee listens there; None if that is not said."""
    return tuple(sorted({port for word in words(key) for port in PROTOCOLS.get(word, ()) if port in ports})) or (None,)


def _given(
    service: str, application: Application, stores: Collection[str], faces: Collection[str]
) -> Mapping[tuple[str, str], Collection[str]]:
    """Variables that a service was given with a file for several services, and the callees that it does not call for
    them: a database calls nobody for the sake of others' variables, and what runs in browsers calls no database."""
    if service not in stores and service not in faces:
        return {}
    of, callees = (stores, application.services) if service in stores else ({*stores, *faces}, stores)
    users = [it for name, it in application.services.items() if name not in of]
    return {pair: callees for it in users for pair in it.environment.items()}


def _references_of(
    service: ComposeService,
    names: Mapping[str, str],
    owners: Mapping[str, str],
    texts: tuple[Text, ...],
    built: Mapping[str, str],
    started: str,
    given: Mapping[tuple[str, str], Collection[str]],
) -> Iterator[tuple[str, int | None, Kind, str]]:
    """``built`` are the variables of its Dockerfile, ``started`` is the command there if the service has none. ``given``
    are variables for others, with the callees that are not called for them."""
    linked = {name for name, _ in service.links}
    for name in linked:
        yield owners[name], None, "links", "links"
    for name, dependency in service.depends_on.items():
        if name in owners and name not in linked and dependency.condition != "service_completed_successfully":
            yield owners[name], None, "depends_on", "depends_on"
    variables = {**built, **service.arguments, **service.environment}
    if only_on_files(service.command or started):
        variables = {}
    places = dict.fromkeys(built, "Dockerfile") | dict.fromkeys(service.arguments, "build argument")
    places |= dict.fromkeys(service.environment, "environment")
    for key, reference in in_environment(variables, names):
        is_selector = places[key] == "build argument" and reference.port is None and not is_certain_host(key)
        if reference.callee not in given.get((key, variables[key]), ()) and not is_selector:
            yield reference.callee, reference.port, "environment", f"{places[key]} {key}"
    for reference in in_command(service.command, names, variables):
        yield reference.callee, reference.port, "command", "command"
    for reference in in_command(started, names, variables):
        yield reference.callee, reference.port, "command", "command of its Dockerfile"
    for reference in in_command(service.healthcheck, names, variables):
        yield reference.callee, reference.port, "healthcheck", "healthcheck"
    hidden = frozenset(name for text in texts if text.kind != "shared" for name in _UPSTREAM.findall(text.text))
    for text in texts:
        if text.kind == "mounted" and text.is_of_a_program and serves_files(service.image):
            continue
        certain = text.kind != "mounted" or not text.is_configuration
        found = in_text(
            text.text, names, words=text.is_configuration, certain=certain, variables=variables, hidden=hidden
        )
        for reference in found:
            yield reference.callee, reference.port, text.kind, f"{text.label}:{reference.line}"


def only_on_files(command: str) -> bool:
    """Whether a command does nothing but copy, remove and own files, so that it calls nobody."""
    parts = re.split(r"[;&|\n]+", _SHELL.sub("", command))
    return command.strip() != "" and all(_ON_FILES.fullmatch(part) for part in parts)


def find_edges(mentions: tuple[Mention, ...]) -> tuple[Edge, ...]:
    """The mentions of each caller and callee as one edge, sorted. Mentions in shared files make no edge."""
    together: dict[tuple[str, str], list[Mention]] = {}
    for mention in mentions:
        if mention.kind != "shared":
            together.setdefault((mention.caller, mention.callee), []).append(mention)
    return tuple(
        Edge(
            caller,
            callee,
            tuple(sorted({mention.port for mention in found if mention.port is not None})),
            tuple(dict.fromkeys(mention.where for mention in found)),
            any(mention.port is None and mention.kind not in {"depends_on", "links"} for mention in found),
        )
        for (caller, callee), found in sorted(together.items())
    )


def find_static_references(
    application: Application, apps: Mapping[str, App], texts: Mapping[str, tuple[Text, ...]]
) -> tuple[StaticReference, ...]:
    """Every place where an app names another app by its ``ipv4_address``."""
    fixed = {
        attachment.ipv4: (app.name, network)
        for app in apps.values()
        for network, attachment in app.owner.networks.items()
        if attachment.ipv4
    }
    found: dict[StaticReference, None] = {}
    for app in apps.values():
        for service in app.members:
            for where, text in _texts_of(service, texts.get(service.name, ())):
                for address in re.findall(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?!\.?\d)", text) if fixed else ():
                    callee, network = fixed.get(address, (app.name, ""))
                    if callee != app.name and network in app.owner.networks:
                        found[StaticReference(app.name, callee, network, where)] = None
    return tuple(found)


def find_subnet_mentions(
    application: Application, apps: Mapping[str, App], texts: Mapping[str, tuple[Text, ...]]
) -> tuple[tuple[str, str, str], ...]:
    """Every app that names the subnet of a network that it is on, the network, and where. Such an app usually admits
    callers by their address."""
    found: dict[tuple[str, str, str], None] = {}
    for app in apps.values():
        near = [application.networks[key] for key in app.owner.networks if key in application.networks]
        subnets = {subnet: network.key for network in near for subnet in network.subnets}
        for service in app.members:
            for where, text in _texts_of(service, texts.get(service.name, ())):
                for subnet, key in subnets.items():
                    if re.search(rf"(?<![\d.]){re.escape(subnet)}(?!\d)", text):
                        found[app.name, key, where] = None
    return tuple(found)


def _texts_of(service: ComposeService, texts: tuple[Text, ...]) -> Iterator[tuple[str, str]]:
    yield from ((f"environment {key}", value) for key, value in service.environment.items())
    yield from ((f"build argument {key}", value) for key, value in service.arguments.items())
    yield "command", service.command
    yield "healthcheck", service.healthcheck
    yield "extra_hosts or dns", " ".join(service.addresses)
    yield from ((text.label, text.text) for text in texts if text.kind != "shared")
