"""``certs serve``: the process. What is in force, and what is followed: files, store, clock.

The CA follows its own directory, ``mesh.yaml`` and its store by looking at them once a second, so that whatever changed
them (an editor, ``certs revoke`` in another terminal, another CA on the same database) is in force in a second, without a
restart.
What is wrong is said, and the last good stays. The list of revocations is signed anew each minute, but only while the store
can be read: a CA that cannot know of a revocation does not vouch that there was none.
"""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import sqlalchemy as sa
import trio
from cryptography import x509

from certs.authority import authority
from certs.authority.authority import Authority
from certs.protocol import wire
from certs.protocol.documents import Bundle, RevocationList, UntrustedError, sign_revocations
from certs.registrar import bundles, registrar, revocations
from certs.registrar.registrar import IssuingPolicy
from certs.service.api import CaApi, RateLimits, Snapshot, etag
from certs.service.listener import CaListener
from certs.store.store import Store, StoreUnavailableError, Transaction
from certs.store.writer import Writer
from sidecar.documents.address import Address
from sidecar.host.follow import LOOK_SECONDS, Follower, ReportOnce
from sidecar.identity.judge import VerifyParams
from sidecar.identity.reasons import UsageError
from sidecar.observe.logs import Log
from sidecar.policy.mesh import Mesh, load_mesh
from sidecar.transport import sockets
from sidecar.transport.gate import Gate
from sidecar.transport.tls import Context, KeyPair

SIGN_SECONDS = 60.0
"""How often the list of revocations is signed anew."""

OWN_TTL = timedelta(hours=24)
PRUNE_SECONDS = 3600.0

_KEPT = "what was in force before stays"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line says. ``ttl``: of the certificates that it issues."""

    directory: Path
    mesh: Path
    listen: Address
    store_url: str
    ttl: timedelta
    limits: RateLimits = field(default_factory=RateLimits)


@dataclass(frozen=True, slots=True)
class _StoreContents:
    """What the store holds: the newest bundle's document, and what is revoked as of when it was asked."""

    bundle: str
    revoked: RevocationList


@dataclass(frozen=True, slots=True)
class _State:
    """All that is in force, and what it was made of. A change makes a new one, which replaces the old one at once."""

    authority: Authority
    mesh: Mesh
    known: _StoreContents
    in_force: Snapshot
    own: x509.Certificate
    context: Context


