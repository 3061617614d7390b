"""A ``sidecar.yaml`` as frozen values: its keys, the values that each may have, and the keys that go together. Pure; fails
closed.

Each key is declared here and nowhere else. Its field defines what the file may hold, what its environment variable may hold
(``environment``), what the program reads, and the default.

Two kinds of wiring are refused although each of their values is valid, because they would bypass the sidecar's protection:

* a *plaintext* listener (``outbound``) through which a neighbour could use the service's identity: on a wildcard address
  always; on another address that is not loopback, unless ``allow_from`` lists the networks that may connect;
* an app or a peer that is one of this sidecar's own listeners (``collisions``).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Set
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from sidecar.config.collisions import add_listener_faults
from sidecar.config.permissive import PortMode, add_mode_faults
from sidecar.documents.address import DEVICE, Address, ca_address, parse_address
from sidecar.documents.checks import Info, as_text
from sidecar.documents.days import DAY_PATTERN, is_over, parse_day
from sidecar.documents.document import part, parts
from sidecar.documents.durations import PATTERN, parse_duration
from sidecar.documents.paths import joined
from sidecar.documents.problems import Problems, did_you_mean
from sidecar.documents.schema import (
    After,
    Before,
    Between,
    Named,
    Shape,
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
from sidecar.policy.names import ADMIN_PORT, Target

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
LogFormat = Literal["auto", "json", "console"]
AccessLog = Literal["all", "refusals", "off"]
ProxyProtocol = Literal["off", "conn", "tls", "tls-full"]
IdentityHeader = Literal["off", "x-forwarded-client-cert"]

_T = TypeVar("_T")

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class _Context:
    """What the validators need. Names are looked up in ``mesh``, which is None where the mesh file is broken itself; then
    only shapes are checked. Paths in the file are relative to ``directory``."""

    mesh: Mesh | None
    directory: Path


def parse_shape(data: Any, problems: Problems, mesh: Mesh | None) -> ConfigShape:
    """The checked file. Raises :class:`UsageError` with every mistake, a line each, including those already in ``problems``.

    A value that is already a :class:`Path` is left as it is. ``mesh`` is None where the mesh file is broken itself.
    """
    _add_identity_faults(data, problems)
    _add_port_faults(data, problems, mesh)
    add_listener_faults(data, problems)
    add_mode_faults(data, problems)
    return fit(ConfigShape, data, problems, _Context(mesh, Path(problems.document.filename).parent))


# --- values ----------------------------------------------------------------------------------------------------------


def _service(text: str, info: Info) -> str:
    mesh: Mesh | None = info.context and info.context.mesh
    if mesh is not None and text not in mesh.services:
        raise ValueError(f"unknown service {shown(text)}{did_you_mean(text, mesh.services)}")
    return text


def _to(value: object, info: Info) -> object:
    if info.context is None:
        return value
    text, mesh = as_text(value), info.context.mesh
    return Target(text, "") if mesh is None else mesh.target(text)


def _listen(text: str) -> Address:
    return parse_address(text, listening=True)


def _admin_listen(text: str) -> Address | Path:
    """An address that only this machine can reach: on loopback, or a Unix socket."""
    if text.startswith("unix:"):
        path = Path(text.removeprefix("unix:"))
        if not path.is_absolute():
            raise ValueError(f"{shown(text)} is no absolute path: write it as unix:/run/sidecar/admin.sock")
        return path
    address = _listen(text)
    if not address.is_loopback:
        raise ValueError(
            f"{shown(text)} is not on loopback: a neighbour could read which services communicate; use 127.0.0.1 or unix:/…"
        )
    return address


def _plaintext_listen(value: object, info: Info) -> Address:
    """Fails closed: only its own app can reach a plaintext listener, or ``allow_from`` lists the networks that may."""
    text = str(value) if isinstance(value, Address) else as_text(value)
    why = "a neighbour could connect and use the service's identity"
    address = None if text.startswith((":", "*:")) else _listen(text)
    if address is None or address.is_wildcard:
        raise ValueError(f"{shown(text)} is every address of this machine: {why}")
    if address.ip is None and not address.is_loopback:
        raise ValueError(f"{shown(text)} is a host name, which may be any address: write an IP address, or localhost")
    if not address.is_loopback and info.data.get("allow_from", "broken") == ():
        raise ValueError(f"{shown(text)} is not on loopback and has no `allow_from`: {why}")
    return address


def _network(text: str) -> Network:
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"{shown(text)} is no network: write it as 172.30.5.0/26, its host bits zero") from error
    if network.prefixlen == 0:
        raise ValueError(f"{shown(text)} is every address: a neighbour could connect and use the service's identity")
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


def _file(value: object, info: Info) -> object:
    """A file's name, relative to the file that it is written in; already a path if the program or a variable gave it."""
    if info.context is None or isinstance(value, Path):
        return value
    text = as_text(value)
    if not text:
        raise ValueError("names no file")
    return joined(info.context.directory, text)


