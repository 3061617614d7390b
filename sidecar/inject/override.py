"""``compose.mesh.yaml``: the override that is applied on top of the application's own files. Pure.

An app's image, command, volumes and variables stay unchanged. The override changes its networks, its dependencies and, on
request, the ports that the host publishes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from ipaddress import IPv4Address
from typing import Any

from sidecar.inject.application import Application, ComposeService
from sidecar.inject.options import Options
from sidecar.inject.published import Published, compose_ports, ports_left, published_network
from sidecar.inject.subnets import Placement, dynamic_half, first_fixed, gateway
from sidecar.inject.topology import CA, MESH, OUT, Layout, Topology, app_alias, is_met, mesh_alias, sidecar_of
from sidecar.inject.visibility import App, app_of, neighbours
from sidecar.inject.wiring import CA_PORT, CONFIG, ENROLMENT, STATE, TRUST, wiring_path
from sidecar.inject.yamltext import Commented, Flow, Tagged, block

CA_STATE = "/var/lib/mesh-ca"
IMAGES = "mesh/image"
"""Each image's build context is below, in the directory of its tag."""
BASE_IMAGE = "python:3.14-slim"

NEEDS = "mesh.wiring"
"""The label with a digest of what the application needs of a sidecar's wiring."""

BOUNDED = {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}}
"""The log of a container whose app says nothing of its own. The driver is named: not every one knows these options."""

_SECRET = re.compile(r"(?i)token|secret|passw|credential|key")

WELL = "/dev/shm/well"  # noqa: S108  # in the container: a tmpfs that each start makes anew, also where / is read-only
CHECK_SECONDS = 30

_HEAD = """\
# Written by `sidecar inject` for {files}: the same application, with mutual TLS between its services.
# Do not edit it: run `sidecar inject` again. Which service may call which is in mesh/mesh.yaml, which is yours to edit.
"""


def override_text(
    application: Application,
    apps: Mapping[str, App],
    topology: Topology,
    placement: Placement,
    mesh_addresses: Mapping[str, IPv4Address],
    needs: Mapping[str, str],
    options: Options,
    image: str,
    files: tuple[str, ...],
    record: str,
    *,
    posts_alarms: bool = False,
    published: Collection[Published] = (),
    layout: Layout | None = None,
) -> str:
    """``mesh_addresses`` are those of the sidecars, by app, and of the CA; ``needs`` are digests of their wiring;
    ``record`` is the line for the next run. ``posts_alarms``: mesh.yaml has a URL for alarms, so the CA has a way out.
    ``published``: at what addresses of the host sidecars answer. ``layout``: that of the last run."""
    made = _Override(application, apps, topology, placement, mesh_addresses, needs, options, image, posts_alarms)
    made.layout = layout or made.layout
    for one in published:
        made.published.setdefault(one.app, []).append(one)
    data = {"services": dict(made.services()), "networks": dict(made.networks())}
    return _HEAD.format(files=" and ".join(files)) + record + "\n" + "\n".join(block(data)) + "\n"


