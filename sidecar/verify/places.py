"""Where the mesh is: a running `sidecar dev`, sidecars by their files, or bare addresses. I/O: files, and a socket."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sidecar.config.sidecar_yaml import Config
from sidecar.config.wiring import load_config
from sidecar.dev import control
from sidecar.documents.address import Address, parse_address
from sidecar.documents.yaml12 import load_text, parse_yaml
from sidecar.host.clock import utc_now
from sidecar.identity.reasons import UsageError
from sidecar.policy.decide import decide
from sidecar.policy.names import ADMIN_PORT
from sidecar.verify.doors import Door, SocketDoor, ask
from sidecar.verify.judgement import Attempt, Edge, Listener
from sidecar.verify.stranger import Credential
from sidecar.verify.trial import App, Place

_ON_A_LAPTOP = "apps on this machine: every program of it reaches them on loopback, past their sidecars"
_IN_BETWEEN = "what lies between an app and its own sidecar: that hop is plaintext, on loopback or a private network"
_BY_HAND = "whether an app can be reached beside its sidecar: name where it must not be, with --app SERVICE=HOST:PORT"


def is_mesh_file(path: Path) -> bool:
    """Whether a file is a ``mesh.yaml`` rather than a sidecar's. Raises :class:`UsageError` if it cannot be read."""
    data = parse_yaml(load_text(path), str(path)).data
    return isinstance(data, dict) and "trust_domain" in data


def dev(mesh: Path, environ: Mapping[str, str]) -> Place:
    """The mesh that `sidecar dev` runs of this file now. Raises :class:`UsageError`."""
    listen = f"unix:{control.socket_path(mesh, environ)}"
    told = ask(listen, "/mesh")
    if "error" in told:
        raise UsageError(f"{mesh}: no `sidecar dev` of this file answers: {told['error']}")
    purposes = {"now": Attempt.NO_RULE, "expired": Attempt.EXPIRED}
    return Place(
        f"sidecar dev {mesh}",
        str(told["trust_domain"]),
        {name: SocketDoor(listen, name) for name in told["services"]},
        [_listener(target, address) for target, address in told["listeners"].items()],
        [Edge(call["from"], call["to"], call["allowed"]) for call in told["calls"]],
        {purposes[name]: Credential(**pem) for name, pem in told["probe"].items()},
        not_covered=[_ON_A_LAPTOP, _IN_BETWEEN],
    )


def listed(names: Iterable[str], identities: Mapping[Attempt, Path], apps: Iterable[str]) -> Place:
    """Sidecars of this machine by their files (``web.yaml``), and listeners anywhere by ``SERVICE:PORT=HOST:PORT``. Raises
    :class:`UsageError`."""
    credentials = {what: read_credential(directory) for what, directory in identities.items()}
    place = Place("these sidecars", "unknown.invalid", credentials=credentials)
    for name in names:
        if "=" in name:
            target, _, address = name.partition("=")
            _checked(name, address)
            place.listeners.append(_listener(target, address))
        else:
            _add(place, load_config(Path(name), {}))
    for text in apps:
        service, equals, address = text.partition("=")
        if not equals:
            raise UsageError(f"--app: {text!r} is not SERVICE=HOST:PORT")
        _checked(text, address)
        place.apps.append(App(service, address, "as this machine reaches it"))
    unasked = sorted({one.service for one in place.listeners} - place.doors.keys())
    if unasked:
        place.not_covered.append(
            f"why {', '.join(unasked)} refused: give the sidecar's file, and `admin: {{socket: …}}` in it, to ask it"
        )
    place.not_covered += [_IN_BETWEEN, *([] if place.apps else [_BY_HAND])]
    return place


def _add(place: Place, config: Config) -> None:
    """Adds a sidecar of this machine."""
    mesh = config.mesh
    place.trust_domain = mesh.trust_domain
    door = _door(config)
    if door is not None:
        place.doors[config.service] = door
    place.listeners += listeners_of(config)
    for route in config.outbound:
        decision = decide(mesh, mesh.identity(config.service), route.service, route.port, utc_now())
        edge = Edge(config.service, str(route.target), decision.allowed)
        place.edges += [edge] if edge not in place.edges else []


def listeners_of(config: Config) -> list[Listener]:
    """Where a sidecar accepts mutual TLS: its service's ports, and its own for health and metrics. One that listens on every
    address is on loopback too."""
    now = utc_now()
    ports = [(one.port, one.listen, str(one.until) if one.takes_plaintext(now) else "") for one in config.inbound]
    if config.admin is not None and config.admin.mesh_listen is not None:
        ports.append((ADMIN_PORT, config.admin.mesh_listen, ""))
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
    return [
        Listener(config.service, name, str(Address(near.get(at.host, at.host), at.port)), until)
        for name, at, until in ports
    ]


def _door(config: Config) -> Door | None:
    if config.admin is None:
        return None
    path = config.admin.socket or config.admin.listen
    return SocketDoor(f"unix:{path}") if isinstance(path, Path) else None


def read_credential(directory: Path) -> Credential:
    """``certificate.pem`` and ``key.pem`` of a directory, as `certs issue` writes them. Raises :class:`UsageError`."""
    try:
        credential = Credential(*((directory / name).read_text() for name in ("certificate.pem", "key.pem")))
        credential.check()
    except (OSError, ValueError) as fault:
        raise UsageError(f"{directory}: has no certificate.pem and key.pem that belong together: {fault}") from fault
    return credential


def _listener(target: str, address: Any) -> Listener:
    service, _, port = target.partition(":")
    return Listener(service, port, str(address))


def _checked(name: str, address: str) -> None:
    try:
        parse_address(address)
    except ValueError as fault:
        raise UsageError(f"{name}: {fault}") from fault
