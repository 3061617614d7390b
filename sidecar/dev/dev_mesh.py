"""``sidecar dev``: the CA and every sidecar of a mesh in one process, for a laptop. Keys live in memory only.

Each service has its own sidecar with its own certificate, and calls between them use real sockets and real mutual TLS. When
``mesh.yaml`` changes, the new policy is in force at once and live connections are judged by it again. Then listeners are
closed and opened one by one; those that stay are not disturbed.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import trio
from cryptography.hazmat.primitives.serialization import Encoding

from certs.protocol import x509_profile
from sidecar.config.sidecar_yaml import Config, FileIdentity, Inbound, Outbound, Timeouts
from sidecar.dev import control
from sidecar.dev.plan import DevPlan, news, plan
from sidecar.dev.reporting import Callers, Reporting, document
from sidecar.documents.address import Address
from sidecar.documents.regular import Read
from sidecar.host import memory
from sidecar.host.apart import parse_apart
from sidecar.host.clock import utc_now
from sidecar.host.follow import LOOK_SECONDS, QUIET_SECONDS, Follower, ReportOnce
from sidecar.host.process import hangup_ignored, keep_loop_responsive, raise_descriptor_limit
from sidecar.identity.keys import new_key
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import SpiffeId, parse_svid
from sidecar.lifecycle.reload import snapshot
from sidecar.observe import stray
from sidecar.observe.alarm_log import AlarmLog
from sidecar.observe.local import LocalServer
from sidecar.observe.logs import Log
from sidecar.policy.mesh import Mesh, load_mesh
from sidecar.policy.opening import opening
from sidecar.proxy import probing
from sidecar.proxy.node import Node
from sidecar.proxy.probing import Probing
from sidecar.proxy.server import Server
from sidecar.relay.relay import Relay
from sidecar.transport.gate import Gate
from sidecar.transport.tls import KeyPair
from sidecar.transport.tls_data import make_buffer

SHOWN_SECONDS = 2.0
"""From one look of the dashboard to the next."""

WANTED_SECONDS = 0.2
"""Nobody waits longer for the first look."""

DRAIN_SECONDS = 0.5
"""Short, so that Ctrl-C ends the mesh within a second."""


class MemoryCa:
    """A root and an issuing CA that live as long as this object."""

    def __init__(self, trust_domain: str, now: datetime) -> None:
        root_key, issuing_key = (new_key() for _ in range(2))
        root = x509_profile.root(trust_domain, root_key, now)
        issuing = x509_profile.intermediate(
            trust_domain, issuing_key.public_key(), x509_profile.Issuer(root, root_key), now
        )
        self._issuer = x509_profile.Issuer(issuing, issuing_key)
        self.until = issuing.not_valid_after_utc
        self.roots = (root,)

    def issue(self, identity: SpiffeId, now: datetime, ttl: timedelta = x509_profile.DEFAULT_TTL) -> KeyPair:
        """A new key and its certificate, which is valid for an hour unless told otherwise."""
        key = new_key()
        leaf = x509_profile.leaf(identity, key.public_key(), self._issuer, now, ttl)
        return KeyPair((leaf, self._issuer.certificate), key, self.roots)


@dataclass(slots=True)
class _Listener:
    """One open listener. ``stop`` ends it; ``ended`` is set when that has taken effect."""

    server: Server
    stop: trio.Event = field(default_factory=trio.Event)
    ended: trio.Event = field(default_factory=trio.Event)


@dataclass(slots=True)
class _Sidecar:
    """One service's sidecar. Each of its listeners is a server of its own, so that it can be opened and closed alone. All
    serve ``node``, so one reference replaces what their connections are judged by."""

    node: Node
    keys: KeyPair
    listeners: dict[Inbound | Outbound, _Listener] = field(default_factory=dict)

    @property
    def renews_at(self) -> datetime:
        """At half of its certificate's life."""
        leaf = self.keys.chain[0]
        return leaf.not_valid_before_utc + (leaf.not_valid_after_utc - leaf.not_valid_before_utc) / 2

    def take(self, mesh: Mesh, keys: KeyPair) -> None:
        """Puts in force what connections are judged by from now on."""
        self.keys = keys
        self.node.current = snapshot(self.node.config.service, mesh, keys)

    def open(self, entry: Inbound | Outbound) -> _Listener:
        """Opens a listener. Raises :class:`UsageError`."""
        inbound = (entry,) if isinstance(entry, Inbound) else ()
        outbound = (entry,) if isinstance(entry, Outbound) else ()
        listener = self.listeners[entry] = _Listener(Server(self.node, inbound, outbound))
        return listener


