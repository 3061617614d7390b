"""``sidecar.yaml`` and ``SIDECAR_…`` variables: one sidecar's wiring, as frozen values. Pure, but for :func:`load_config`.

Fails closed: a file with any mistake in it gives no configuration at all but one :class:`UsageError` with a line for each
mistake. Two kinds of wiring are refused though every value in them is right, because they would open what the sidecar is
there to close:

* a *plaintext* listener (``outbound``) where a neighbour could reach it and so speak in the service's name: on a wildcard
  address always, elsewhere than on loopback unless ``allow_from`` says who may connect;
* an app or a peer that is one of this sidecar's own listeners: a connection would run in circles.

A scalar that is not inside a list can also come from the environment, and then wins over the file: ``timeouts: {drain:
8s}`` is ``SIDECAR_TIMEOUTS_DRAIN=8s``. Relative paths are relative to the file that names them, those in variables to the
working directory.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, ValidationInfo

from sidecar import policy
from sidecar.durations import parse_duration
from sidecar.identity import shown
from sidecar.mesh import Mesh, Target, parse_mesh
from sidecar.reasons import UsageError
from sidecar.yamlfile import (
    DataPath,
    Document,
    Problems,
    Shape,
    bare_type,
    did_you_mean,
    fault,
    keys_at,
    load_text,
    nothing_is_empty,
    nothing_is_none_of_them,
    one_is_a_list,
    parse_yaml,
    part,
    parts,
    path_text,
)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
LogFormat = Literal["auto", "json", "console"]

PREFIX = "SIDECAR_"

_IP = ipaddress.IPv4Address | ipaddress.IPv6Address
_LOOPBACKS: tuple[_IP, ...] = (ipaddress.IPv4Address("127.0.0.1"), ipaddress.IPv6Address("::1"))
_EVERY_ADDRESS = ipaddress.IPv6Address("::")  # the sockets made for it take IPv4 too
_HOST_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_LIKE_A_NUMBER = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")
_PORT = re.compile(r"[0-9]{1,5}")
_DEVICE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,14}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Address:
    """A host, by name or IP address, and a port. The text of it brackets IPv6: ``[::1]:80``."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def ip(self) -> _IP | None:
        """The IP address that ``host`` is, an IPv4 address inside of IPv6 as itself; None for a name."""
        try:
            found = ipaddress.ip_address(self.host)
        except ValueError:
            return None
        return found.ipv4_mapped or found if isinstance(found, ipaddress.IPv6Address) else found

    @property
    def is_wildcard(self) -> bool:
        """Whether listening here is listening on every address of the machine."""
        return self.ip is not None and self.ip.is_unspecified

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine (or this container) reaches it."""
        return self.host.lower() == "localhost" if self.ip is None else self.ip.is_loopback


def parse_address(text: str, *, listening: bool = False) -> Address:
    """Reads ``host:port``, the host a name, an IPv4 address or an IPv6 address in brackets.

    Port 0, "any free one", is for ``listening`` alone; the wildcard addresses too. Raises :class:`ValueError`, worded for
    people. A host like ``0``, ``127.1`` or ``0x7f.1``, which the system's resolver would take for an IPv4 address, is
    refused: checks made on the text would miss what it is.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not _PORT.fullmatch(port) or int(port) > 65535:
        raise ValueError(f"{shown(text)} is no host:port, with a port of 1 to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        _, zone, device = host.partition("%")
        if not _is_ip(ipaddress.IPv6Address, host) or (zone and not _DEVICE.fullmatch(device)):
            raise ValueError(f"{shown(text)}: what is in the brackets is no IPv6 address")
    elif not host:
        raise ValueError(f"{shown(text)} has no host: say which address")
    elif ":" in host:
        raise ValueError(f"{shown(text)} is no host:port; an IPv6 address is written in brackets, as [::1]:80")
    elif not _is_ip(ipaddress.IPv4Address, host) and not _is_host_name(host):
        raise ValueError(f"{shown(text)}: {shown(host)} is no host name or IP address")
    address = Address(host, int(port))
    if not listening and (address.port == 0 or address.is_wildcard):
        raise ValueError(f"{shown(text)} can be listened on, not connected to: say which address and port")
    return address


def _is_ip(kind: type[_IP], host: str) -> bool:
    try:
        kind(host)
    except ValueError:
        return False
    return True


def _is_host_name(host: str) -> bool:
    labels = host.split(".")
    return (
        len(host) <= 253
        and all(_HOST_LABEL.fullmatch(label) for label in labels)
        and not _LIKE_A_NUMBER.fullmatch(labels[-1])
    )


# --- the values ------------------------------------------------------------------------------------------------------


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
    listen: Address


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
    merged = _with_environment(parse_yaml(load_text(path), str(path)), environ)
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
        shape = _shape(merged, mesh)
    except UsageError as error:
        mistakes.append(str(error))
    if mesh is None or mistakes:
        raise UsageError("\n".join(mistakes))
    return _config(shape, merged, mesh)


def parse_config(text: str, filename: str, environ: Mapping[str, str], mesh: Mesh) -> Config:
    """Reads a sidecar file's text, given its mesh. Raises :class:`UsageError` with every mistake in it, a line each."""
    merged = _with_environment(parse_yaml(text, filename), environ)
    return _config(_shape(merged, mesh), merged, mesh)


def warnings(config: Config, now: datetime) -> list[str]:
    """What is worth saying of a valid configuration: it will be refused what it is wired for, or nobody may use it."""
    mesh, service = config.mesh, config.service
    said = []
    for i, outbound in enumerate(config.outbound):
        decision = policy.decide(mesh, mesh.identity(service), outbound.service, outbound.port, now)
        if not decision.allowed:
            said.append(f"{config.path}: outbound[{i}]: every connection will be refused: {decision.why}")
    said += [
        f"{config.path}: inbound[{i}]: nobody may call {service}:{inbound.port}: no rule allows it"
        for i, inbound in enumerate(config.inbound)
        if not policy.has_callers(mesh, service, inbound.port, now)
    ]
    return said + policy.warnings(mesh, now)


# --- the file's shape ------------------------------------------------------------------------------------------------


def _mesh(info: ValidationInfo) -> Mesh | None:
    """The mesh that names are looked up in; None where it is broken itself, and only shapes are checked."""
    return info.context if isinstance(info.context, Mesh) else None


def _service(text: str, info: ValidationInfo) -> str:
    mesh = _mesh(info)
    if mesh is not None and text not in mesh.services:
        raise fault(f"unknown service {shown(text)}{did_you_mean(text, mesh.services)}")
    return text


def _to(text: str, info: ValidationInfo) -> str:
    mesh = _mesh(info)
    try:
        if mesh is not None:
            mesh.target(text)
    except ValueError as error:
        raise fault(str(error)) from error
    return text


def _listen(text: str) -> str:
    try:
        parse_address(text, listening=True)
    except ValueError as error:
        raise fault(str(error)) from error
    return text


def _destination(text: str) -> str:
    try:
        parse_address(text)
    except ValueError as error:
        raise fault(str(error)) from error
    return text


def _plaintext_listen(text: str, info: ValidationInfo) -> str:
    """Fails closed: a plaintext listener is where only its own app can reach it, or says who may."""
    why = "a neighbour could connect and speak in the service's name"
    if text.startswith((":", "*:")):
        raise fault(f"{shown(text)} is every address of this machine: {why}")
    address = parse_address(_listen(text), listening=True)
    if address.is_wildcard:
        raise fault(f"{shown(text)} is every address of this machine: {why}")
    if address.ip is None and not address.is_loopback:
        raise fault(f"{shown(text)} is a name, which may lead anywhere: say which IP address, or localhost")
    if not address.is_loopback and info.data.get("allow_from", "broken") is None:
        raise fault(f"{shown(text)} is not on loopback and has no `allow_from`: {why}")
    return text


def _network(text: str) -> str:
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise fault(f"{shown(text)} is no network: write it as 172.30.5.0/26, its host bits zero") from error
    if network.prefixlen == 0:
        raise fault(f"{shown(text)} is everybody: a neighbour could connect and speak in the service's name")
    return text


def _duration(text: str) -> str:
    try:
        parse_duration(text)
    except ValueError as error:
        raise fault(str(error)) from error
    return text


def _device(text: str) -> str:
    if not _DEVICE.fullmatch(text):
        raise fault(f"{shown(text)} is no name of a network interface")
    return text


def _ca_url(text: str) -> str:
    host = text.removeprefix("https://").removesuffix("/")
    try:
        if not text.startswith("https://"):
            raise ValueError("no https")
        parse_address(host if re.search(r":[0-9]+$", host) else f"{host}:443")
    except ValueError as error:
        raise fault(f"{shown(text)} is no address of a CA: write it as https://ca:8443") from error
    return text


def _fingerprint(text: str) -> str:
    if not _SHA256.fullmatch(_plain_hex(text)):
        raise fault(f"{shown(text)} is no SHA-256 fingerprint: 64 hexadecimal digits")
    return text


def _plain_hex(text: str) -> str:
    return text.replace(":", "").lower()


def _file_name(text: str) -> str:
    if not text:
        raise fault("names no file")
    return text


def _connections(number: int) -> int:
    if not 1 <= number <= 1_000_000:
        raise fault(f"is 1 to 1000000, not {number}")
    return number


def _not_empty(items: list[str]) -> list[str]:
    if not items:
        raise fault("is empty: name at least one")
    return items


_PathText = Annotated[str, AfterValidator(_file_name)]
_DurationText = Annotated[str, AfterValidator(_duration)]
_ListenText = Annotated[str, AfterValidator(_listen)]
_Destinations = Annotated[
    list[Annotated[str, AfterValidator(_destination)]], BeforeValidator(one_is_a_list), AfterValidator(_not_empty)
]
# A port named by its number may be written as a number.
_PortName = Annotated[str, BeforeValidator(lambda value: str(value) if type(value) is int else value)]


class FilesShape(Shape):
    certificate: _PathText
    key: _PathText
    bundle: _PathText


class IdentityShape(Shape):
    """Either ``files``, or the rest; which keys go together is checked in :func:`_add_identity_faults`."""

    files: FilesShape | None = None
    ca: Annotated[str, AfterValidator(_ca_url)] | None = None
    root: _PathText | None = None
    root_sha256: Annotated[str, AfterValidator(_fingerprint)] | None = None
    enrolment: _PathText | None = None
    state_dir: _PathText | None = None


class _ListenerShape(Shape):
    require_alpn: bool = False
    tolerate_missing_close_notify: bool = False
    idle_timeout: _DurationText | None = None
    max_age: _DurationText = "24h"


class InboundShape(_ListenerShape):
    port: _PortName
    listen: _ListenText
    app: _Destinations


class OutboundShape(_ListenerShape):
    to: Annotated[str, AfterValidator(_to)]
    peers: _Destinations
    allow_from: (
        Annotated[
            list[Annotated[str, AfterValidator(_network)]], BeforeValidator(one_is_a_list), AfterValidator(_not_empty)
        ]
        | None
    ) = None
    device: Annotated[str, AfterValidator(_device)] | None = None
    listen: Annotated[str, AfterValidator(_plaintext_listen)]  # after `allow_from`, which it looks at


class AdminShape(Shape):
    listen: _ListenText


class TimeoutsShape(Shape):
    handshake: _DurationText = "5s"
    connect: _DurationText = "5s"
    drain: _DurationText = "8s"


class LimitsShape(Shape):
    connections: Annotated[int, AfterValidator(_connections)] = 10_000


class ConfigShape(Shape):
    """The keys of a ``sidecar.yaml``."""

    service: Annotated[str, AfterValidator(_service)]
    mesh: _PathText
    identity: IdentityShape
    inbound: Annotated[list[InboundShape], BeforeValidator(nothing_is_none_of_them)] = Field([])
    outbound: Annotated[list[OutboundShape], BeforeValidator(nothing_is_none_of_them)] = Field([])
    admin: AdminShape | None = None
    timeouts: Annotated[TimeoutsShape, BeforeValidator(nothing_is_empty)] = TimeoutsShape()
    limits: Annotated[LimitsShape, BeforeValidator(nothing_is_empty)] = LimitsShape()
    log_format: LogFormat = "auto"


# --- the environment -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Merged:
    """A file's data with the environment's values in it, which values those are, and what is wrong so far."""

    document: Document
    data: Any
    given: Mapping[DataPath, str]
    problems: Problems

    def path(self, text: str, *where: str) -> Path:
        """A path that the file or, relative to the working directory, a variable names."""
        return Path(text) if where in self.given else Path(self.document.filename).parent / text


def variables() -> dict[str, DataPath]:
    """Every variable there is, made from the file's shape: ``SIDECAR_TIMEOUTS_DRAIN`` → ``("timeouts", "drain")``."""
    return {PREFIX + "_".join(map(str, path)).upper(): path for path in _scalars((), ConfigShape)}


def _scalars(path: DataPath, kind: Any) -> Iterator[DataPath]:
    kind = bare_type(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for key, inner in keys_at(kind, ()).items():
            yield from _scalars((*path, key), inner)
    elif get_origin(kind) in {None, Literal}:  # a list has no place in a variable
        yield path


def _with_environment(document: Document, environ: Mapping[str, str]) -> _Merged:
    """The file's data with the environment's values in it. An unknown variable is a problem: it would do nothing."""
    known = variables()
    data = deepcopy(document.data)
    unknown, given = [], {}
    for name in sorted(name for name in environ if name.startswith(PREFIX)):
        if name not in known:
            unknown.append(name)
            continue
        *outer, last = known[name]
        place = data
        for key in outer:
            if isinstance(place, dict) and place.get(key) is None:
                place[key] = {}
            place = part(place, key)
        if isinstance(place, dict):  # if not, the file has a value where a mapping belongs, and is refused for that
            place[last] = _value(environ[name], known[name])
            given[known[name]] = name
    problems = Problems(document, given)
    for path, name in given.items():
        if not environ[name].isprintable():
            problems.add(path, f"has a character that cannot be printed: {shown(environ[name])}")
    endings = [name.removeprefix(PREFIX) for name in known]
    for name in unknown:
        near = did_you_mean(name.removeprefix(PREFIX), endings).replace("'", f"'{PREFIX}", 1)
        problems.add_variable(name, f"unknown variable{near}")
    return _Merged(document, data, given, problems)


def _value(text: str, path: DataPath) -> str | int:
    """A variable's text as what the file would hold: a number where a number is wanted."""
    wanted = bare_type(keys_at(ConfigShape, path[:-1])[str(path[-1])])
    return int(text) if wanted is int and re.fullmatch(r"[0-9]{1,20}", text) else text


# --- what spans several parts of the file ----------------------------------------------------------------------------


def _shape(merged: _Merged, mesh: Mesh | None) -> ConfigShape:
    """The checked shape. Raises :class:`UsageError` with every mistake, a line each."""
    _add_identity_faults(merged.data, merged.problems)
    _add_port_faults(merged.data, mesh, merged.problems)
    _add_listener_faults(merged.data, merged.problems)
    try:
        shape = ConfigShape.model_validate(merged.data, context=mesh)
    except ValidationError as error:
        merged.problems.add_validation(error, ConfigShape)
        raise merged.problems.error() from error
    merged.problems.raise_any()
    return shape


def _add_identity_faults(data: Any, problems: Problems) -> None:
    identity = part(data, "identity")
    if not isinstance(identity, dict):
        return
    given = {key for key, value in identity.items() if value is not None}
    from_ca = {"ca", "root", "root_sha256", "enrolment", "state_dir"}
    if "files" in given and given & from_ca:
        problems.add(("identity",), "has 'files' and what belongs to 'ca': exactly one of the two")
    elif "files" not in given and not given & from_ca:
        problems.add(("identity",), "has neither 'files' (certificate, key, bundle) nor 'ca': exactly one of the two")
    elif "files" not in given:
        for key in ("ca", "state_dir"):
            if key not in given:
                problems.add(("identity",), f"'{key}' is missing")
        if len(given & {"root", "root_sha256"}) != 1:
            problems.add(("identity",), "needs exactly one of 'root' and 'root_sha256': whom to trust at first contact")


def _add_port_faults(data: Any, mesh: Mesh | None, problems: Problems) -> None:
    service = part(data, "service")
    if mesh is None or not isinstance(service, str) or service not in mesh.services:
        return
    for index, inbound in parts(part(data, "inbound")):
        port = part(inbound, "port")
        if isinstance(port, str | int):
            try:
                mesh.targets(f"{service}:{port}")
            except ValueError as error:
                problems.add(("inbound", index, "port"), str(error))


def _add_listener_faults(data: Any, problems: Problems) -> None:
    """Two listeners in one place, and destinations that are one of our own listeners."""
    listeners: dict[DataPath, Address] = {}
    for path, address in _addresses(data, listening=True):
        for other, taken in listeners.items():
            if _collide(address, taken):
                problems.add(path, f"'{address}' is taken already by {path_text(other)} ('{taken}')")
                break
        listeners[path] = address
    for path, address in _addresses(data, listening=False):
        for other, own in listeners.items():
            if _leads_to(address, own, listeners.values()):
                problems.add(path, f"'{address}' is this sidecar's own {path_text(other)} ('{own}'): a loop")
                break


def _addresses(data: Any, *, listening: bool) -> Iterator[tuple[DataPath, Address]]:
    """Where in the data which addresses are, as far as they can be read."""
    keys = ("listen",) if listening else ("app", "peers")
    entries = [((side, index), entry) for side in ("inbound", "outbound") for index, entry in parts(part(data, side))]
    for where, entry in [*entries, (("admin",), part(data, "admin"))]:
        for key in keys:
            value = part(entry, key)
            items = parts(value) if isinstance(value, list) else [(None, value)]
            for index, text in items:
                try:
                    address = parse_address(text, listening=listening)
                except (ValueError, AttributeError):
                    continue
                yield (*where, key) if index is None else (*where, key, index), address


def _places(address: Address) -> frozenset[_IP | str]:
    if address.host.lower() == "localhost":
        return frozenset(_LOOPBACKS)
    return frozenset({address.ip or address.host.lower()})


def _collide(one: Address, other: Address) -> bool:
    """Whether both cannot be listened on: ``0.0.0.0`` takes all of IPv4, ``::`` that too. A name may be any address."""
    if one.port != other.port or one.port == 0:
        return False
    if _places(one) & _places(other) or _EVERY_ADDRESS in (one.ip, other.ip):
        return True
    return any(
        isinstance(place, str) or place.version == 4
        for wildcard, beside in ((one, other), (other, one))
        if wildcard.is_wildcard
        for place in _places(beside)
    )


def _leads_to(destination: Address, listener: Address, listeners: Iterable[Address]) -> bool:
    """Whether a connection to ``destination`` ends at ``listener``, one of this sidecar's ``listeners``.

    At a wildcard listener ends what goes to loopback, or to any address of ours that the other listeners tell of.
    """
    if destination.port != listener.port:
        return False
    if not listener.is_wildcard:
        return bool(_places(destination) & _places(listener))
    own = frozenset[_IP | str]().union(*(_places(address) for address in listeners))
    return destination.is_loopback or bool(_places(destination) & own)


# --- building --------------------------------------------------------------------------------------------------------


def _config(shape: ConfigShape, merged: _Merged, mesh: Mesh) -> Config:
    return Config(
        path=Path(merged.document.filename),
        service=shape.service,
        mesh=mesh,
        mesh_path=merged.path(shape.mesh, "mesh"),
        identity=_identity(shape.identity, merged),
        inbound=tuple(_inbound(it) for it in shape.inbound),
        outbound=tuple(_outbound(it, mesh) for it in shape.outbound),
        admin=None if shape.admin is None else Admin(parse_address(shape.admin.listen, listening=True)),
        timeouts=Timeouts(
            handshake=_seconds(shape.timeouts.handshake),
            connect=_seconds(shape.timeouts.connect),
            drain=_seconds(shape.timeouts.drain),
        ),
        limits=Limits(connections=shape.limits.connections),
        log_format=shape.log_format,
    )


def _identity(shape: IdentityShape, merged: _Merged) -> FileIdentity | CaIdentity:
    if shape.files is not None:
        return FileIdentity(
            certificate=merged.path(shape.files.certificate, "identity", "files", "certificate"),
            key=merged.path(shape.files.key, "identity", "files", "key"),
            bundle=merged.path(shape.files.bundle, "identity", "files", "bundle"),
        )
    return CaIdentity(
        ca=shape.ca or "",
        root=None if shape.root is None else merged.path(shape.root, "identity", "root"),
        root_sha256=None if shape.root_sha256 is None else _plain_hex(shape.root_sha256),
        enrolment=None if shape.enrolment is None else merged.path(shape.enrolment, "identity", "enrolment"),
        state_dir=merged.path(shape.state_dir or "", "identity", "state_dir"),
    )


def _inbound(shape: InboundShape) -> Inbound:
    return Inbound(
        port=shape.port,
        listen=parse_address(shape.listen, listening=True),
        apps=tuple(parse_address(text) for text in shape.app),
        require_alpn=shape.require_alpn,
        tolerate_missing_close_notify=shape.tolerate_missing_close_notify,
        idle_timeout=None if shape.idle_timeout is None else _seconds(shape.idle_timeout),
        max_age=_seconds(shape.max_age),
    )


def _outbound(shape: OutboundShape, mesh: Mesh) -> Outbound:
    target = mesh.target(shape.to)
    return Outbound(
        service=target.service,
        port=target.port,
        listen=parse_address(shape.listen, listening=True),
        peers=tuple(parse_address(text) for text in shape.peers),
        allow_from=tuple(ipaddress.ip_network(text) for text in shape.allow_from or ()),
        device=shape.device,
        require_alpn=shape.require_alpn,
        tolerate_missing_close_notify=shape.tolerate_missing_close_notify,
        idle_timeout=None if shape.idle_timeout is None else _seconds(shape.idle_timeout),
        max_age=_seconds(shape.max_age),
    )


def _seconds(duration: str) -> float:
    return parse_duration(duration).total_seconds()
