"""The ports at which each app is called. Pure.

Declared ports come first. Without any, the first of these sources that gives a port: the mentions of callers, the app's own
command, variables and health check, files, its Dockerfile, a table of well-known images, its program and source
(``listening``). What callers mention, and what is known of the image, is added to each: a published page for people hides no
port that services call. What to do about a port that is still unknown is in ``questions``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from sidecar.inject.edges import Edge, Mention
from sidecar.inject.listening import labelled_ports
from sidecar.inject.references import exposed_ports, health_ports, own_ports, ports_in_environment
from sidecar.inject.visibility import App
from sidecar.inject.wellknown import Known, Role, known

_DECLARED = "ports or expose"


@dataclass(frozen=True, slots=True)
class Port:
    """``role``: what the table of images says that it is for."""

    number: int
    origin: str
    role: Role = ""


def infer_ports(
    apps: Mapping[str, App],
    mentions: tuple[Mention, ...],
    dockerfiles: Mapping[str, str],
    given: Mapping[str, tuple[int, ...]],
    listening: Mapping[str, Mapping[int, str]] | None = None,
) -> dict[str, tuple[Port, ...]]:
    """The TCP ports of every app, each with its origin. ``given`` are the user's, and final. ``listening`` are
    the ports of each service according to its program and its source, with their origin; workers and jobs are not in it."""
    return {
        name: tuple(Port(number, "given") for number in given[name])
        if name in given
        else _ports(app, [it for it in mentions if it.callee == name], dockerfiles, listening)
        for name, app in apps.items()
    }


def settle(
    edges: tuple[Edge, ...], ports: Mapping[str, tuple[Port, ...]], jobs: Collection[str] = ()
) -> tuple[Edge, ...]:
    """The edges that name no port lead to the ports for clients, and not to those for peers and administration. An edge that
    names some ports, and in another place the callee alone, leads to both; so does one with a URL of no port, if the callee
    is known not to listen at that of the scheme. Who only starts after one of the ``jobs`` does not call it."""
    found = []
    for edge in edges:
        callee = ports[edge.callee]
        clients = {port.number for port in callee if port.role in {"client", ""}}
        if edge.callee in jobs and callee and not edge.ports and not edge.bare:
            continue
        if not edge.ports and len(clients) < len(callee):
            edge = replace(edge, ports=tuple(sorted(clients)))
        elif edge.ports and (edge.bare or _is_scheme_alone(edge, callee)):
            certain = {port.number for port in callee if port.role == "client"}
            edge = replace(edge, ports=tuple(sorted({*edge.ports, *certain})))
        found.append(edge)
    return tuple(found)


def _is_scheme_alone(edge: Edge, callee: tuple[Port, ...]) -> bool:
    declared = {port.number for port in callee if port.role or port.origin == _DECLARED}
    return {*edge.ports} <= {80, 443} - declared


def _ports(
    app: App,
    mentions: list[Mention],
    dockerfiles: Mapping[str, str],
    listening: Mapping[str, Mapping[int, str]] | None,
) -> tuple[Port, ...]:
    udp = {port for member in app.members for port in member.declared("udp")}
    udp -= {port for member in app.members for port in member.declared("tcp")}
    found: dict[int, str] = {}
    image = _known_image(app, dockerfiles)
    is_job = listening is not None and listening.keys().isdisjoint(member.name for member in app.members)
    if is_job and image is not None and not image.is_store:
        image = None  # it runs another command of that image, and does not serve
    for source in _sources(app, mentions, dockerfiles, listening or {}, image):
        found = dict(source)
        if found:
            break
    firm = [mention for mention in mentions if mention.kind != "shared"]
    for mention in firm:
        if mention.port is not None:
            found.setdefault(mention.port, f"{mention.where} of {mention.caller}")
    if image is not None and not image.is_web:
        found |= {port: origin for port, origin in _its_own(app).items() if port not in found}
        for port in (*_clients(app, image), *image.peers, *image.administration):
            found.setdefault(port, "what its image is known for")
    return tuple(
        Port(number, origin, image.role(number) if image is not None else "")
        for number, origin in sorted(found.items())
        if number not in udp
    )


def _clients(app: App, image: Known) -> tuple[int, ...]:
    """The image's ports for clients, but for those that the app moved: it sets others."""
    own = {port for port in _its_own(app) if image.role(port) in {"client", ""}}
    return image.clients if not own or own & {*image.clients} else ()


def _its_own(app: App) -> dict[int, str]:
    """What its command and its variables say."""
    own = dict.fromkeys(app.own_names(), app.name)
    said = {port: "its variables" for member in app.members for port in ports_in_environment(member.environment, own)}
    return said | {port: "its command" for member in app.members for port in own_ports(member.command)}


def _sources(
    app: App,
    mentions: list[Mention],
    dockerfiles: Mapping[str, str],
    listening: Mapping[str, Mapping[int, str]],
    image: Known | None,
) -> Iterator[dict[int, str]]:
    """The sources in order, each as ports with their origin."""
    yield {port: _DECLARED for member in app.members for port in member.declared("tcp")}
    yield {port: origin for member in app.members for port, origin in labelled_ports(member).items()}
    yield _ports_mentioned(mentions, {"environment", "command", "cluster"})
    yield _its_own(app)
    own = dict.fromkeys(app.own_names(), app.name)
    yield {port: "its health check" for member in app.members for port in health_ports(member.healthcheck, own)}
    yield _ports_mentioned(mentions, {"healthcheck", "mounted", "build", "shared"})
    # A worker that is built as a server is listens at none of the server's ports.
    servers = {dockerfiles.get(name) for name in listening}
    built = [it.name for it in app.members if it.name in listening or dockerfiles.get(it.name) not in servers]
    yield {port: "its Dockerfile" for name in built for port in exposed_ports(dockerfiles.get(name, ""))[0]}
    yield dict.fromkeys(image.clients, "what its image is known for") if image is not None else {}
    yield {port: origin for member in app.members for port, origin in listening.get(member.name, {}).items()}


def _ports_mentioned(mentions: list[Mention], kinds: set[str]) -> dict[int, str]:
    return {
        mention.port: f"{mention.where} of {mention.caller}"
        for mention in reversed(mentions)
        if mention.port is not None and mention.kind in kinds
    }


def _known_image(app: App, dockerfiles: Mapping[str, str]) -> Known | None:
    for member in app.members:
        base = exposed_ports(dockerfiles.get(member.name, ""))[1]
        found = known(base) if member.name in dockerfiles else known(member.image)
        if found is not None:
            return found
    return None