@dataclass(frozen=True, slots=True)
class _File:
    """The mesh file, and the plan made from it. A reload replaces both at once."""

    mesh: Mesh
    plan: DevPlan


class DevMesh:
    """A whole mesh in this process, which follows its file. Its listeners are opened when it is made. Raises
    :class:`UsageError` if the file is wrong or a port is taken."""

    def __init__(self, path: Path, log: Log, clock: Callable[[], datetime] = utc_now) -> None:
        self.path = path
        self.log = log
        self._alarms = AlarmLog(log, clock)
        self._hosts = _loopbacks()
        self._clock = clock
        self._started_at = clock()
        self._relay, self._gate = Relay(make_buffer), Gate()
        self._wanted = trio.Event()
        self._refused: dict[str, str] = {}
        self._closed: dict[tuple[str, Inbound | Outbound], str] = {}
        self._callers = Callers()
        self._faults = ReportOnce[str](self._refuse, self._refused.pop, quiet=QUIET_SECONDS)
        self._unopened = ReportOnce[tuple[str, Inbound | Outbound]](
            lambda one, fault: log.warning("reload_incomplete", service=one[0], message=f"{fault}; trying again"),
            lambda one: log.info("listening", service=one[0], message=f"on {one[1].listen} now"),
            exact=True,
        )
        mesh = load_mesh(path)
        self._file = _File(mesh, plan(mesh, clock()))
        try:
            self._ca = MemoryCa(mesh.trust_domain, clock())
        except x509_profile.ProfileError as error:
            raise UsageError(f"{path}: {error}") from error
        # It ends after five minutes, so that what has ended is refused can be tried then.
        self._probe_before = self._ca.issue(self._probe, clock(), x509_profile.MIN_TTL)
        raise_descriptor_limit()
        self._sidecars = {name: self._sidecar(name) for name in self.mesh.services}
        try:
            for sidecar in self._sidecars.values():
                for entry in self._planned(sidecar):
                    sidecar.open(entry)
        except BaseException:
            for listener in self._listeners():
                listener.server.close()
            raise

    @property
    def mesh(self) -> Mesh:
        """The policy in force."""
        return self._file.mesh

    @property
    def plan(self) -> DevPlan:
        """Where everything listens."""
        return self._file.plan

    def node(self, service: str) -> Node:
        """The sidecar of a service."""
        return self._sidecars[service].node

    @property
    def _probe(self) -> SpiffeId:
        """The identity of `sidecar verify`, which no service can have."""
        return SpiffeId(self.mesh.trust_domain, control.PROBE)

    def answers(self, path: Path) -> LocalServer:
        """A server for `sidecar verify` on this Unix socket. Raises :class:`UsageError`."""

        def find(service: str | None) -> Probing | None:
            sidecar = self._sidecars.get(service or "")
            if sidecar is None:
                return None
            calls = [entry for entry in self._planned(sidecar) if isinstance(entry, Outbound)]
            own = [address for listener in sidecar.listeners.values() for address in listener.server.listening]
            return Probing(sidecar.node, lambda: calls, lambda: sidecar.keys, lambda: own)

        def tell() -> dict[str, object]:
            now = self._clock()
            certificates = {"now": self._ca.issue(self._probe, now)}
            if now > self._probe_before.chain[0].not_valid_after_utc:
                certificates["expired"] = self._probe_before
            return control.describe(self.mesh, self.plan, certificates)

        return LocalServer(f"{self.path}", path, probing.routes(find) | control.routes(tell), self.log)

    def shown(self) -> dict[str, Any]:
        """What a CA of this mesh would show of it now: for the dashboard."""
        reporting = [
            Reporting(
                one.node.config, self.mesh, parse_svid(one.keys.chain[0].public_bytes(Encoding.DER)), one.renews_at,
                self._planned(one), one.node.metrics, len(one.node.room.strangers), one.node.registry.idle, self._callers,
                [self._closed[name, entry] for entry in self._planned(one) if (name, entry) in self._closed],
                list(self._refused.values()),
            )
            for name, one in self._sidecars.items()
        ]  # fmt: skip
        alarms = self._alarms.alarms.current()
        return document(self.mesh, reporting, alarms, self._clock(), self._started_at, self._ca.until)

    async def looks(self, is_wanted: Callable[[], bool]) -> AsyncGenerator[dict[str, Any], None]:
        """The same, again and again, while somebody wants it."""
        while True:
            if is_wanted():
                yield self.shown()
                await trio.sleep(SHOWN_SECONDS)
            else:
                await trio.sleep(WANTED_SECONDS)

    async def run(self, stop: trio.Event) -> None:
        """Serves until ``stop``, then drains."""
        async with trio.open_nursery() as machinery:
            machinery.start_soon(self._relay.run)
            machinery.start_soon(self._gate.run)
            machinery.start_soon(self._alarms.run)
            async with trio.open_nursery() as serving:
                for listener in self._listeners():
                    serving.start_soon(_serve, listener)
                self.log.info("started", message=f"{self.path}: {len(self._sidecars)} services; Ctrl-C ends it")
                async with trio.open_nursery() as following:
                    following.start_soon(self._follow, serving)
                    await stop.wait()
                    following.cancel_scope.cancel()
                for listener in self._listeners():
                    listener.stop.set()
            machinery.cancel_scope.cancel()
        self._alarms.write_all()

    def _listeners(self) -> list[_Listener]:
        return [listener for sidecar in self._sidecars.values() for listener in sidecar.listeners.values()]

    # -- changes -------------------------------------------------------------------------------------------------------

    async def _follow(self, serving: trio.Nursery) -> None:
        """Follows the file, and renews certificates after half of their lifetime, by the wall clock."""
        files = Follower(
            {"mesh": [self.path]},
            lambda: self._take(files, serving),
            self._faults,
            partial(self.log.bug, "reload_failed"),
            waits=lambda message: self.log.warning("reload_waiting", message=message),
        )
        day = self._clock().date()
        while True:
            if self._wanted.is_set():
                self._wanted = trio.Event()
                await files.reload()
            else:
                await files.look()
            self._faults.remind()
            self._open_listeners(serving)  # a port that was in use may be free now
            for service, sidecar in self._sidecars.items():
                if self._clock() >= sidecar.renews_at:
                    self.rotate(service)
            if (today := self._clock().date()) != day:  # a rule may have run out
                day = today
                await self._rejudge()
            with trio.move_on_after(LOOK_SECONDS):
                await self._wanted.wait()

    def request_reload(self) -> None:
        """Has the file read again at once."""
        self._wanted.set()

    def rotate(self, service: str) -> None:
        """A new key and certificate for a service, which every new connection uses."""
        sidecar = self._sidecars[service]
        sidecar.take(self.mesh, self._ca.issue(sidecar.node.current.id, self._clock()))
        until = sidecar.keys.chain[0].not_valid_after_utc
        self.log.info("certificate_renewed", service=service, message=f"a new one, good until {until:%T} UTC")

    async def _take(self, files: Follower, serving: trio.Nursery) -> None:
        """Puts the file in force, if it is valid and new."""
        before, was_fault = self._file, bool(self._faults)
        kept = f"still in force: {self.path} as it was read before"
        file = await files.attempt(
            "mesh", partial(self._read, before), before, kept, opens=lambda old, new: opening(old.mesh, new.mesh)
        )
        if self._faults or (file is before and not was_fault):
            return
        self._file, mesh = file, file.mesh
        for service in mesh.services:
            if service in self._sidecars:
                self._sidecars[service].take(mesh, self._sidecars[service].keys)
            else:
                self._sidecars[service] = self._sidecar(service)
            await trio.lowlevel.checkpoint()  # each takes about a millisecond
        cut = await self._rejudge()
        await self._close_listeners()
        self._open_listeners(serving)
        message = "; ".join([f"{self.path} is in force", *news(before.plan, file.plan)])
        self.log.info("reloaded", message=message, connections_cut=cut)

    def _read(self, before: _File, read: Read) -> _File:
        """The file; ``before`` if it says the same. Raises :class:`UsageError`."""
        mesh = load_mesh(self.path, read, before.mesh, parse_apart)
        if mesh == before.mesh:
            return before
        if mesh.trust_domain != before.mesh.trust_domain:
            raise UsageError(f"{self.path}: another trust_domain is another mesh: restart `sidecar dev`")
        return _File(mesh, plan(mesh, self._clock(), before=before.plan))

    async def _rejudge(self) -> int:
        nodes = [sidecar.node for sidecar in self._sidecars.values()]
        return sum([await node.registry.rejudge(node.recheck) for node in nodes])

    async def _close_listeners(self) -> None:
        """Drains the listeners that are not in the plan any more, all at once."""
        leaving = [
            (sidecar, entry)
            for sidecar in self._sidecars.values()
            for entry in sidecar.listeners.keys() - set(self._planned(sidecar))
        ]
        for sidecar, entry in leaving:
            sidecar.listeners[entry].stop.set()
        for sidecar, entry in leaving:
            await sidecar.listeners[entry].ended.wait()
            del sidecar.listeners[entry]
        self._sidecars = {name: self._sidecars[name] for name in self.mesh.services}

    def _open_listeners(self, serving: trio.Nursery) -> None:
        """Opens the listeners of the plan that are not open. A failure is reported once."""
        for service, sidecar in self._sidecars.items():
            for entry in self._planned(sidecar):
                if entry in sidecar.listeners:
                    continue
                try:
                    serving.start_soon(_serve, sidecar.open(entry))
                except UsageError as error:
                    self._closed[service, entry] = str(error)
                    self._unopened.report((service, entry), str(error))
                else:
                    self._closed.pop((service, entry), None)
                    self._unopened.report((service, entry), None)

    def _refuse(self, topic: str, message: str) -> None:
        self._refused[topic] = message
        self.log.warning("reload_refused", message=message)

    # -- wiring --------------------------------------------------------------------------------------------------------

    def _sidecar(self, service: str) -> _Sidecar:
        """The sidecar of a service, without listeners. The configuration is made here; credentials are in no file."""
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
        sharing = len(self.mesh.services)
        node = Node(
            config, current, self.log, self._clock, self._relay, self._gate, sharing=sharing, alarms=self._alarms
        )
        return _Sidecar(node, keys)

    def _planned(self, sidecar: _Sidecar) -> list[Inbound | Outbound]:
        """The listeners that a service's sidecar has in the plan; none if the service is gone."""
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


