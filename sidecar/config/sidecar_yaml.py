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

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, WithJsonSchema

from sidecar.config.collisions import add_listener_faults
from sidecar.documents.address import DEVICE, Address, ca_address, parse_address
from sidecar.documents.document import part, parts
from sidecar.documents.durations import PATTERN, parse_duration
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
_Seconds = Annotated[float, read_by(_seconds, PATTERN)]
_Listen = Annotated[Address, read_by(_listen)]
_Destination = Annotated[Address, read_by(parse_address)]
_Some = Annotated[list[_T], BeforeValidator(one_is_a_list), AfterValidator(_not_empty)]
# A port named by its number may be written as a number.
_PortName = Annotated[
    str, BeforeValidator(lambda value: str(value) if type(value) is int else value, json_schema_input_type=str | int)
]


# --- shapes ----------------------------------------------------------------------------------------------------------


class FilesShape(Shape):
    certificate: _FileName
    """PEM file: the service's certificate, then its intermediates."""
    key: _FileName
    """PEM file: the certificate's private key. Nobody else may be able to read it."""
    bundle: _FileName
    """PEM file: the roots that are trusted."""


class IdentityShape(Shape):
    """Either ``files``, or the rest; which keys go together is checked in :func:`_add_identity_faults`."""

    files: FilesShape | None = None
    """Certificates that somebody else makes and renews. The files are followed. Excludes the keys below."""
    ca: Annotated[str, AfterValidator(_ca_url)] | None = None
    """The CA that issues and renews the certificate, such as `https://ca:8443`."""
    root: _FileName | None = None
    """PEM file: the CA's root, which is trusted at first contact. Either this or `root_sha256`."""
    root_sha256: Annotated[str, read_by(_fingerprint)] | None = None
    """The SHA-256 fingerprint of the CA's root, in hexadecimal. Either this or `root`."""
    enrolment: _FileName | None = None
    """File with an enrolment secret or a token. It is used when `state_dir` holds no certificate that can be renewed."""
    state_dir: _FileName | None = None
    """Directory in which the key, the certificate and what is trusted are kept. Needed with `ca`."""


class _ListenerShape(Shape):
    require_alpn: bool = False
    """Whether a peer that offers no ALPN protocol (one that is not a sidecar) is refused."""
    tolerate_missing_close_notify: bool = False
    """Whether a peer may end its stream without a TLS close_notify. If not, such a stream counts as cut (`truncated`)."""
    idle_timeout: _Seconds | None = None
    """A connection without any byte for this long is closed. Default: never."""
    max_age: _Seconds = 86400.0
    """A connection this old is closed."""


class InboundShape(_ListenerShape):
    port: _PortName
    """Which port of the service this is: its name in the mesh file, or its number if it is named by that."""
    listen: _Listen
    """Where other sidecars connect, with mutual TLS: `host:port`."""
    app: _Some[_Destination]
    """Where the service's app listens, in plaintext: `host:port`. One, or a list: if one fails, the next is tried."""


class OutboundShape(_ListenerShape):
    to: Annotated[str, AfterValidator(_to)]
    """What is called: `service:port`, or a service's name if it has one port."""
    peers: _Some[_Destination]
    """Where the sidecars of that service listen: `host:port`. One, or a list: if one fails, the next is tried."""
    allow_from: _Some[Annotated[Network, read_by(_network)]] | None = None
    """The networks that may connect, such as `172.30.5.0/26`. Needed where `listen` is not on loopback. One, or a list."""
    device: Annotated[str, AfterValidator(_device)] | None = None  # "auto" is the interface that has the address
    """The network interface that `listen` is bound to; `auto` is the one that has its address. Linux only. Default: any."""
    listen: Annotated[  # after `allow_from`, which it looks at
        Address, BeforeValidator(_plaintext_listen, json_schema_input_type=str)
    ]
    """Where the service's app connects, in plaintext: `host:port`, never on every address of the machine."""


class AdminShape(Shape):
    listen: Annotated[Address | Path, read_by(_admin_listen)]
    """Where `sidecar status`, `sidecar health` and `/metrics` are answered: `host:port` on loopback, or `unix:/a/path`."""


class TimeoutsShape(Shape):
    handshake: _Seconds = 5.0
    """For the TLS handshake with a peer."""
    connect: _Seconds = 5.0
    """For a connection to a peer or to the app."""
    drain: _Seconds = 8.0
    """For connections to finish after SIGTERM. What is left then is cut."""


class LimitsShape(Shape):
    connections: Annotated[
        int, AfterValidator(_connections), WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 1_000_000})
    ] = 10_000
    """How many connections there may be at a time. One more is refused."""


class ConfigShape(Shape):
    """The keys of a ``sidecar.yaml``."""

    service: Annotated[str, AfterValidator(_service)]
    """The service beside which this sidecar runs, as the mesh file names it."""
    mesh: _FileName
    """The mesh file. It is followed. Relative to this file, as all file names here."""
    identity: IdentityShape
    """How the sidecar gets its certificate: from a CA, or from `files`."""
    inbound: Annotated[list[InboundShape], BeforeValidator(nothing_is_none_of_them)] = Field([])
    """The service's ports: mutual TLS in, plaintext to the app."""
    outbound: Annotated[list[OutboundShape], BeforeValidator(nothing_is_none_of_them)] = Field([])
    """What the service calls: plaintext from the app, mutual TLS out."""
    admin: AdminShape | None = None
    """The admin port. Default: none."""
    timeouts: Annotated[TimeoutsShape, BeforeValidator(nothing_is_empty)] = TimeoutsShape()
    """How long things may take."""
    limits: Annotated[LimitsShape, BeforeValidator(nothing_is_empty)] = LimitsShape()
    """How much there may be."""
    log_format: LogFormat = "auto"
    """`auto`: for people on a terminal, JSON elsewhere."""


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
