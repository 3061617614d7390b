"""``sidecar dev``: the CA and every sidecar of a mesh in one process, for a laptop. Keys live in memory only.

Each service has a sidecar of its own with a certificate of its own, and calls between them cross real sockets in real
mutual TLS; only the files and the network are missing. When ``mesh.yaml`` changes, a sidecar whose listeners stay the same
gets the new policy and judges its live connections again; one whose listeners change is drained and started anew.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

import trio
from cryptography.hazmat.primitives.asymmetric import ec

from certs import profile
from sidecar.address import Address
from sidecar.config import Config, FileIdentity, Inbound, Limits, Outbound, Timeouts
from sidecar.devplan import DevPlan, plan
from sidecar.identity import SpiffeId
from sidecar.judge import Terms
from sidecar.logs import Log
from sidecar.mesh import Mesh, load_mesh
from sidecar.node import Generation, Node
from sidecar.policy import Decision
from sidecar.reasons import UsageError
from sidecar.run import raise_descriptor_limit
from sidecar.server import Server
from sidecar.tls import Context, KeyPair, utc_now
from sidecar.watch import LOOK_SECONDS, Watch, read_all

DRAIN_SECONDS = 0.5
"""Ctrl-C ends in a second."""


class MemoryCa:
    """A root and an issuing CA that live as long as this object."""

    def __init__(self, trust_domain: str, now: datetime) -> None:
        root_key, issuing_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        root = profile.root(trust_domain, root_key, now)
        issuing = profile.intermediate(trust_domain, issuing_key.public_key(), profile.Issuer(root, root_key), now)
        self._issuer = profile.Issuer(issuing, issuing_key)
        self.roots = (root,)

    def issue(self, identity: SpiffeId, now: datetime) -> KeyPair:
        """A new key and its certificate, for an hour."""
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = profile.leaf(identity, key.public_key(), self._issuer, now)
        return KeyPair((leaf, self._issuer.certificate), key, self.roots)


@dataclass(slots=True)
class _Running:
    """One service's sidecar. ``keys`` are its own; ``ended`` is set when ``stop`` has taken effect."""

    server: Server
    keys: KeyPair
    stop: trio.Event = field(default_factory=trio.Event)
    ended: trio.Event = field(default_factory=trio.Event)


