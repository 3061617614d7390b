"""What is besieged: a CA, the sidecars of web and api as processes on one core, the service behind them, and the control
process. Files, identities and addresses of all that a run needs."""

from __future__ import annotations

import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import trio
from cryptography.hazmat.primitives import serialization

from tests.beds.ca_processes import Caller, CaSite
from tests.bench.stage import Ports
from tests.siege.defences import DESCRIPTORS
from tests.siege.launch import AS_IT_IS
from tests.siege.processes import Process, Processes
from tests.siege.wire import Wire

LOOPBACK = "127.0.0.1"
SILENT_RESOLVER = "127.53.53.53"

MESH = """\
trust_domain: shop.internal
services:
  web: {}
  job: {}
  late: {}
  old: {}
  probe: {}
  api: {ports: {http: 8080}}
policy:
  - {from: [web, job, late], to: "api:http"}
"""
RULES = 3_000

Where = tuple[str, int]


def big_mesh(number: int) -> str:
    """The same mesh, and 3,000 more services with a rule each; ``number`` makes it a new text."""
    services = "".join(f"  s{one}: {{ports: {{http: 80}}}}\n" for one in range(RULES))
    rules = "".join(f"  - {{from: [s{one}], to: ['s{(one + 1) % RULES}:http']}}\n" for one in range(RULES))
    head, policy, own = MESH.partition("policy:\n")
    return f"# {number}\n{head}{services}{policy}{own}{rules}"


@dataclass(frozen=True)
class Besieged:
    """``entry``: where web's app calls api. ``control``: the idle process. ``wire``: what web's sidecar takes for the CA's
    address; where it leads is set at :meth:`Wire.turn`."""

    site: CaSite
    product: Sequence[Process]
    app: Process
    entry: Where
    api: Where
    control: Where
    admins: tuple[Where, Where]
    wire: Wire
    ca_port: int
    keeper: Caller
    prober: Caller
    directory: Path
    conditions: Conditions
    processes: Processes

    def mesh_of(self, service: str) -> Path:
        """Its own copy of mesh.yaml; ``ca`` for the CA's."""
        return self.directory / ("mesh.yaml" if service == "ca" else f"{service}-mesh.yaml")

    def peer(self, service: str) -> Path:
        """A directory with the certificate of an identity that attackers have."""
        return self.directory / f"{service}-identity"


@dataclass(frozen=True, slots=True)
class Conditions:
    """``cores``: the product's, and everybody else's. ``without``: a defence that the product lacks. ``descriptors``: how
    many each of its processes can have."""

    cores: tuple[int, int]
    without: str = AS_IT_IS
    descriptors: int = DESCRIPTORS

    def launched(self, core: int, *command: str | Path) -> list[str | Path]:
        launch = (sys.executable, "-m", "tests.siege.launch", str(core), str(self.descriptors), self.without)
        return [*launch, *command]


def started(line: str) -> bool:
    return '"event": "started"' in line


