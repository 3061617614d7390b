"""A ``sidecar.yaml`` as frozen values: its keys, what each value may be, and which go together. Pure; fails closed.

Each key is declared here and nowhere else. Its field says what the file may hold, what its environment variable may hold
(``environment``), what the program reads, and the default.

Two kinds of wiring are refused though every value in them is right, because they would open what the sidecar is there to
close:

* a *plaintext* listener (``outbound``) where a neighbour could reach it and so speak in the service's name: on a wildcard
  address always, elsewhere than on loopback unless ``allow_from`` says who may connect;
* an app or a peer that is one of this sidecar's own listeners (``collisions``).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from sidecar.config.collisions import add_listener_faults
from sidecar.documents.address import DEVICE, Address, ca_address, parse_address
from sidecar.documents.document import part, parts
from sidecar.documents.durations import parse_duration
from sidecar.documents.problems import Problems, did_you_mean
from sidecar.documents.schema import (
    Shape,
    as_text,
    fields_of,
    fit,
    frozen,
    nothing_is_empty,
    nothing_is_none_of_them,
    nothing_is_the_default,
    one_is_a_list,
    read,
    read_by,
    values,
)
from sidecar.identity.spiffe import shown
from sidecar.policy.mesh import Mesh
from sidecar.policy.names import Target

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
LogFormat = Literal["auto", "json", "console"]

_T = TypeVar("_T")

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a file is read: ``mesh`` is what names are looked up in, None where it is broken itself and only shapes are
    checked; relative paths of the file are relative to ``directory``."""

    mesh: Mesh | None
    directory: Path


def parse_shape(data: Any, problems: Problems, mesh: Mesh | None) -> ConfigShape:
    """The checked file. Raises :class:`UsageError` with every mistake, a line each, those in ``problems`` already too.

    A value that is a :class:`Path` already is left as it is. ``mesh`` is None where it is broken itself.
    """
    _add_identity_faults(data, problems)
    _add_port_faults(data, problems, mesh)
    add_listener_faults(data, problems)
    return fit(ConfigShape, data, problems, _Place(mesh, Path(problems.document.filename).parent))


# --- values ----------------------------------------------------------------------------------------------------------


def _service(text: str, info: ValidationInfo) -> str:
    mesh: Mesh | None = info.context and info.context.mesh
    if mesh is not None and text not in mesh.services:
        raise ValueError(f"unknown service {shown(text)}{did_you_mean(text, mesh.services)}")
    return text


def _to(value: object, info: ValidationInfo) -> object:
    if info.context is None:
        return value
    text, mesh = as_text(value), info.context.mesh
    return Target(text, "") if mesh is None else mesh.target(text)


def _listen(text: str) -> Address:
    return parse_address(text, listening=True)


def _admin_listen(text: str) -> Address | Path:
    """Where only this machine asks: loopback, or a Unix socket."""
    if text.startswith("unix:"):
        path = Path(text.removeprefix("unix:"))
        if not path.is_absolute():
            raise ValueError(f"{shown(text)} is no whole path: write it as unix:/run/sidecar/admin.sock")
        return path
    address = _listen(text)
    if not address.is_loopback:
        raise ValueError(
            f"{shown(text)} is not on loopback: a neighbour could ask who talks to whom; use 127.0.0.1 or unix:/…"
        )
    return address


def _plaintext_listen(value: object, info: ValidationInfo) -> Address:
    """Fails closed: a plaintext listener is where only its own app can reach it, or says who may."""
    text = str(value) if isinstance(value, Address) and info.context is None else as_text(value)
    why = "a neighbour could connect and speak in the service's name"
    address = None if text.startswith((":", "*:")) else _listen(text)
    if address is None or address.is_wildcard:
        raise ValueError(f"{shown(text)} is every address of this machine: {why}")
    if address.ip is None and not address.is_loopback:
        raise ValueError(f"{shown(text)} is a name, which may lead anywhere: say which IP address, or localhost")
    if not address.is_loopback and info.data.get("allow_from", "broken") == ():
        raise ValueError(f"{shown(text)} is not on loopback and has no `allow_from`: {why}")
    return address


