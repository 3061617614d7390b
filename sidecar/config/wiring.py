"""One sidecar's wiring, from its ``sidecar.yaml`` and ``SIDECAR_…`` variables, as frozen values. Pure, but for
:func:`load_config`.

Fails closed: a file with any mistake in it gives no configuration at all but one :class:`UsageError` with a line for each
mistake. What a file may say is in ``configfile``, what variables may say is in ``environment``. Relative paths are relative
to the file that names them, those in variables to the working directory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sidecar.config.environment import Merged, with_environment
from sidecar.config.sidecar_yaml import (
    ConfigShape,
    IdentityShape,
    InboundShape,
    LogFormat,
    Network,
    OutboundShape,
    parse_shape,
)
from sidecar.documents.address import Address
from sidecar.documents.document import part
from sidecar.documents.yaml12 import load_text, parse_yaml
from sidecar.identity.reasons import UsageError
from sidecar.policy import decide
from sidecar.policy.mesh import Mesh, parse_mesh
from sidecar.policy.names import Target


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """A certificate (leaf, then intermediates), its key and the trust bundle, made and renewed by somebody else."""

    certificate: Path
    key: Path
    bundle: Path


@dataclass(frozen=True, slots=True)
class CaIdentity:
    """Where to enrol. Exactly one of ``root`` (a PEM file) and ``root_sha256`` (lower-case hex) pins the CA's root."""

    ca: str
    root: Path | None
    root_sha256: str | None
    enrolment: Path | None
    state_dir: Path


@dataclass(frozen=True, slots=True)
class Inbound:
    """An mTLS listener for one port of this service. Times in seconds; an ``idle_timeout`` of None is never."""

    port: str
    listen: Address
    apps: tuple[Address, ...]
    require_alpn: bool
    tolerate_missing_close_notify: bool
    idle_timeout: float | None
    max_age: float


@dataclass(frozen=True, slots=True)
class Outbound:
    """A plaintext listener that leads to one port of another service. Times in seconds.

    ``allow_from`` are the networks that may connect; empty only if ``listen`` is on loopback, and then it limits nothing.
    """

    service: str
    port: str
    listen: Address
    peers: tuple[Address, ...]
    allow_from: tuple[Network, ...]
    device: str | None
    require_alpn: bool
    tolerate_missing_close_notify: bool
    idle_timeout: float | None
    max_age: float

    @property
    def target(self) -> Target:
        return Target(self.service, self.port)


@dataclass(frozen=True, slots=True)
class Admin:
    """Where it answers ``sidecar status``: an address on loopback, or the path of a Unix socket."""

    listen: Address | Path


@dataclass(frozen=True, slots=True)
class Timeouts:
    """In seconds."""

    handshake: float
    connect: float
    drain: float


@dataclass(frozen=True, slots=True)
class Limits:
    connections: int


@dataclass(frozen=True, slots=True)
class Config:
    """A whole, valid ``sidecar.yaml``, with the mesh it is part of."""

    path: Path
    service: str
    mesh: Mesh
    mesh_path: Path
    identity: FileIdentity | CaIdentity
    inbound: tuple[Inbound, ...]
    outbound: tuple[Outbound, ...]
    admin: Admin | None
    timeouts: Timeouts
    limits: Limits
    log_format: LogFormat


def load_config(path: Path, environ: Mapping[str, str]) -> Config:
    """Reads a sidecar's file and the mesh file that it names. Raises :class:`UsageError` with the mistakes of both."""
    merged = with_environment(parse_yaml(load_text(path), str(path)), environ)
    named = part(merged.data, "mesh")
    mesh, mistakes = None, []
    if isinstance(named, str) and named:
        mesh_path = merged.path(named, "mesh")
        try:
            text = load_text(mesh_path)
        except UsageError as error:
            merged.problems.add(("mesh",), str(error))
        else:
            try:
                mesh = parse_mesh(text, str(mesh_path))
            except UsageError as error:
                mistakes.append(str(error))
    try:
        shape = parse_shape(merged.data, merged.problems, mesh)
    except UsageError as error:
        mistakes.append(str(error))
    if mesh is None or mistakes:
        raise UsageError("\n".join(mistakes))
    return _config(shape, merged, mesh)