class CaServer:
    """One CA. Everything that can be wrong at start is a :class:`UsageError` of the constructor."""

    def __init__(self, settings: Settings, log: Log, clock: Callable[[], datetime]) -> None:
        self.settings = settings
        self.log = log
        self.clock = clock
        self.store = Store(settings.store_url, clock=lambda: int(clock().timestamp()))
        self.gate = Gate()
        self._faults = ReportOnce[str](
            lambda _, fault: log.warning("warning", message=fault),
            lambda what: log.info("mended", message=f"{what}: good again"),
        )
        names = (authority.ROOT, authority.ISSUING, authority.DELEGATE)
        self._files = Follower(
            {"directory": [settings.directory / name for name in names], "mesh": [settings.mesh]},
            self._take_files,
            self._faults,
            partial(log.bug, "reload_failed"),
            refusals=(UsageError, UntrustedError, StoreUnavailableError),
            again=True,
        )
        try:
            self.api = CaApi(self, self.store, Writer(self.store), log, clock, settings.limits)
            own = authority.load(settings.directory, clock())
            self._trust_domain = own.trust_domain
            mesh = self._load_mesh()
            self._seed(own)
            self._state = self._build(own, mesh, self.store.read(self._read_store))
            self.socket = sockets.listen("--listen", settings.listen.host, settings.listen.port)
            self.connections = CaListener(
                self.socket, self.api, lambda: self._state.context, self.gate, log, clock, self._faults.report
            )
        except (UntrustedError, StoreUnavailableError) as error:
            self.store.close()
            raise UsageError(str(error)) from error
        except BaseException:
            self.store.close()
            raise

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.socket.getsockname()[:2]
        return host, port

    @property
    def in_force(self) -> Snapshot:
        """What requests are answered by."""
        return self._state.in_force

    async def run(self, stop: trio.Event) -> None:
        """Serves until ``stop``; then lets requests that are under way end."""
        try:
            async with trio.open_nursery() as machinery:
                machinery.start_soon(self.api.writer.run)
                machinery.start_soon(self.gate.run)
                machinery.start_soon(self._follow)
                await self.connections.run(stop)
                machinery.cancel_scope.cancel()
        finally:
            self.socket.close()
            self.store.close()

    # -- what is in force ----------------------------------------------------------------------------------------------

    def _load_mesh(self) -> Mesh:
        mesh = load_mesh(self.settings.mesh)
        if mesh.trust_domain != self._trust_domain:
            raise UsageError(
                f"{self.settings.mesh}: its trust_domain is {mesh.trust_domain}, and the CA in {self.settings.directory} "
                f"is of {self._trust_domain}"
            )
        return mesh

    def _seed(self, own: Authority) -> None:
        """An empty store gets the bundle that the directory has."""
        document = self.store.read(bundles.newest_bundle) or authority.bundle_document(self.settings.directory).decode()
        bundle = self._read_bundle(document, own)

        def add(transaction: Transaction) -> None:
            if bundles.newest_bundle(transaction.connection) is None:
                bundles.publish(transaction, bundle, document.encode())

        self.store.write(add)

    def _read_bundle(self, document: str, own: Authority) -> Bundle:
        try:
            return bundles.own_bundle(document, own.trust_domain, own.roots, self.clock())
        except UntrustedError as error:
            raise UntrustedError(
                f"the store's trust bundle is not of the CA in {self.settings.directory}: {error}; "
                "is it the store of another CA?"
            ) from error

    def _read_store(self, connection: sa.Connection) -> _StoreContents:
        revoked = revocations.current_list(connection, self._trust_domain, self.clock())
        return _StoreContents(bundles.newest_bundle(connection) or "", revoked)

    def _build(self, own: Authority, mesh: Mesh, known: _StoreContents) -> _State:
        """Raises :class:`UsageError` and :class:`UntrustedError`."""
        in_force = self._assemble(own, mesh, known)
        return _State(own, mesh, known, in_force, *self._issue_own_certificate(own, mesh, in_force.bundle))

    def _assemble(self, own: Authority, mesh: Mesh, known: _StoreContents) -> Snapshot:
        """From the directory, the mesh, and what the store was last known to hold. Raises :class:`UsageError` and
        :class:`UntrustedError`."""
        if own.delegate is None:
            raise UsageError(
                f"{self.settings.directory / authority.DELEGATE} is missing: this CA was made by an older version; "
                f"with the root's key at hand: certs renew-issuing {self.settings.directory}"
            )
        bundle = self._read_bundle(known.bundle, own)
        signed = sign_revocations(known.revoked, own.delegate)
        policy = IssuingPolicy(
            own,
            frozenset(mesh.services),
            self.settings.ttl,
            mesh.reenrol_window,
            bundle.distrusted,
            self.api.admit,
        )
        return Snapshot(policy, bundle, signed, etag(signed))

    def _issue_own_certificate(self, own: Authority, mesh: Mesh, bundle: Bundle) -> tuple[x509.Certificate, Context]:
        """Our own certificate, new, and the roots whose certificates we take from sidecars. A peer without one gets in too:
        it may enrol. Names of hosts are for people's tools; sidecars look at the identity alone."""
        names = {"localhost", "ca", "mesh-ca", socket.gethostname(), self.settings.listen.host}
        issued = authority.issue(own, wire.CA_SERVICE, self.clock(), OWN_TTL, dns=sorted(names))
        keys = KeyPair(issued.chain, issued.key, bundle.roots)
        params = VerifyParams(own.trust_domain, max_leaf_ttl=mesh.max_leaf_ttl, anonymous=True)
        return issued.chain[0], Context(keys, params)

    # -- following -----------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        pruned = trio.current_time()
        while True:
            await self._look()
            if trio.current_time() - pruned > PRUNE_SECONDS:
                pruned = trio.current_time()
                with contextlib.suppress(StoreUnavailableError):
                    await self.api.write(registrar.prune)
            await trio.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        """Takes what is new and good; says, once, what is new and is not."""
        now = self.clock()
        await self._files.look()
        try:
            known = await trio.to_thread.run_sync(self.store.read, self._read_store)
        except StoreUnavailableError as error:
            self.api.metrics.store_up(up=False)
            self._faults.report("store", f"{error}; {_KEPT}")
        else:
            self.api.metrics.store_up(up=True)
            await self._take_store(known)
        # (A clock that was ahead and is right again leaves a certificate of the future, which nobody takes.)
        begin, end = self._state.own.not_valid_before_utc, self._state.own.not_valid_after_utc
        if not begin <= now <= begin + (end - begin) / 2:
            self._swap(await self._files.attempt("own certificate", self._renewed, self._state, _KEPT))
        self._faults.report("issuing", authority.soon_over(self._state.authority, now))

    async def _take_files(self) -> None:
        for topic, load in (("directory", self._with_directory), ("mesh", self._with_mesh)):
            self._swap(await self._files.attempt(topic, load, self._state, _KEPT))

    async def _take_store(self, known: _StoreContents) -> None:
        """The bundle and the revocations. A bundle that is refused is no reason not to tell what is revoked."""
        now = self._state
        state = await self._files.attempt("store", partial(self._with_store, known), None, _KEPT)
        if state is None:
            known = replace(known, bundle=now.known.bundle)
            state = await self._files.attempt("revocations", partial(self._with_store, known), now, _KEPT)
        self._swap(state)

    def _swap(self, state: _State) -> None:
        before, self._state = self._state, state
        if state.authority is not before.authority:
            end = state.authority.issuer.certificate.not_valid_after_utc
            self.log.info("reloaded", message=f"the CA in {self.settings.directory}, issuing until {end:%FT%TZ}")
        if state.mesh is not before.mesh:
            self.log.info("reloaded", message=f"{self.settings.mesh}: {len(state.mesh.services)} services")
        if state.in_force.bundle != before.in_force.bundle:
            self.log.info("reloaded", message=f"trust bundle {state.in_force.bundle.version}")

    # -- what would be in force with a source as it is now; the present state if that changed nothing --------------------

    def _with_directory(self) -> _State:
        now, own = self._state, self._load_authority()
        return now if own is now.authority else self._build(own, now.mesh, now.known)

    def _load_authority(self) -> Authority:
        loaded = authority.load(self.settings.directory, self.clock())
        if loaded.trust_domain != self._trust_domain:
            raise UsageError(
                f"{self.settings.directory} holds a CA of another trust domain now: restart to be that one"
            )
        before = self._state.authority
        return before if _shape(loaded) == _shape(before) else loaded

    def _with_mesh(self) -> _State:
        now, mesh = self._state, self._load_mesh()
        return now if mesh == now.mesh else self._build(now.authority, mesh, now.known)

    def _with_store(self, known: _StoreContents) -> _State:
        """With its bundle and revocations, if they changed, or if it is time to sign again."""
        now = self._state
        age = (known.revoked.issued_at - now.known.revoked.issued_at).total_seconds()
        if known.bundle != now.known.bundle:
            # The files that a bundle is about are there before it is; told of it first, every sidecar would renew, and get
            # a certificate that is no news.
            return self._build(self._load_authority(), now.mesh, known)
        if known.revoked.version != now.known.revoked.version or not 0 <= age < SIGN_SECONDS:
            return replace(now, known=known, in_force=self._assemble(now.authority, now.mesh, known))
        return now

    def _renewed(self) -> _State:
        """With a new certificate of our own."""
        now = self._state
        own, context = self._issue_own_certificate(now.authority, now.mesh, now.in_force.bundle)
        return replace(now, own=own, context=context)