def _not_empty(items: tuple[_T, ...]) -> tuple[_T, ...]:
    if not items:
        raise ValueError("is empty: name at least one")
    return items


_File = Annotated[Path, Before(_file, str)]
_CaUrl = Annotated[str, After(_ca_url)]
_Seconds = Annotated[float, read_by(_seconds, PATTERN)]
_Listen = Annotated[Address, read_by(_listen)]
_Some = Annotated[tuple[_T, ...], After(_not_empty), Before(one_is_a_list)]
_Destinations = _Some[Annotated[Address, read_by(parse_address)]]
_Target = Annotated[Target, Before(_to, str)]
_Networks = _Some[Annotated[Network, read_by(_network)]]
# A port named by its number may be written as a number.
_PortName = Annotated[str, Before(lambda value: str(value) if type(value) is int else value, str | int)]


# --- the keys --------------------------------------------------------------------------------------------------------


@frozen()
class FileIdentity(Shape):
    """A certificate (leaf, then intermediates), its key and the trust bundle, in files that another program renews."""

    certificate: _File
    """PEM file: the service's certificate, then its intermediates."""
    key: _File
    """PEM file: the certificate's private key. No other user may be able to read it."""
    bundle: _File
    """PEM file: the roots that are trusted."""


@frozen(kw_only=True)
class _Identity(Shape):
    """The keys of ``identity``: either ``files``, or the others."""

    files: FileIdentity | None = None
    """Certificates that another program makes and renews. The files are followed. Excludes the keys below."""
    ca: _CaUrl | None = None
    """The CA that issues and renews the certificate, such as `https://ca:8443`."""
    root: _File | None = None
    """PEM file: the CA's root, which is trusted at first contact. Either this or `root_sha256`."""
    root_sha256: Annotated[str, read_by(_fingerprint)] | None = None
    """The SHA-256 fingerprint of the CA's root, in hexadecimal. Either this or `root`."""
    enrolment: _File | None = None
    """File with an enrolment secret or a token. It is used when `state_dir` holds no certificate that can be renewed."""
    state_dir: _File | None = None
    """Directory in which the key, the certificate and what is trusted are kept. Needed with `ca`."""


@frozen(kw_only=True)
class CaIdentity(_Identity):
    """The CA to enrol at. Exactly one of ``root`` (a PEM file) and ``root_sha256`` (lower-case hex) pins the CA's root."""

    ca: _CaUrl
    state_dir: _File


def _which_identity(value: object, info: Info) -> object:
    if info.context is None:
        return value
    keys = read(_Identity, value, info.context)
    for fault in _identity_faults({name for name, given in values(keys).items() if given is not None}):
        raise ValueError(fault)
    return keys.files or CaIdentity(**values(keys))


# CaIdentity comes first: it has the keys of both, and `keys_at` looks at the first alternative.
_EitherIdentity = Annotated[CaIdentity | FileIdentity, Before(_which_identity, _Identity)]


@frozen()
class ListenerLimits(Shape):
    connections: Annotated[int, Between(1, 1_000_000, "is")] | None = None
    """The most connections of this entry at a time; further ones are refused with `overloaded`. Idle kept channels do not
    count. Default: only the limit of the whole sidecar."""


@frozen(kw_only=True)
class _Listener(Shape):
    """Times are in seconds. Without ``idle_timeout`` an idle connection is never closed."""

    require_alpn: bool = False
    """Whether a peer that offers no ALPN protocol (one that is not a sidecar) is refused."""
    tolerate_missing_close_notify: bool = False
    """Whether a peer may end its stream without a TLS close_notify. If not, such a stream counts as cut (`truncated`)."""
    idle_timeout: _Seconds | None = None
    """A connection without any byte for this long is closed. Default: never."""
    max_age: _Seconds = 86400.0
    """A connection this old is closed."""
    limits: Annotated[ListenerLimits, Before(nothing_is_empty)] = ListenerLimits()
    """Limits of this listener."""


@frozen(kw_only=True)
class MeshPort(_Listener):
    """An mTLS listener for one port of this service."""

    port: _PortName
    """Which port of the service this is: its name in the mesh file, or its number if it is named by that."""
    listen: _Listen
    """Where other sidecars connect, with mutual TLS: `host:port`."""
    device: Annotated[str, After(_device)] | None = None
    """The network interface that `listen` is bound to, as in `outbound`. Linux only. Default: any."""