def parse_config(text: str, filename: str, environ: Mapping[str, str], mesh: Mesh) -> Config:
    """Reads a sidecar file's text, given its mesh. Raises :class:`UsageError` with every mistake in it, a line each."""
    merged = with_environment(parse_yaml(text, filename), environ)
    return _config(parse_shape(merged.data, merged.problems, mesh), merged, mesh)


def warnings(config: Config, now: datetime) -> list[str]:
    """What is worth saying of a valid configuration: it will be refused what it is wired for, or nobody may use it."""
    mesh, service = config.mesh, config.service
    said, unruled = [], []
    for i, outbound in enumerate(config.outbound):
        decision = decide.decide(mesh, mesh.identity(service), outbound.service, outbound.port, now)
        if decision.kind is decide.Kind.NO_RULE:
            unruled.append((f"outbound[{i}]", str(outbound.target)))
        elif not decision.allowed:
            said.append(f"{config.path}: outbound[{i}]: every connection will be refused: {decision.why}")
    if unruled:  # in one line: `sidecar inject` wires every neighbour, so that whoever is refused is refused by name
        where, targets = (", ".join(column) for column in zip(*unruled, strict=True))
        why = f"{service} may not call {targets}: {decide.NO_RULE}"
        said.append(f"{config.path}: {where}: every connection will be refused: {why}")
    said += [
        f"{config.path}: inbound[{i}]: nobody may call {service}:{inbound.port}: no rule allows it"
        for i, inbound in enumerate(config.inbound)
        if not decide.callers(mesh, service, inbound.port, now)
    ]
    return said + decide.warnings(mesh, now)


def _config(shape: ConfigShape, merged: Merged, mesh: Mesh) -> Config:
    return Config(
        path=Path(merged.document.filename),
        service=shape.service,
        mesh=mesh,
        mesh_path=merged.path(shape.mesh, "mesh"),
        identity=_identity(shape.identity, merged),
        inbound=tuple(_inbound(it) for it in shape.inbound),
        outbound=tuple(_outbound(it, mesh) for it in shape.outbound),
        admin=None if shape.admin is None else Admin(shape.admin.listen),
        timeouts=Timeouts(
            handshake=shape.timeouts.handshake, connect=shape.timeouts.connect, drain=shape.timeouts.drain
        ),
        limits=Limits(connections=shape.limits.connections),
        log_format=shape.log_format,
    )


def _identity(shape: IdentityShape, merged: Merged) -> FileIdentity | CaIdentity:
    if shape.files is not None:
        return FileIdentity(
            certificate=merged.path(shape.files.certificate, "identity", "files", "certificate"),
            key=merged.path(shape.files.key, "identity", "files", "key"),
            bundle=merged.path(shape.files.bundle, "identity", "files", "bundle"),
        )
    return CaIdentity(
        ca=shape.ca or "",
        root=None if shape.root is None else merged.path(shape.root, "identity", "root"),
        root_sha256=shape.root_sha256,
        enrolment=None if shape.enrolment is None else merged.path(shape.enrolment, "identity", "enrolment"),
        state_dir=merged.path(shape.state_dir or "", "identity", "state_dir"),
    )


def _inbound(shape: InboundShape) -> Inbound:
    return Inbound(
        port=shape.port,
        listen=shape.listen,
        apps=tuple(shape.app),
        require_alpn=shape.require_alpn,
        tolerate_missing_close_notify=shape.tolerate_missing_close_notify,
        idle_timeout=shape.idle_timeout,
        max_age=shape.max_age,
    )


def _outbound(shape: OutboundShape, mesh: Mesh) -> Outbound:
    target = mesh.target(shape.to)
    return Outbound(
        service=target.service,
        port=target.port,
        listen=shape.listen,
        peers=tuple(shape.peers),
        allow_from=tuple(shape.allow_from or ()),
        device=shape.device,
        require_alpn=shape.require_alpn,
        tolerate_missing_close_notify=shape.tolerate_missing_close_notify,
        idle_timeout=shape.idle_timeout,
        max_age=shape.max_age,
    )
