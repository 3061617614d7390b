"""An application as Compose reads it (``config --format json``), in frozen values. Pure.

Compose has validated the file, so its shapes are relied on. One thing is checked here because Compose allows it and a mesh
does not: a service name that is no identity or no host name is a :class:`UsageError`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sidecar.documents.address import parse_address
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import is_segment, shown

MARK = "x-sidecar-inject"
"""The top-level key of every override that ``inject`` writes. It marks an application that is injected already."""

_SOCKET_DIRECTORIES = ("/var/run", "/run")


@dataclass(frozen=True, slots=True)
class Attachment:
    """A service on a network. ``raw`` is Compose's own value, written again unchanged."""

    aliases: tuple[str, ...]
    ipv4: str | None
    raw: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Network:
    """``subnets`` as written in the file; empty if Docker chooses the subnet."""

    key: str
    name: str
    external: bool
    internal: bool
    subnets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dependency:
    condition: str
    required: bool
    raw: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Published:
    """A port that the host forwards to the service."""

    target: int
    protocol: str
    raw: Mapping[str, Any]

    @property
    def is_loopback(self) -> bool:
        return str(self.raw.get("host_ip", "")).startswith(("127.", "::1"))

    @property
    def shown(self) -> str:
        """``8080->80``; without the address, which may come from a variable whose value must not be shown."""
        end = "" if self.protocol == "tcp" else f"/{self.protocol}"
        return f"{self.raw.get('published') or 'any'}->{self.target}{end}"


@dataclass(frozen=True, slots=True)
class ComposeService:
    """One service. ``links`` are pairs of service and alias; ``command`` includes the entrypoint; ``addresses`` is text that
    may hold static addresses of other services (``extra_hosts``, ``dns``). ``mounts`` are the host's paths, ``writable``
    those that it may write to; ``arguments`` are those of its build; ``logging`` is Compose's own value."""

    name: str
    image: str
    networks: Mapping[str, Attachment]
    network_mode: str | None
    container_name: str | None
    host_names: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    external_links: bool
    depends_on: Mapping[str, Dependency]
    environment: Mapping[str, str]
    arguments: Mapping[str, str]
    command: str
    healthcheck: str
    published: tuple[Published, ...]
    exposed: tuple[tuple[int, str], ...]
    mounts: tuple[str, ...]
    writable: tuple[str, ...]
    builds: tuple[str, ...]
    labels: Mapping[str, str]
    profiles: tuple[str, ...]
    replicas: int
    restart: str
    addresses: tuple[str, ...]
    logging: Mapping[str, Any]

    def own_names(self) -> frozenset[str]:
        """Every name that resolves to it, on any network."""
        aliases = (alias for attachment in self.networks.values() for alias in attachment.aliases)
        return frozenset({self.name, *self.host_names, *aliases, *filter(None, [self.container_name])})

    def names_on(self, network: str) -> tuple[str, ...]:
        """The names that resolve to it on one network, its own name first."""
        found = [self.name, self.container_name, *self.host_names, *self.networks[network].aliases]
        return tuple(dict.fromkeys(name for name in found if name))

    def declared(self, protocol: str) -> tuple[int, ...]:
        """The ports that ``expose`` and ``ports`` declare for one protocol."""
        published = [port.target for port in self.published if port.protocol == protocol]
        exposed = [number for number, kind in self.exposed if kind == protocol]
        return tuple(dict.fromkeys([*exposed, *published]))

    @property
    def has_docker_socket(self) -> bool:
        return any(mount.endswith("/docker.sock") or mount in _SOCKET_DIRECTORIES for mount in self.mounts)


@dataclass(frozen=True, slots=True)
class Application:
    """A whole application. ``mark`` is the value under :data:`MARK`, if an override of ``inject`` was among the files."""

    name: str
    services: Mapping[str, ComposeService]
    networks: Mapping[str, Network]
    config_texts: Mapping[str, tuple[tuple[str, str], ...]]
    mark: Any


def read_application(data: Any, filename: str) -> Application:
    """Raises :class:`UsageError` if there are no services, or if a name cannot be in a mesh."""
    services = data.get("services") if isinstance(data, dict) else None
    if not isinstance(services, dict) or not services:
        raise UsageError(f"{filename}: has no services, so there is nothing to put into a mesh")
    _refuse_names(services, filename)
    contents = {
        name: str(config["content"]) for name, config in _mapping_at(data, "configs").items() if config.get("content")
    }
    return Application(
        name=str(data.get("name") or "app"),
        services=MappingProxyType({name: _service(name, raw) for name, raw in services.items()}),
        networks=MappingProxyType(
            {key: _network(key, raw or {}) for key, raw in _mapping_at(data, "networks").items()}
        ),
        config_texts=MappingProxyType({name: tuple(_inline_configs(raw, contents)) for name, raw in services.items()}),
        mark=data.get(MARK),
    )