@frozen(kw_only=True)
class Inbound(MeshPort):
    """One with an app behind it."""

    apps: Annotated[_Destinations, Named("app")]
    """Where the service's app listens, in plaintext: `host:port`. One, or a list: if one fails, the next is tried."""
    proxy_protocol: ProxyProtocol = "off"
    """Whether the app is told who calls, by a PROXY protocol header (version 2) that it must be set up to expect. `conn`: by
    the address of the caller's sidecar. `tls`: its identity too, as the CN (a service's name, or a SPIFFE ID) and as the TLV
    0xE0 (the SPIFFE ID). `tls-full`: its certificate too. Whoever reaches the app beside its sidecar can forge all of it."""
    identity_header: IdentityHeader = "off"
    """Whether each HTTP/1.1 request tells the app who calls, in the header `X-Forwarded-Client-Cert` as Envoy writes it:
    `By` (this service's SPIFFE ID), `Hash` (SHA-256 of the caller's certificate), `URI` (the caller's SPIFFE ID). Headers of
    that name by a caller are removed. What is no HTTP/1.1 request is refused, as is HTTP/2. May go with `proxy_protocol`."""
    mode: PortMode = "strict"
    """`permissive`: callers without TLS are taken too, if a rule says `from: plaintext`. The first byte tells them apart.
    They never have an identity. `sidecar status` names them."""
    until: Annotated[date, read_by(parse_day, DAY_PATTERN)] | None = None
    """The last day (UTC, YYYY-MM-DD) of `mode: permissive`, which needs one: then the port is strict, and plaintext cut."""
    server_first: bool = False
    """Whether the server speaks first (MySQL, SMTP): then a caller on a permissive port that sends nothing for a second is
    taken for one without TLS. Otherwise silence is never taken for anything."""

    def takes_plaintext(self, now: datetime) -> bool:
        """Whether it does at this time. Fails closed: not without an end that is to come."""
        return self.mode == "permissive" and self.until is not None and not is_over(self.until, now)


@frozen(kw_only=True)
class Outbound(_Listener):
    """A plaintext listener for one port of another service.

    ``allow_from``: the networks that may connect. It is empty only if ``listen`` is on loopback; then nothing is limited.
    """

    target: Annotated[_Target, Named("to")]
    """What is called: `service:port`, or a service's name if it has one port."""
    peers: _Destinations
    """Where the sidecars of that service listen: `host:port`. One, or a list: if one fails, the next is tried."""
    ambiguous_with: Annotated[_Some[_Target], Before(nothing_is_the_default)] = ()
    """What else has this address, so that nobody can tell which of them a call means: every call is refused, and the refusal
    names all. Written by `sidecar inject` for calls that nobody foresees."""
    allow_from: Annotated[_Networks, Before(nothing_is_the_default)] = ()
    """The networks that may connect, such as `172.30.5.0/26`. Needed where `listen` is not on loopback. One, or a list."""
    device: Annotated[str, After(_device)] | None = None
    """The network interface that `listen` is bound to; `auto` is the one that has its address. If it is made anew, the
    sidecar listens anew. Linux only. Default: any."""
    # Validated after `allow_from`, which its validator reads.
    listen: Annotated[Address, Before(_plaintext_listen, str)]
    """Where the service's app connects, in plaintext: `host:port`, never on every address of the machine."""

    @property
    def shown(self) -> str:
        """All that a call may mean."""
        return " or ".join(map(str, (self.target, *self.ambiguous_with)))

    @property
    def service(self) -> str:
        return self.target.service

    @property
    def port(self) -> str:
        return self.target.port


@frozen()
class Admin(Shape):
    """The admin port: an address on loopback, or the path of a Unix socket."""

    listen: Annotated[Address | Path, read_by(_admin_listen)]
    """Where `sidecar status`, `sidecar health` and `/metrics` are answered: `host:port` on loopback, or `unix:/a/path`."""
    socket: _File | None = None
    """A Unix socket for `sidecar probe` and `sidecar verify`, which have this sidecar call others. Its own user and root may
    use it. Not needed if `listen` is `unix:/…`, as that answers them too. Default: none."""
    mesh_listen: Annotated[Address, read_by(_listen)] | None = None
    """Where other sidecars ask for health and metrics, with mutual TLS: `host:port`. Only those get in whom a rule allows
    `service:mesh-admin`, written in full. Default: nowhere."""