def _shape(loaded: Authority) -> tuple[object, ...]:
    """What tells one state of the directory from another; keys go with their certificates."""
    delegate = None if loaded.delegate is None else loaded.delegate.certificate
    return loaded.roots, loaded.issuer.certificate, delegate


async def serve(settings: Settings, log: Log, clock: Callable[[], datetime]) -> None:
    """Runs a CA until SIGTERM or SIGINT. Raises :class:`UsageError` at start."""
    server = CaServer(settings, log, clock)
    stop = trio.Event()
    host, port = server.address
    own = server.in_force
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            # Said when signals are obeyed: whoever waits for it may send one at once.
            log.info(
                "started",
                message=f"CA of {own.policy.authority.trust_domain} for {len(own.policy.services)} services",
                listen=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
                issuing_until=f"{own.policy.authority.issuer.certificate.not_valid_after_utc:%FT%TZ}",
                root_sha256=own.bundle.active.hex(),
                bundle=own.bundle.version,
            )
            nursery.start_soon(_obey, signals, stop, nursery.cancel_scope)
            await server.run(stop)
            nursery.cancel_scope.cancel()
    log.info("stopped")


async def _obey(signals: AsyncIterator[int], stop: trio.Event, everything: trio.CancelScope) -> None:
    async for _ in signals:
        if stop.is_set():
            everything.cancel()
        stop.set()