def _network(text: str) -> Network:
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"{shown(text)} is no network: write it as 172.30.5.0/26, its host bits zero") from error
    if network.prefixlen == 0:
        raise ValueError(f"{shown(text)} is everybody: a neighbour could connect and speak in the service's name")
    return network


def _seconds(text: str) -> float:
    return parse_duration(text).total_seconds()


def _device(text: str) -> str:
    if not DEVICE.fullmatch(text):
        raise ValueError(f"{shown(text)} is no name of a network interface")
    return text


def _ca_url(text: str) -> str:
    ca_address(text)
    return text


def _fingerprint(text: str) -> str:
    digits = text.replace(":", "").lower()
    if not _SHA256.fullmatch(digits):
        raise ValueError(f"{shown(text)} is no SHA-256 fingerprint: 64 hexadecimal digits")
    return digits


def _file(value: object, info: ValidationInfo) -> object:
    """A file's name, relative to the file that names it; a path already, if the program or a variable names it."""
    if info.context is None or isinstance(value, Path):
        return value
    text = as_text(value)
    if not text:
        raise ValueError("names no file")
    return info.context.directory / text


def _connections(number: int) -> int:
    if not 1 <= number <= 1_000_000:
        raise ValueError(f"is 1 to 1000000, not {number}")
    return number


def _not_empty(items: tuple[_T, ...], info: ValidationInfo) -> tuple[_T, ...]:
    if not items and info.context is not None:
        raise ValueError("is empty: name at least one")
    return items


_File = Annotated[Path, BeforeValidator(_file, json_schema_input_type=str)]
_CaUrl = Annotated[str, AfterValidator(_ca_url)]
_Seconds = Annotated[float, read_by(_seconds)]
_Listen = Annotated[Address, read_by(_listen)]
_Some = Annotated[tuple[_T, ...], AfterValidator(_not_empty), BeforeValidator(one_is_a_list)]
_Destinations = _Some[Annotated[Address, read_by(parse_address)]]
_Networks = _Some[Annotated[Network, read_by(_network)]]
# A port named by its number may be written as a number.
_PortName = Annotated[str, BeforeValidator(lambda value: str(value) if type(value) is int else value)]


# --- the keys --------------------------------------------------------------------------------------------------------


@frozen()
class FileIdentity(Shape):
    """A certificate (leaf, then intermediates), its key and the trust bundle, made and renewed by somebody else."""

    certificate: _File
    key: _File
    bundle: _File


@frozen(kw_only=True)
class _Identity(Shape):
    """What ``identity`` may say: either ``files``, or the rest."""

    files: FileIdentity | None = None
    ca: _CaUrl | None = None
    root: _File | None = None
    root_sha256: Annotated[str, read_by(_fingerprint)] | None = None
    enrolment: _File | None = None
    state_dir: _File | None = None


@frozen(kw_only=True)
class CaIdentity(_Identity):
    """Where to enrol. Exactly one of ``root`` (a PEM file) and ``root_sha256`` (lower-case hex) pins the CA's root."""

    ca: _CaUrl
    state_dir: _File


def _which_identity(value: object, info: ValidationInfo) -> object:
    if info.context is None:
        return value
    keys = read(_Identity, value, info.context)
    for fault in _identity_faults({name for name, given in values(keys).items() if given is not None}):
        raise ValueError(fault)
    return keys.files or CaIdentity(**values(keys))


# The first of the two knows the keys of both: it is what `keys_at` sees.
_EitherIdentity = Annotated[
    CaIdentity | FileIdentity, BeforeValidator(_which_identity, json_schema_input_type=_Identity)
]