async def _serve(listener: _Listener) -> None:
    """Serves one listener. No names are looked up: every address is on loopback."""
    try:
        await listener.server.serve(listener.stop)
    finally:
        listener.ended.set()


def _loopbacks() -> list[str]:
    """The loopback addresses: 127.0.0.1, and ::1 where this machine has it."""
    found = ["127.0.0.1"]
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return found
    return [*found, "::1"]


async def run_dev(mesh: DevMesh, *beside: Callable[[], Awaitable[object]]) -> None:
    """Runs a mesh until Ctrl-C or SIGTERM, or until its terminal is closed; a second signal does not wait for connections.
    SIGHUP reads the file again. ``beside``: what runs as long as it does."""
    stop = trio.Event()
    keep_loop_responsive()
    with stray.to_log(mesh.log), hangup_ignored():
        async with trio.open_nursery() as nursery:
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
                nursery.start_soon(_obey, signals, mesh, stop, nursery.cancel_scope)
                try:
                    nursery.start_soon(mesh.answers(control.socket_path(mesh.path, os.environ)).run)
                except UsageError as fault:
                    mesh.log.warning("warning", message=f"`sidecar verify` cannot ask this mesh: {fault}")
                nursery.start_soon(memory.give_back)
                for one in beside:
                    nursery.start_soon(one)
                await mesh.run(stop)
                nursery.cancel_scope.cancel()


async def _obey(signals: AsyncIterator[int], mesh: DevMesh, stop: trio.Event, everything: trio.CancelScope) -> None:
    on_terminal = _has_terminal()
    async for number in signals:
        # A closed terminal sends SIGHUP too.
        if number == signal.SIGHUP and not (on_terminal and not _has_terminal()):
            mesh.request_reload()
            continue
        if stop.is_set():
            everything.cancel()
        stop.set()


def _has_terminal() -> bool:
    try:
        return sys.stdin.isatty()
    except (AttributeError, ValueError):  # there is no stdin, or it is closed
        return False