@asynccontextmanager
async def besieged(directory: Path, processes: Processes, conditions: Conditions) -> AsyncIterator[Besieged]:
    """All of it, serving."""
    product_core, other_core = conditions.cores
    ports = Ports()
    site = CaSite.make(directory, MESH)
    wire_port, api_port, entry_port, app_port, control_port = (ports.take() for _ in range(5))
    admins = ((LOOPBACK, ports.take()), (LOOPBACK, ports.take()))
    serve = ("serve", site.directory, "--mesh", directory / "mesh.yaml", "--listen", f"{site.address}", "--log", "json")
    ca = await processes.start("ca", conditions.launched(product_core, "certs", *serve))
    await ca.line(started)

    app = await processes.start("app", [sys.executable, "-m", "tests.siege.echo", str(other_core), str(app_port)])
    await processes.start("control", [sys.executable, "-m", "tests.siege.echo", str(product_core), str(control_port)])
    callee = f'inbound: [{{port: http, listen: "{LOOPBACK}:{api_port}", app: "{LOOPBACK}:{app_port}"}}]\n'
    caller = f'outbound: [{{to: "api:http", listen: "{LOOPBACK}:{entry_port}", peers: ["{LOOPBACK}:{api_port}"]}}]\n'
    async with trio.open_nursery() as nursery:
        wire = Wire((LOOPBACK, site.port))
        await nursery.start(wire.serve, wire_port)
        sidecars = []
        for service, body, admin, at in (
            ("api", callee, admins[0], site), ("web", caller, admins[1], replace(site, port=wire_port))
        ):  # fmt: skip
            file = at.agent(service, f'admin: {{listen: "{admin[0]}:{admin[1]}"}}\n{body}')
            own_mesh(file, service)
            sidecar = await processes.start(service, conditions.launched(product_core, "sidecar", "run", file))
            await sidecar.line(started)
            sidecars.append(sidecar)
        keeper, prober = site.caller("probe"), site.caller("probe")
        secret = site.make_credentials("probe", kind="secret")["probe"]
        for one in (keeper, prober):
            await one.enrol(secret)
        made = Besieged(
            site, (ca, *sidecars), app, (LOOPBACK, entry_port), (LOOPBACK, api_port), (LOOPBACK, control_port),
            admins, wire, site.port, keeper, prober, directory, conditions, processes,
        )  # fmt: skip
        await issue(site, made)
        try:
            yield made
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 2):
                await keeper.client.close()
                await prober.client.close()
            nursery.cancel_scope.cancel()


def own_mesh(file: Path, service: str) -> None:
    """Gives a sidecar its own copy of mesh.yaml: some attacks are at one process's file."""
    copy = file.with_name(f"{service}-mesh.yaml")
    copy.write_text(MESH)
    file.write_text(file.read_text().replace("mesh: mesh.yaml", f"mesh: {copy.name}"))


async def issue(site: CaSite, made: Besieged) -> None:
    """Certificates for those whom attackers are, and for the sidecar that starts late; one of them is revoked."""
    secrets = site.make_credentials("job", "old", "late", kind="secret")
    for service, secret in secrets.items():
        caller = site.caller(service)
        chain = await caller.enrol(secret)
        await caller.client.close()
        home = made.peer(service)
        home.mkdir()
        (home / "certificate.pem").write_text(chain)
        (home / "bundle.pem").write_bytes((site.directory / "root.pem").read_bytes())
        key = home / "key.pem"
        key.touch(mode=0o600)
        key.write_bytes(
            caller.key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
    await site.certs("revoke", "old")


# -- a sidecar that starts while a resolver is silent ------------------------------------------------------------------


def late_command(made: Besieged, entry: Where, *, resolved: bool) -> list[str | Path]:
    """A sidecar with two names for api's sidecar, in a mount namespace of its own (mount_namespaces(7)): its hosts file has
    the first name, and the second only if ``resolved``; its resolver never answers. It is no part of what is measured, so
    it runs on the other core."""
    home = made.directory / ("late" if resolved else "late-silent")
    home.mkdir(exist_ok=True)
    names = "good.siege slow.siege" if resolved else "good.siege"
    (home / "hosts").write_text(f"127.0.0.1 localhost {names}\n")
    (home / "resolv.conf").write_text(f"nameserver {SILENT_RESOLVER}\n")
    peers = f'"good.siege:{made.api[1]}", "slow.siege:{made.api[1]}"'
    identity = made.peer("late")
    (made.directory / "late.yaml").write_text(
        f"service: late\nmesh: mesh-of-late.yaml\nlog_format: json\n"
        f"identity: {{files: {{certificate: {identity}/certificate.pem, key: {identity}/key.pem, "
        f"bundle: {identity}/bundle.pem}}}}\n"
        f'outbound: [{{to: "api:http", listen: "{entry[0]}:{entry[1]}", peers: [{peers}]}}]\n'
    )
    (made.directory / "mesh-of-late.yaml").write_text(MESH)
    unshare = shutil.which("unshare") or "unshare"
    script = 'mount --bind "$1" /etc/hosts && mount --bind "$2" /etc/resolv.conf && shift 2 && exec "$@"'
    run = made.conditions.launched(made.conditions.cores[1], "sidecar", "run", made.directory / "late.yaml")
    return [unshare, "--mount", "sh", "-c", script, "sh", home / "hosts", home / "resolv.conf", *run]