@frozen()
class Timeouts(Shape):
    """All in seconds."""

    handshake: _Seconds = 5.0
    """For the TLS handshake with a peer."""
    connect: _Seconds = 5.0
    """To find and to reach a peer, or the app: the look-up of its names and all its addresses together. A callee's must be
    shorter than `connect` and `handshake` of its callers together, which wait for it that long."""
    drain: _Seconds = 8.0
    """For requests in flight to finish after SIGTERM; connections that are left then are cut. It ends as soon as none is in
    flight: a stream alone holds it for two seconds, an idle connection for half a second."""
    wait: _Seconds | None = None
    """After the start, for what is behind a listener to answer once: the app, or the called service's app through its
    sidecar. Until then the listener stays closed, so that `wait-for-it` and its like do not succeed too early. What the
    policy refuses is not waited for. Default: opens at the start."""


@frozen()
class Limits(Shape):
    connections: Annotated[int, Between(1, 1_000_000, "is")] = 10_000
    """The most connections at a time. Further connections are refused."""


@frozen(kw_only=True)
class ConfigShape(Shape):
    """The keys of a ``sidecar.yaml``."""

    service: Annotated[str, After(_service)]
    """The service beside which this sidecar runs, as the mesh file names it."""
    mesh_path: Annotated[_File, Named("mesh")]
    """The mesh file. It is followed. Relative to this file, as all file names here."""
    identity: _EitherIdentity
    """How the sidecar gets its certificate: from a CA, or from `files`."""
    inbound: Annotated[tuple[Inbound, ...], Before(nothing_is_none_of_them)] = ()
    """The service's ports: mutual TLS in, plaintext to the app."""
    outbound: Annotated[tuple[Outbound, ...], Before(nothing_is_none_of_them)] = ()
    """What the service calls: plaintext from the app, mutual TLS out."""
    admin: Admin | None = None
    """The admin port. Default: none."""
    timeouts: Annotated[Timeouts, Before(nothing_is_empty)] = Timeouts()
    """Time limits."""
    limits: Annotated[Limits, Before(nothing_is_empty)] = Limits()
    """Limits of resources."""
    keep: Annotated[int, Between(0, 10_000, "is")] = 256
    """The most channels to peers that are kept open without a connection on them, for 15 seconds each: the next connection
    needs no handshake then. One costs about 70 KiB at either end. They count in `limits.connections`. 0: none is kept, by
    callers neither. What may be called is decided for each connection, as without them."""
    has_replicas: bool = False
    """Whether another sidecar serves this service too, so that `peers` of callers name several: then this one refuses new
    connections with `drained` while it drains, and callers try another. If not, it serves them until it ends."""
    access_log: AccessLog = "all"
    """Which connections have a line in the log: `all`, or `refusals` (those that were refused, cut or broken, or that a rule
    in `dry-run` is about), or `off`. Alarms are logged, and everything is counted in the metrics, in any case."""
    log_format: LogFormat = "auto"
    """`auto` is `console` on a terminal and `json` elsewhere."""


@frozen(kw_only=True)
class Config(ConfigShape):
    """A whole, valid ``sidecar.yaml``, with its path and its mesh."""

    path: Path
    mesh: Mesh


# --- keys that go together: checked in raw data, every part of which may have a wrong shape ------------------------------


def _add_identity_faults(data: Any, problems: Problems) -> None:
    identity = part(data, "identity")
    if not isinstance(identity, dict):
        return
    for fault in _identity_faults({key for key, value in identity.items() if value is not None}):
        problems.add(("identity",), fault)


def _identity_faults(given: Set[str]) -> Iterator[str]:
    """The mistakes of an ``identity`` with these keys."""
    from_ca = fields_of(CaIdentity).keys() - {"files"}
    if "files" in given and given & from_ca:
        yield "has 'files' and what belongs to 'ca': exactly one of the two"
    elif "files" not in given and not given & from_ca:
        yield "has neither 'files' (certificate, key, bundle) nor 'ca': exactly one of the two"
    elif "files" not in given:
        for key, field in fields_of(CaIdentity).items():
            if field.is_required and key not in given:
                yield f"'{key}' is missing"
        if len(given & {"root", "root_sha256"}) != 1:
            yield "needs exactly one of 'root' and 'root_sha256', to verify the CA at first contact"


def _add_port_faults(data: Any, problems: Problems, mesh: Mesh | None) -> None:
    service = part(data, "service")
    if mesh is None or not isinstance(service, str) or service not in mesh.services:
        return
    for index, inbound in parts(part(data, "inbound")):
        port = part(inbound, "port")
        if isinstance(port, str | int):
            try:
                mesh.targets(f"{service}:{port}")
                if port == ADMIN_PORT:
                    raise ValueError(
                        f"{shown(port)} has no app: the sidecar itself answers, where `admin.mesh_listen` says"
                    )
            except ValueError as error:
                problems.add(("inbound", index, "port"), str(error))