def _refuse_names(services: Mapping[str, Any], filename: str) -> None:
    mistakes = []
    for name in services:
        try:
            parse_address(f"{name}:1")
            parse_address(f"{name}-mesh.mesh:1")
            if not is_segment(name):
                raise ValueError("no segment")  # one message for all three checks
        except ValueError:
            mistakes.append(
                f"{filename}: service {shown(name)}: its name cannot be an identity and a host name in a mesh "
                "(letters, digits, - and _, at most 58 characters, not only digits): rename it"
            )
    if mistakes:
        raise UsageError("\n".join(mistakes))


def _mapping_at(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data.get(key)
    return value if isinstance(value, dict) else {}


def _texts(value: Any) -> list[str]:
    """A string, a list or None as a list of texts. Compose writes each ``$`` as ``$$``; this is undone."""
    items = value if isinstance(value, list) else [] if value is None else [value]
    return [str(item).replace("$$", "$") for item in items]


def _variables(data: Mapping[str, Any], key: str) -> Mapping[str, str]:
    found = _mapping_at(data, key).items()
    return MappingProxyType({name: str(value).replace("$$", "$") for name, value in found if value is not None})


def _network(key: str, raw: Mapping[str, Any]) -> Network:
    pools = _mapping_at(raw, "ipam").get("config") or []
    return Network(
        key=key,
        name=str(raw.get("name") or key),
        external=bool(raw.get("external")),
        internal=bool(raw.get("internal")),
        subnets=tuple(str(pool["subnet"]) for pool in pools if pool.get("subnet")),
    )


def _service(name: str, raw: Mapping[str, Any]) -> ComposeService:
    hostname, domain = raw.get("hostname"), raw.get("domainname")
    build, deploy = _mapping_at(raw, "build"), _mapping_at(raw, "deploy")
    replicas = deploy.get("replicas", raw.get("scale", 1))
    return ComposeService(
        name=name,
        image=str(raw.get("image") or ""),
        networks=MappingProxyType({key: _attachment(it or {}) for key, it in _mapping_at(raw, "networks").items()}),
        network_mode=raw.get("network_mode"),
        container_name=raw.get("container_name"),
        host_names=tuple(filter(None, [hostname, f"{hostname}.{domain}" if hostname and domain else None])),
        links=tuple(_link(text) for text in _texts(raw.get("links"))),
        external_links=bool(raw.get("external_links")),
        depends_on=MappingProxyType({key: _dependency(it) for key, it in _mapping_at(raw, "depends_on").items()}),
        environment=_variables(raw, "environment"),
        arguments=_variables(build, "args"),
        command=" ".join([*_texts(raw.get("entrypoint")), *_texts(raw.get("command"))]),
        healthcheck=" ".join(_texts(_mapping_at(raw, "healthcheck").get("test"))),
        published=tuple(
            Published(int(port["target"]), str(port.get("protocol", "tcp")), MappingProxyType(port))
            for port in raw.get("ports") or []
        ),
        exposed=tuple(pair for text in _texts(raw.get("expose")) for pair in _exposed(text)),
        mounts=tuple(str(volume["source"]) for volume in _binds(raw)),
        writable=tuple(str(volume["source"]) for volume in _binds(raw) if not volume.get("read_only")),
        builds=tuple(
            map(str, [*filter(None, [build.get("context")]), *_mapping_at(build, "additional_contexts").values()])
        ),
        labels=MappingProxyType({key: str(it) for key, it in _mapping_at(raw, "labels").items()}),
        profiles=tuple(raw.get("profiles") or ()),
        replicas=int(replicas) if isinstance(replicas, int | str) and str(replicas).isdigit() else 1,
        restart=str(raw.get("restart") or ""),
        addresses=(*_texts(raw.get("extra_hosts")), *_texts(raw.get("dns"))),
        logging=MappingProxyType(_mapping_at(raw, "logging")),
    )


def _binds(raw: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [it for it in raw.get("volumes") or [] if it.get("type") == "bind" and it.get("source")]


def _attachment(raw: Mapping[str, Any]) -> Attachment:
    return Attachment(tuple(raw.get("aliases") or ()), raw.get("ipv4_address"), MappingProxyType(dict(raw)))


def _dependency(raw: Mapping[str, Any]) -> Dependency:
    return Dependency(
        str(raw.get("condition", "service_started")), bool(raw.get("required", True)), MappingProxyType(dict(raw))
    )


def _link(text: str) -> tuple[str, str]:
    service, _, alias = text.partition(":")
    return service, alias or service


def _exposed(text: str) -> Iterator[tuple[int, str]]:
    """``8080``, ``53/udp``, ``3000-3005``."""
    ports, _, protocol = text.partition("/")
    first, _, last = ports.partition("-")
    if first.isdigit() and (last or first).isdigit():
        for number in range(int(first), int(last or first) + 1):
            yield number, protocol or "tcp"


def _inline_configs(raw: Mapping[str, Any], contents: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The inline configs that Compose mounts into the service: a label and the text of each."""
    for config in raw.get("configs") or []:
        if config.get("source") in contents:
            yield f"config {config['source']}", contents[config["source"]].replace("$$", "$")