class DevMesh:
    """A whole mesh in this process, following its file. Its listeners are open when it is made, which raises
    :class:`UsageError` if the file is wrong or a port is taken."""

    def __init__(self, path: Path, log: Log, hosts: Iterable[str] | None = None) -> None:
        self.path = path
        self.log = log
        self._hosts = tuple(hosts or _loopbacks())
        self.mesh = load_mesh(path)
        self.plan = plan(self.mesh, utc_now())
        self._ca = MemoryCa(self.mesh.trust_domain, utc_now())
        self._sidecars: dict[str, _Running] = {}
        self._shared: Node | None = None
        try:
            for config in self._configs(self.mesh, self.plan):
                self._open(config, self.mesh)
        except BaseException:
            for running in self._sidecars.values():
                running.server.close()
            raise

    def node(self, service: str) -> Node:
        """The sidecar of a service."""
        return self._sidecars[service].server.node

    async def run(self, stop: trio.Event) -> None:
        """Serves until ``stop``, then drains."""
        async with trio.open_nursery() as machinery, trio.open_nursery() as nursery:
            for running in self._sidecars.values():
                nursery.start_soon(self._serve, running)
            if self._shared is not None:
                machinery.start_soon(self._shared.relay.run)
                machinery.start_soon(self._shared.gate.run)
            nursery.start_soon(self._follow, nursery)
            await stop.wait()
            for running in self._sidecars.values():
                running.stop.set()
            for running in list(self._sidecars.values()):
                await running.ended.wait()
            nursery.cancel_scope.cancel()
            machinery.cancel_scope.cancel()

    # -- one sidecar ---------------------------------------------------------------------------------------------------

    def _open(self, config: Config, mesh: Mesh) -> _Running:
        keys = self._ca.issue(mesh.identity(config.service), utc_now())
        node = Node(config, self._generation(config, mesh, keys), self.log)
        if self._shared is None:
            self._shared = node
        node.relay, node.gate = self._shared.relay, self._shared.gate
        running = self._sidecars[config.service] = _Running(Server(node), keys)
        return running

    def _generation(self, config: Config, mesh: Mesh, keys: KeyPair) -> Generation:
        context = Context(keys, Terms(mesh.trust_domain, max_leaf_ttl=mesh.max_leaf_ttl))
        return Generation(mesh.identity(config.service), mesh, context)

    async def _serve(self, running: _Running) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(running.server.node.resolver.run)
                await running.server.serve(running.stop)
                nursery.cancel_scope.cancel()
        finally:
            running.ended.set()

    # -- changes -------------------------------------------------------------------------------------------------------

    async def _follow(self, nursery: trio.Nursery) -> None:
        """Follows the file, and renews certificates at half of their life, by the wall clock."""
        watch, day = Watch(read_all([self.path])), utc_now().date()
        while True:
            await trio.sleep(LOOK_SECONDS)
            if watch.look(read_all([self.path])) is not None:
                await self.reload(nursery)
            for running in self._sidecars.values():
                leaf, now = running.keys.chain[0], utc_now()
                if now - leaf.not_valid_before_utc >= (leaf.not_valid_after_utc - leaf.not_valid_before_utc) / 2:
                    self.rotate(running.server.node.config.service)
            if (today := utc_now().date()) != day:
                day = today
                await self._rejudge()

    def rotate(self, service: str) -> None:
        """A new key and certificate for a service, in force for every connection that begins from now on."""
        running = self._sidecars[service]
        node = running.server.node
        running.keys = self._ca.issue(node.current.id, utc_now())
        node.current = self._generation(node.config, node.current.mesh, running.keys)
        until = running.keys.chain[0].not_valid_after_utc
        self.log.info("certificate_renewed", service=service, message=f"a new one, good until {until:%T} UTC")

    async def reload(self, nursery: trio.Nursery) -> None:
        """Takes the file as it is now; a mistake in it is said, and what was in force stays."""
        try:
            mesh = load_mesh(self.path)
            if mesh.trust_domain != self.mesh.trust_domain:
                raise UsageError(f"{self.path}: another trust_domain is another mesh: start it anew")
            made = plan(mesh, utc_now())
        except UsageError as error:
            self.log.warning("reload_refused", message=f"{error}; still in force: {self.path} as it was read before")
            return
        self.mesh, self.plan = mesh, made
        configs = {config.service: config for config in self._configs(mesh, made)}
        moved = [name for name, running in self._sidecars.items() if not _same(running, configs.get(name))]
        for name in moved:
            self._sidecars[name].stop.set()
        for name in moved:
            await self._sidecars[name].ended.wait()
            del self._sidecars[name]
        for name, running in self._sidecars.items():
            running.server.node.current = self._generation(configs[name], mesh, running.keys)
        for name, config in configs.items():
            if name not in self._sidecars:
                try:
                    nursery.start_soon(self._serve, self._open(config, mesh))
                except UsageError as error:
                    self.log.warning("reload_incomplete", service=name, message=f"{error}; {name} has no sidecar now")
        cut = await self._rejudge()
        self.log.info("reloaded", message=f"{self.path} is in force", connections_cut=cut)

    async def _rejudge(self) -> int:
        nodes = [running.server.node for running in self._sidecars.values()]
        return sum([await node.registry.rejudge(node.standing) for node in nodes])

    # -- wiring --------------------------------------------------------------------------------------------------------

    def _configs(self, mesh: Mesh, made: DevPlan) -> list[Config]:
        return [self._config(mesh, made, service) for service in mesh.services]

    def _config(self, mesh: Mesh, made: DevPlan, service: str) -> Config:
        """What ``sidecar.yaml`` would say for a service; its credentials are in no file."""
        nowhere = Path("/nonexistent")
        return Config(
            path=self.path,
            service=service,
            mesh=mesh,
            mesh_path=self.path,
            identity=FileIdentity(nowhere, nowhere, nowhere),
            inbound=tuple(
                Inbound(
                    port=target.port,
                    listen=Address("127.0.0.1", number),
                    apps=tuple(Address(host, made.apps[target]) for host in self._hosts),
                    require_alpn=True,
                    tolerate_missing_close_notify=False,
                    idle_timeout=None,
                    max_age=timedelta(days=1).total_seconds(),
                )
                for target, number in made.inbound.items()
                if target.service == service
            ),
            outbound=tuple(
                Outbound(
                    service=call.target.service,
                    port=call.target.port,
                    listen=Address(host, call.local_port),
                    peers=(Address("127.0.0.1", made.inbound[call.target]),),
                    allow_from=(),
                    device=None,
                    require_alpn=True,
                    tolerate_missing_close_notify=False,
                    idle_timeout=None,
                    max_age=timedelta(days=1).total_seconds(),
                )
                for call in made.of(service)
                for host in self._hosts
            ),
            admin=None,
            timeouts=Timeouts(handshake=5.0, connect=5.0, drain=DRAIN_SECONDS),
            limits=Limits(connections=10_000),
            log_format="auto",
        )


def _same(running: _Running, config: Config | None) -> bool:
    """Whether a sidecar's wiring stays as it is; its policy is swapped without it."""
    old = running.server.node.config
    return config is not None and replace(config, mesh=old.mesh) == old


def _loopbacks() -> list[str]:
    """127.0.0.1, and ::1 where this machine has it."""
    found = ["127.0.0.1"]
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return found
    return [*found, "::1"]


def banner(mesh: Mesh, made: DevPlan) -> str:
    """Who may call whom, and where; for people."""
    lines = [f"{mesh.trust_domain}: {len(mesh.services)} services, each behind its own sidecar; the CA is in memory"]
    for name, service in mesh.services.items():
        lines.append(f"\n  {name}")
        for port in service.ports:
            target = next(target for target in made.apps if (target.service, target.port) == (name, port))
            lines.append(f"    its app should listen for {port} on 127.0.0.1:{made.apps[target]}")
        for call in made.of(name):
            lines.append(f"    calls {call.target} at 127.0.0.1:{call.local_port}{_verdict(call.decision)}")
        if not service.ports and not any(made.of(name)):
            lines.append("    neither calls nor is called")
    return "\n".join(lines)


def _verdict(decision: Decision) -> str:
    return "" if decision.allowed else "  (denied: every call is refused)"


async def run_dev(mesh: DevMesh) -> None:
    """Runs a mesh until Ctrl-C or SIGTERM; a second one does not wait for connections."""
    raise_descriptor_limit()
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            nursery.start_soon(_obey, signals, stop, nursery.cancel_scope)
            await mesh.run(stop)
            nursery.cancel_scope.cancel()


async def _obey(signals: AsyncIterator[int], stop: trio.Event, everything: trio.CancelScope) -> None:
    async for _ in signals:
        if stop.is_set():
            everything.cancel()
        stop.set()