class _Override:
    def __init__(
        self,
        application: Application,
        apps: Mapping[str, App],
        topology: Topology,
        placement: Placement,
        mesh_addresses: Mapping[str, IPv4Address],
        needs: Mapping[str, str],
        options: Options,
        image: str,
        posts_alarms: bool,
    ) -> None:
        self.posts_alarms = posts_alarms
        self.layout = Layout()
        self.published: dict[str, list[Published]] = {}
        self.application, self.apps, self.topology = application, apps, topology
        self.subnets, self.mesh_addresses = placement.subnets, mesh_addresses
        self.needs, self.options, self.image = needs, options, image
        self.owners = app_of(apps)

    # -- services ------------------------------------------------------------------------------------------------------

    def services(self) -> Iterator[tuple[str, Any]]:
        for name in self.topology.slots:
            for member in self.apps[name].members:
                yield member.name, self._member(self.apps[name], member)
        outsiders = {it for plain in self.topology.plain for it in plain.outsiders}
        for name in sorted(outsiders):
            yield name, self._outsider(name)
        for name in self.topology.slots:
            yield sidecar_of(name), self._sidecar(self.apps[name])
        yield CA, self._ca()

    def _member(self, app: App, member: ComposeService) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if member.name == app.name:
            found["networks"] = Tagged("!override", self._app_networks(app))
        if member.links:
            found["links"] = Tagged("!reset", [])
        found["depends_on"] = self._depends_on(app, member)
        found |= self._published(member) | self._labels(app, member)
        return found

    def _app_networks(self, app: App) -> dict[str, Any]:
        own = sorted({alias for attachment in app.owner.networks.values() for alias in attachment.aliases})
        own += [app_alias(app.name)] if is_met(app.name, self.topology) else []
        found: dict[str, Any] = {}
        for index, slot in enumerate(self.topology.slots[app.name]):
            found[slot.network] = Flow({"aliases": own}) if own and index == 0 else Flow({})
        for network, attachment in app.owner.networks.items():
            if (app.name, network) in self.topology.stays:
                why = self.topology.stays[app.name, network]
                found[network] = Commented(Flow(dict(attachment.raw)), f"stays: {why}")
        for plain in self.topology.plain:
            if plain.app == app.name and plain.beside:
                aliases = [] if plain.names else list(app.owner.networks[plain.instead_of].aliases)
                found[plain.beside_network] = Flow({"aliases": aliases}) if aliases else Flow({})
        return found

    def _outsider(self, name: str) -> dict[str, Any]:
        """What is linked to, or waited for, is now behind its sidecar."""
        found: dict[str, Any] = {"networks": Tagged("!override", self._outsider_networks(name))}
        owner = self.apps[name].owner
        met = {it.app for it in self.topology.plain if name in it.outsiders and it.names}
        linked = [service for service, _ in owner.links if self.owners.get(service, service) in met]
        if linked:
            others = [f"{service}:{alias}" for service, alias in owner.links if service not in linked]
            found["links"] = Tagged("!override", others) if others else Tagged("!reset", [])
        waits = {it: Flow(dict(owner.depends_on[it].raw)) for it in linked if it in owner.depends_on}
        for service, dependency in owner.depends_on.items():
            app = self.owners.get(service, service)
            if app in met and dependency.condition != "service_completed_successfully":
                optional = {} if dependency.required else {"required": False}
                waits[sidecar_of(app)] = Flow({"condition": "service_healthy", **optional})
        return found | ({"depends_on": waits} if waits else {})

    def _outsider_networks(self, name: str) -> dict[str, Any]:
        owner = self.apps[name].owner
        found: dict[str, Any] = {network: Flow(dict(it.raw)) for network, it in owner.networks.items()}
        for plain in self.topology.plain:
            if name in plain.outsiders and plain.names:
                found[plain.network] = Flow({})
            if name in plain.beside:
                links = {alias for member in self.apps[plain.app].members for it, alias in member.links if it == name}
                aliases = sorted({*owner.networks[plain.instead_of].aliases, *links} - {name})
                found[plain.beside_network] = Flow({"aliases": aliases}) if aliases else Flow({})
        return found

    def _depends_on(self, app: App, member: ComposeService) -> dict[str, Any]:
        linked = {name for name, _ in member.links}
        # Compose makes each link a dependency, and removes the dependency with the link.
        found = {name: Flow(dict(it.raw)) for name, it in member.depends_on.items() if name in linked}
        found[sidecar_of(app.name)] = Flow({"condition": "service_healthy"})
        near = neighbours(app, self.apps)
        for name, dependency in member.depends_on.items():
            callee = self.owners.get(name, name)
            waited = dependency.condition != "service_completed_successfully" and callee in near
            if waited and callee in self.topology.slots and not self.topology.is_plaintext(app.name, callee):
                optional = {} if dependency.required else {"required": False}
                found[sidecar_of(callee)] = Flow({"condition": "service_healthy", **optional})
        return found

    def _published(self, member: ComposeService) -> dict[str, Any]:
        left = ports_left(member, self.options.publish)
        if left == [dict(port.raw) for port in member.published]:
            return {}
        return {"ports": Tagged("!override", [Flow(it) for it in left]) if left else Tagged("!reset", [])}

    def _labels(self, app: App, member: ComposeService) -> dict[str, Any]:
        """Traefik uses any network of a container unless a label names one, and here it can reach only one of them."""
        if not any(label.startswith("traefik.") for label in member.labels):
            return {}
        named = member.labels.get("traefik.docker.network")
        stays = [self.application.networks[key].name for name, key in self.topology.stays if name == app.name]
        met = [it.beside_network for it in self.topology.plain if it.app == app.name and it.beside]
        plain = [f"{self.application.name}_{network}" for network in met]
        reachable = [*stays, *plain]
        return {"labels": {"traefik.docker.network": reachable[0]}} if reachable and named not in reachable else {}

    def _sidecar(self, app: App) -> dict[str, Any]:
        networks: dict[str, Any] = {
            MESH: Flow({"aliases": [mesh_alias(app.name)], "ipv4_address": str(self.mesh_addresses[app.name])})
        }
        for slot in self.topology.slots[app.name]:
            address = str(first_fixed(self.subnets[slot.network]))
            networks[slot.network] = Flow({"aliases": sorted(slot.names), "ipv4_address": address})
        for plain in self.topology.plain:
            if plain.app == app.name and plain.names:
                address = str(first_fixed(self.subnets[plain.network]))
                networks[plain.network] = Flow({"aliases": sorted(plain.names), "ipv4_address": address})
        published = self.published.get(app.name, ())
        if published:
            network = published_network(app.name)
            networks[network] = Flow({"ipv4_address": str(first_fixed(self.subnets[network]))})
        file = f"{CONFIG}/{wiring_path(app.name)}"
        return {
            "image": self.image,
            "pull_policy": "never",
            **({"profiles": Flow(list(app.owner.profiles))} if app.owner.profiles else {}),
            "command": Flow(["sidecar", "run", file]),
            **self._hardened(),
            "logging": Flow(logging_of(app)),
            # Read at its start: Compose recreates the container when it changes.
            "labels": Flow({NEEDS: self.needs[app.name]}),
            # Not service_healthy: the sidecar itself waits for the CA, and only if it has no certificate.
            "depends_on": {CA: Flow({"condition": "service_started"})},
            "networks": networks,
            **({"ports": [Flow(port) for port in compose_ports(published)]} if published else {}),
            "volumes": [
                self._mount("./mesh", CONFIG, read_only=True),
                self._mount(f"{self._state}/trust", TRUST, read_only=True),
                # Not a secret of Compose's: that mounts the file itself, and a file that replaces it is never seen.
                self._mount(f"{self._state}/enrolment/{app.name}", ENROLMENT, read_only=True),
                self._mount(f"{self._state}/sidecars/{app.name}", STATE, read_only=False),
            ],
        }

    def _ca(self) -> dict[str, Any]:
        probe = f"python -c \"import socket; socket.create_connection(('127.0.0.1', {CA_PORT}), 2).close()\""
        return {
            "image": self.image,
            "build": {
                "context": f"./{IMAGES}/{self.image.rpartition(':')[2]}",
                "args": {"BASE": f"${{MESH_BASE:-{BASE_IMAGE}}}"},
            },
            "command": Flow(
                [
                    "certs",
                    "serve",
                    CA_STATE,
                    "--mesh",
                    f"{CONFIG}/mesh.yaml",
                    "--listen",
                    f"0.0.0.0:{CA_PORT}",
                ]  # the CA is on the mesh network, and alone on its way out
            ),
            # For the commands in its messages, which are run on the host.
            "environment": Flow({"MESH_STATE": self._state}),
            **self._hardened(),
            "logging": Flow(BOUNDED),
            "healthcheck": Flow(
                {"test": ["CMD", *health_check(probe)], "interval": "3s", "timeout": "60s", "retries": 20}
            ),
            "networks": {
                MESH: Flow({"ipv4_address": str(self.mesh_addresses[CA])}),
                **({OUT: Flow({})} if self.posts_alarms else {}),
            },
            "volumes": [
                self._mount("./mesh", CONFIG, read_only=True),
                self._mount(f"{self._state}/ca", CA_STATE, read_only=False),
            ],
        }

    def _hardened(self) -> dict[str, Any]:
        return {
            # The owner of the key files.
            "user": f"${{MESH_USER:-{self.options.user}}}",
            "read_only": True,
            "tmpfs": Flow(["/tmp"]),  # noqa: S108  # in the container
            "cap_drop": Flow(["ALL"]),
            "security_opt": Flow(["no-new-privileges:true"]),
            # It is on several networks and must not route between them. It listens on the callees' ports, low ones too.
            "sysctls": Flow({"net.ipv4.ip_forward": "0", "net.ipv4.ip_unprivileged_port_start": "0"}),
            "restart": "unless-stopped",
        }

    @property
    def _state(self) -> str:
        return f"${{MESH_STATE:-{self.options.state}}}"

    def _mount(self, source: str, target: str, *, read_only: bool) -> Flow:
        # Otherwise Docker creates a missing source as an empty directory of root.
        mount = {"type": "bind", "source": source, "target": target, "bind": {"create_host_path": False}}
        return Flow(mount | ({"read_only": True} if read_only else {}))

    # -- networks and secrets ------------------------------------------------------------------------------------------

    def networks(self) -> Iterator[tuple[str, Any]]:
        yield MESH, self._network(MESH, internal=True, fixed=True)
        if self.posts_alarms:
            yield OUT, Commented(Flow({}), "the CA alone, to post alarms to `alarm.url` of mesh/mesh.yaml")
        for name, slots in self.topology.slots.items():
            before = [self.application.networks[key] for key in self.apps[name].owner.networks]
            for slot in slots:
                yield slot.network, self._network(slot.network, internal=all(it.internal for it in before), fixed=True)
        for app in self.published:
            network = self._network(published_network(app), internal=False, fixed=True)
            yield (
                published_network(app),
                Commented(network, f"{sidecar_of(app)} alone, for what the host publishes of it"),
            )
        for plain in self.topology.plain:
            internal = self.application.networks[plain.instead_of].internal
            if plain.names:
                near = f"{sidecar_of(plain.app)} and {', '.join(plain.outsiders)}"
                shown = f"{near}, not in the mesh: plaintext, until its day"
                yield plain.network, Commented(self._network(plain.network, internal=internal, fixed=True), shown)
            if plain.beside:
                shown = (
                    f"{plain.app} itself and {', '.join(plain.beside)}, not in the mesh: plaintext, past its sidecar"
                )
                network = self._network(plain.beside_network, internal=internal, fixed=False)
                yield plain.beside_network, Commented(network, shown)

    def _network(self, key: str, *, internal: bool, fixed: bool) -> dict[str, Any]:
        subnet = self.subnets[key]
        pool = {"subnet": str(subnet), **({"ip_range": str(dynamic_half(subnet))} if fixed else {})}
        pool |= {"gateway": str(gateway(subnet))} if fixed and self.layout.has_gateway(key) else {}
        return {**({"internal": True} if internal else {}), "ipam": Flow({"config": [pool]})}


def logging_of(app: App) -> Mapping[str, Any]:
    """Where a sidecar's log goes: to where its app's goes. Two are not followed, and get :data:`BOUNDED`: ``none``, which
    would hide refusals, and options that hold a secret, which would be copied into a file that people commit."""
    own = app.owner.logging
    return BOUNDED if not own or own.get("driver") == "none" or hidden_options(app) else own


def hidden_options(app: App) -> list[str]:
    """The options of an app's logging that look like secrets."""
    return [name for name in app.owner.logging.get("options") or {} if _SECRET.search(name)]


def health_check(probe: str) -> list[str]:
    """The command of a health check: ``probe`` at once until it succeeds for the first time, and from then on after a pause.
    A check is a process in the container, beside every service for as long as it lives: at each three seconds they took most
    of what the mesh costs at rest."""
    wait = f"if [ -e {WELL} ]; then sleep {CHECK_SECONDS - 1}; fi"
    check = f"if {probe}; then touch {WELL} 2>/dev/null || :; else rm -f {WELL}; exit 1; fi"
    return ["sh", "-c", f"{wait}; {check}"]