@frozen(kw_only=True)
class _Listener(Shape):
    """Times in seconds; an ``idle_timeout`` of None is never."""

    require_alpn: bool = False
    tolerate_missing_close_notify: bool = False
    idle_timeout: _Seconds | None = None
    max_age: _Seconds = 86400.0


@frozen(kw_only=True)
class Inbound(_Listener):
    """An mTLS listener for one port of this service."""

    port: _PortName
    listen: _Listen
    apps: Annotated[_Destinations, Field(alias="app")]


@frozen(kw_only=True)
class Outbound(_Listener):
    """A plaintext listener that leads to one port of another service.

    ``allow_from`` are the networks that may connect; empty only if ``listen`` is on loopback, and then it limits nothing.
    """

    target: Annotated[Target, BeforeValidator(_to, json_schema_input_type=str), Field(alias="to")]
    peers: _Destinations
    allow_from: Annotated[_Networks, BeforeValidator(nothing_is_the_default)] = ()
    device: Annotated[str, AfterValidator(_device)] | None = None  # "auto" is the interface that has the address
    # After `allow_from`, which it looks at
    listen: Annotated[Address, BeforeValidator(_plaintext_listen, json_schema_input_type=str)]

    @property
    def service(self) -> str:
        return self.target.service

    @property
    def port(self) -> str:
        return self.target.port


@frozen()
class Admin(Shape):
    """Where it answers ``sidecar status``: an address on loopback, or the path of a Unix socket."""

    listen: Annotated[Address | Path, read_by(_admin_listen)]


@frozen()
class Timeouts(Shape):
    """In seconds."""

    handshake: _Seconds = 5.0
    connect: _Seconds = 5.0
    drain: _Seconds = 8.0


@frozen()
class Limits(Shape):
    connections: Annotated[int, AfterValidator(_connections)] = 10_000


@frozen(kw_only=True)
class ConfigShape(Shape):
    """The keys of a ``sidecar.yaml``."""

    service: Annotated[str, AfterValidator(_service)]
    mesh_path: Annotated[_File, Field(alias="mesh")]
    identity: _EitherIdentity
    inbound: Annotated[tuple[Inbound, ...], BeforeValidator(nothing_is_none_of_them)] = ()
    outbound: Annotated[tuple[Outbound, ...], BeforeValidator(nothing_is_none_of_them)] = ()
    admin: Admin | None = None
    timeouts: Annotated[Timeouts, BeforeValidator(nothing_is_empty)] = Timeouts()
    limits: Annotated[Limits, BeforeValidator(nothing_is_empty)] = Limits()
    log_format: LogFormat = "auto"


@frozen(kw_only=True)
class Config(ConfigShape):
    """A whole, valid ``sidecar.yaml``, with where it is and the mesh it is part of."""

    path: Path
    mesh: Mesh


# --- what goes together: found in raw data, any of which may be of a wrong shape ----------------------------------------


def _add_identity_faults(data: Any, problems: Problems) -> None:
    identity = part(data, "identity")
    if not isinstance(identity, dict):
        return
    for fault in _identity_faults({key for key, value in identity.items() if value is not None}):
        problems.add(("identity",), fault)


def _identity_faults(given: Set[str]) -> Iterator[str]:
    """What is wrong with an identity of these keys."""
    from_ca = fields_of(CaIdentity).keys() - {"files"}
    if "files" in given and given & from_ca:
        yield "has 'files' and what belongs to 'ca': exactly one of the two"
    elif "files" not in given and not given & from_ca:
        yield "has neither 'files' (certificate, key, bundle) nor 'ca': exactly one of the two"
    elif "files" not in given:
        for key, field in fields_of(CaIdentity).items():
            if field.is_required() and key not in given:
                yield f"'{key}' is missing"
        if len(given & {"root", "root_sha256"}) != 1:
            yield "needs exactly one of 'root' and 'root_sha256': whom to trust at first contact"


def _add_port_faults(data: Any, problems: Problems, mesh: Mesh | None) -> None:
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
