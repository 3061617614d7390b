"""``sidecar dev``: the CA and every sidecar of a mesh in one process, for a laptop. Keys live in memory only.

Each service has a sidecar of its own with a certificate of its own, and calls between them cross real sockets in real
mutual TLS; only the files and the network are missing. When ``mesh.yaml`` changes, the new policy is in force at once and
live connections are judged again by it; then listeners come and go one by one, and those that stay are not disturbed.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import trio

from certs.protocol import x509_profile
from sidecar.config.wiring import Config, FileIdentity, Inbound, Outbound, Timeouts
from sidecar.dev.plan import news, plan
from sidecar.documents.address import Address
from sidecar.host.follow import LOOK_SECONDS, Watch, read_all
from sidecar.host.process import raise_descriptor_limit
from sidecar.identity.keys import new_key
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import SpiffeId
from sidecar.lifecycle.reload import snapshot
from sidecar.observe.logs import Log
from sidecar.policy.mesh import Mesh, load_mesh
from sidecar.proxy.node import Node
from sidecar.proxy.server import Server
from sidecar.relay.relay import Relay
from sidecar.transport.dial import Resolver
from sidecar.transport.gate import Gate
from sidecar.transport.tls import KeyPair, make_buffer, utc_now

DRAIN_SECONDS = 0.5
"""Ctrl-C ends in a second."""


class MemoryCa:
    """A root and an issuing CA that live as long as this object."""

    def __init__(self, trust_domain: str, now: datetime) -> None:
        root_key, issuing_key = (new_key() for _ in range(2))
        root = x509_profile.root(trust_domain, root_key, now)
        issuing = x509_profile.intermediate(
            trust_domain, issuing_key.public_key(), x509_profile.Issuer(root, root_key), now
        )
        self._issuer = x509_profile.Issuer(issuing, issuing_key)
        self.roots = (root,)

    def issue(self, identity: SpiffeId, now: datetime) -> KeyPair:
        """A new key and its certificate, for an hour."""
        key = new_key()
        leaf = x509_profile.leaf(identity, key.public_key(), self._issuer, now)
        return KeyPair((leaf, self._issuer.certificate), key, self.roots)


@dataclass(slots=True)
class _Door:
    """One listener that is served. ``ended`` is set when ``stop`` has taken effect."""

    server: Server
    stop: trio.Event = field(default_factory=trio.Event)
    ended: trio.Event = field(default_factory=trio.Event)


@dataclass(slots=True)
class _Sidecar:
    """One service's sidecar. Each of its doors has a server, so that it can come and go alone; they share ``node`` but for
    what they listen on, and ``keys``."""

    node: Node
    keys: KeyPair
    doors: dict[Inbound | Outbound, _Door] = field(default_factory=dict)

    def take(self, mesh: Mesh, keys: KeyPair) -> None:
        """Puts in force what connections are judged by from now on."""
        self.keys = keys
        current = snapshot(self.node.config.service, mesh, keys)
        for node in (self.node, *(door.server.node for door in self.doors.values())):
            node.current = current

    def open(self, listener: Inbound | Outbound) -> _Door:
        """Raises :class:`UsageError`."""
        inbound = (listener,) if isinstance(listener, Inbound) else ()
        outbound = (listener,) if isinstance(listener, Outbound) else ()
        config = replace(self.node.config, inbound=inbound, outbound=outbound)
        server = Server(replace(self.node, config=config, resolver=Resolver(), listening=[]))
        door = self.doors[listener] = _Door(server)
        return door


class DevMesh:
    """A whole mesh in this process, following its file. Its listeners are open when it is made, which raises
    :class:`UsageError` if the file is wrong or a port is taken."""

    def __init__(
        self, path: Path, log: Log, hosts: Iterable[str] | None = None, clock: Callable[[], datetime] = utc_now
    ) -> None:
        self.path = path
        self.log = log
        self._hosts = tuple(hosts or _loopbacks())
        self._clock = clock
        self._relay, self._gate = Relay(make_buffer), Gate()
        self._refused = False
        self._shut: dict[Inbound | Outbound, str] = {}
        self.mesh = load_mesh(path)
        self.plan = plan(self.mesh, clock())
        try:
            self._ca = MemoryCa(self.mesh.trust_domain, clock())
        except x509_profile.ProfileError as error:
            raise UsageError(f"{path}: {error}") from error
        raise_descriptor_limit()
        self._sidecars = {name: self._sidecar(name) for name in self.mesh.services}
        try:
            for sidecar in self._sidecars.values():
                for listener in self._listeners(sidecar):
                    sidecar.open(listener)
        except BaseException:
            for door in self._doors():
                door.server.close()
            raise

    def node(self, service: str) -> Node:
        """The sidecar of a service."""
        return self._sidecars[service].node

    async def run(self, stop: trio.Event) -> None:
        """Serves until ``stop``, then drains."""
        async with trio.open_nursery() as machinery:
            machinery.start_soon(self._relay.run)
            machinery.start_soon(self._gate.run)
            async with trio.open_nursery() as serving:
                for door in self._doors():
                    serving.start_soon(_serve, door)
                self.log.info("started", message=f"{self.path}: {len(self._sidecars)} services; Ctrl-C ends it")
                async with trio.open_nursery() as following:
                    following.start_soon(self._follow, serving)
                    await stop.wait()
                    following.cancel_scope.cancel()
                for door in self._doors():
                    door.stop.set()
            machinery.cancel_scope.cancel()

    def _doors(self) -> list[_Door]:
        return [door for sidecar in self._sidecars.values() for door in sidecar.doors.values()]

    # -- changes -------------------------------------------------------------------------------------------------------

    async def _follow(self, serving: trio.Nursery) -> None:
        """Follows the file, and renews certificates at half of their life, by the wall clock."""
        # It knows nothing yet, so what changed between the start's reading and now is not missed.
        watch, day = Watch({}), self._clock().date()
        while True:
            if watch.look(read_all([self.path])) is not None:
                await self.reload(serving)
            self._open_doors(serving)  # a port that was taken may be free by now
            for service, sidecar in self._sidecars.items():
                leaf = sidecar.keys.chain[0]
                half = (leaf.not_valid_after_utc - leaf.not_valid_before_utc) / 2
                if self._clock() >= leaf.not_valid_before_utc + half:
                    self.rotate(service)
            if (today := self._clock().date()) != day:  # rules end with a day
                day = today
                await self._rejudge()
            await trio.sleep(LOOK_SECONDS)

    def rotate(self, service: str) -> None:
        """A new key and certificate for a service, in force for every connection that begins from now on."""
        sidecar = self._sidecars[service]
        sidecar.take(self.mesh, self._ca.issue(sidecar.node.current.id, self._clock()))
        until = sidecar.keys.chain[0].not_valid_after_utc
        self.log.info("certificate_renewed", service=service, message=f"a new one, good until {until:%T} UTC")

    async def reload(self, serving: trio.Nursery) -> None:
        """Takes the file as it is now; a mistake in it is said, and what was in force stays."""
        refused_before, self._refused = self._refused, False
        try:
            mesh = load_mesh(self.path)
            if mesh.trust_domain != self.mesh.trust_domain:
                raise UsageError(f"{self.path}: another trust_domain is another mesh: start it anew")
            made = plan(mesh, self._clock(), before=self.plan)
        except UsageError as error:
            self._refused = True
            self.log.warning("reload_refused", message=f"{error}; still in force: {self.path} as it was read before")
            return
        if mesh == self.mesh and not refused_before:
            return
        changed = news(self.plan, made)
        self.mesh, self.plan = mesh, made
        for service in mesh.services:
            if service in self._sidecars:
                self._sidecars[service].take(mesh, self._sidecars[service].keys)
            else:
                self._sidecars[service] = self._sidecar(service)
        cut = await self._rejudge()
        await self._close_doors()
        self._open_doors(serving)
        message = "; ".join([f"{self.path} is in force", *changed])
        self.log.info("reloaded", message=message, connections_cut=cut)

    async def _rejudge(self) -> int:
        nodes = [sidecar.node for sidecar in self._sidecars.values()]
        return sum([await node.registry.rejudge(node.standing) for node in nodes])

    async def _close_doors(self) -> None:
        """Drains the listeners that are not in the plan any more, all at once."""
        leaving = [
            (sidecar, listener)
            for sidecar in self._sidecars.values()
            for listener in sidecar.doors.keys() - set(self._listeners(sidecar))
        ]
        for sidecar, listener in leaving:
            sidecar.doors[listener].stop.set()
        for sidecar, listener in leaving:
            await sidecar.doors[listener].ended.wait()
            del sidecar.doors[listener]
        self._sidecars = {name: self._sidecars[name] for name in self.mesh.services}

    def _open_doors(self, serving: trio.Nursery) -> None:
        """Opens the listeners of the plan that are not open; says once why one cannot be."""
        for service, sidecar in self._sidecars.items():
            for listener in self._listeners(sidecar):
                if listener in sidecar.doors:
                    continue
                try:
                    serving.start_soon(_serve, sidecar.open(listener))
                except UsageError as error:
                    if self._shut.get(listener) != str(error):
                        self.log.warning("reload_incomplete", service=service, message=f"{error}; trying again")
                    self._shut[listener] = str(error)
                else:
                    if self._shut.pop(listener, None) is not None:
                        self.log.info("listening", service=service, message=f"on {listener.listen} now")

    # -- wiring --------------------------------------------------------------------------------------------------------

    def _sidecar(self, service: str) -> _Sidecar:
        """The sidecar of a service, without doors; what ``sidecar.yaml`` would say of it. Its credentials are in no file."""
        nowhere = Path("/nonexistent")
        config = Config(
            path=self.path,
            service=service,
            mesh=self.mesh,
            mesh_path=self.path,
            identity=FileIdentity(nowhere, nowhere, nowhere),
            timeouts=Timeouts(drain=DRAIN_SECONDS),
        )
        keys = self._ca.issue(self.mesh.identity(service), self._clock())
        current = snapshot(service, self.mesh, keys)
        return _Sidecar(Node(config, current, self.log, self._clock, self._relay, self._gate), keys)

    def _listeners(self, sidecar: _Sidecar) -> list[Inbound | Outbound]:
        """What a service's sidecar listens on, by the plan; nothing if the service is gone."""
        service, made = sidecar.node.config.service, self.plan
        inbound = [
            Inbound(
                port=target.port,
                listen=Address("127.0.0.1", number),
                apps=tuple(Address(host, made.apps[target]) for host in self._hosts),
                require_alpn=True,
            )
            for target, number in made.inbound.items()
            if target.service == service
        ]
        outbound = [
            Outbound(
                target=call.target,
                listen=Address(host, call.local_port),
                peers=(Address("127.0.0.1", made.inbound[call.target]),),
                require_alpn=True,
            )
            for call in made.of(service)
            for host in self._hosts
        ]
        return [*inbound, *outbound]


async def _serve(door: _Door) -> None:
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(door.server.node.resolver.run)
            await door.server.serve(door.stop)
            nursery.cancel_scope.cancel()
    finally:
        door.ended.set()


def _loopbacks() -> list[str]:
    """127.0.0.1, and ::1 where this machine has it."""
    found = ["127.0.0.1"]
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return found
    return [*found, "::1"]


async def run_dev(mesh: DevMesh) -> None:
    """Runs a mesh until Ctrl-C or SIGTERM; a second one does not wait for connections."""
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
