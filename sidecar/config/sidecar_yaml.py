"""The keys of a ``sidecar.yaml``, what each of their values may be, and which go together. Pure; fails closed.

Two kinds of wiring are refused though every value in them is right, because they would open what the sidecar is there to
close:

* a *plaintext* listener (``outbound``) where a neighbour could reach it and so speak in the service's name: on a wildcard
  address always, elsewhere than on loopback unless ``allow_from`` says who may connect;
* an app or a peer that is one of this sidecar's own listeners (``collisions``).

Addresses, times and networks are read here, once. File names stay text, because what they are relative to depends on where
they were written; ``to`` stays text, because its mesh may be broken.
"""

from __future__ import annotations

import ipaddress
import re
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
    fit,
    nothing_is_empty,
    nothing_is_none_of_them,
    one_is_a_list,
    read_by,
)
from sidecar.identity.spiffe import shown
from sidecar.policy.mesh import Mesh

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
LogFormat = Literal["auto", "json", "console"]

_T = TypeVar("_T")

_SHA256 = re.compile(r"[0-9a-f]{64}")


def parse_shape(data: Any, problems: Problems, mesh: Mesh | None) -> ConfigShape:
    """The checked file. Raises :class:`UsageError` with every mistake, a line each, those in ``problems`` already too.

    ``mesh`` is what names are looked up in; None where it is broken itself, and only shapes are checked.
    """
    _add_identity_faults(data, problems)
    _add_port_faults(data, problems, mesh)
    add_listener_faults(data, problems)
    return fit(ConfigShape, data, problems, mesh)


# --- values ----------------------------------------------------------------------------------------------------------


def _service(text: str, info: ValidationInfo) -> str:
    mesh: Mesh | None = info.context
    if mesh is not None and text not in mesh.services:
        raise ValueError(f"unknown service {shown(text)}{did_you_mean(text, mesh.services)}")
    return text


def _to(text: str, info: ValidationInfo) -> str:
    mesh: Mesh | None = info.context
    if mesh is not None:
        mesh.target(text)
    return text


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
    text = as_text(value)
    why = "a neighbour could connect and speak in the service's name"
    address = None if text.startswith((":", "*:")) else _listen(text)
    if address is None or address.is_wildcard:
        raise ValueError(f"{shown(text)} is every address of this machine: {why}")
    if address.ip is None and not address.is_loopback:
        raise ValueError(f"{shown(text)} is a name, which may lead anywhere: say which IP address, or localhost")
    if not address.is_loopback and info.data.get("allow_from", "broken") is None:
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


def _file_name(text: str) -> str:
    if not text:
        raise ValueError("names no file")
    return text


def _connections(number: int) -> int:
    if not 1 <= number <= 1_000_000:
        raise ValueError(f"is 1 to 1000000, not {number}")
    return number


def _not_empty(items: list[_T]) -> list[_T]:
    if not items:
        raise ValueError("is empty: name at least one")
    return items


_FileName = Annotated[str, AfterValidator(_file_name)]
_Seconds = Annotated[float, read_by(_seconds)]
_Listen = Annotated[Address, read_by(_listen)]
_Destination = Annotated[Address, read_by(parse_address)]
_Some = Annotated[list[_T], BeforeValidator(one_is_a_list), AfterValidator(_not_empty)]
# A port named by its number may be written as a number.
_PortName = Annotated[str, BeforeValidator(lambda value: str(value) if type(value) is int else value)]


# --- shapes ----------------------------------------------------------------------------------------------------------


class FilesShape(Shape):
    certificate: _FileName
    key: _FileName
    bundle: _FileName


class IdentityShape(Shape):
    """Either ``files``, or the rest; which keys go together is checked in :func:`_add_identity_faults`."""

    files: FilesShape | None = None
    ca: Annotated[str, AfterValidator(_ca_url)] | None = None
    root: _FileName | None = None
    root_sha256: Annotated[str, read_by(_fingerprint)] | None = None
    enrolment: _FileName | None = None
    state_dir: _FileName | None = None


class _ListenerShape(Shape):
    require_alpn: bool = False
    tolerate_missing_close_notify: bool = False
    idle_timeout: _Seconds | None = None
    max_age: _Seconds = 86400.0


class InboundShape(_ListenerShape):
    port: _PortName
    listen: _Listen
    app: _Some[_Destination]


class OutboundShape(_ListenerShape):
    to: Annotated[str, AfterValidator(_to)]
    peers: _Some[_Destination]
    allow_from: _Some[Annotated[Network, read_by(_network)]] | None = None
    device: Annotated[str, AfterValidator(_device)] | None = None  # "auto" is the interface that has the address
    listen: Annotated[Address, BeforeValidator(_plaintext_listen)]  # after `allow_from`, which it looks at


class AdminShape(Shape):
    listen: Annotated[Address | Path, read_by(_admin_listen)]


class TimeoutsShape(Shape):
    handshake: _Seconds = 5.0
    connect: _Seconds = 5.0
    drain: _Seconds = 8.0


class LimitsShape(Shape):
    connections: Annotated[int, AfterValidator(_connections)] = 10_000


class ConfigShape(Shape):
    """The keys of a ``sidecar.yaml``."""

    service: Annotated[str, AfterValidator(_service)]
    mesh: _FileName
    identity: IdentityShape
    inbound: Annotated[list[InboundShape], BeforeValidator(nothing_is_none_of_them)] = Field([])
    outbound: Annotated[list[OutboundShape], BeforeValidator(nothing_is_none_of_them)] = Field([])
    admin: AdminShape | None = None
    timeouts: Annotated[TimeoutsShape, BeforeValidator(nothing_is_empty)] = TimeoutsShape()
    limits: Annotated[LimitsShape, BeforeValidator(nothing_is_empty)] = LimitsShape()
    log_format: LogFormat = "auto"


# --- what goes together: found in raw data, any of which may be of a wrong shape ----------------------------------------


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
