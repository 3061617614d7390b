"""``certs serve``: the process. What is in force, and what is followed: files, store, clock.

The CA follows its own directory, ``mesh.yaml`` and its store by looking at them once a second, so that whatever changed
them (an editor, ``certs revoke`` in another terminal, another CA on the same database) is in force in a second, without a
restart.
What is wrong is said, and the last good stays. The list of revocations is signed anew each minute, but only while the store
can be read: a CA that cannot know of a revocation does not vouch that there was none.
"""

from __future__ import annotations

import contextlib
import re
import signal
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

import sqlalchemy as sa
import trio
from cryptography import x509

from certs.authority import authority
from certs.authority.authority import Authority
from certs.protocol.documents import Bundle, RevocationList, UntrustedError, sign_revocations
from certs.registrar import bundles
from certs.registrar.registrar import IssuingPolicy as IssuingTerms
from certs.service.api import Api, RateLimits, Snapshot, etag
from certs.service.listener import Connections
from certs.store.store import Store, StoreUnavailableError, Transaction
from certs.store.writer import Writer
from sidecar.documents.address import Address
from sidecar.host.follow import LOOK_SECONDS, Watch, read_all
from sidecar.identity.judge import VerifyParams
from sidecar.identity.reasons import UsageError
from sidecar.observe.logs import Log
from sidecar.policy.mesh import Mesh, load_mesh
from sidecar.transport import sockets
from sidecar.transport.gate import Gate
from sidecar.transport.tls import Context, KeyPair

CA_SERVICE = "mesh/ca"
SIGN_SECONDS = 60.0
"""How often the list of revocations is signed anew."""

OWN_TTL = timedelta(hours=24)
PRUNE_SECONDS = 3600.0


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
class _Known:
    """What the store holds: the newest bundle's document, and what is revoked as of when it was asked."""

    bundle: str
    revoked: RevocationList


class CaServer:
    """One CA. Everything that can be wrong at start is a :class:`UsageError` of the constructor."""

    def __init__(self, settings: Settings, log: Log, clock: Callable[[], datetime]) -> None:
        self.settings = settings
        self.log = log
        self.clock = clock
        self.store = Store(settings.store_url, clock=lambda: int(clock().timestamp()))
        self.gate = Gate()
        self._followed = [
            settings.mesh,
            *(settings.directory / name for name in (authority.ROOT, authority.ISSUING, authority.DELEGATE)),
        ]
        self._watch = Watch({})
        self._said: dict[str, str] = {}
        try:
            self.api = Api(self, self.store, Writer(self.store), log, clock, settings.limits)
            self._authority = authority.load(settings.directory, clock())
            self._mesh = self._load_mesh()
            self._seed()
            self._known = self.store.read(self._ask)
            self.in_force = self._assemble()
            self._own, self.context = self._show(self.in_force.bundle)
            self.socket = sockets.listen("--listen", settings.listen.host, settings.listen.port)
            self.connections = Connections(
                self.socket, self.api, lambda: self.context, self.gate, log, clock, self._tell
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
        if mesh.trust_domain != self._authority.trust_domain:
            raise UsageError(
                f"{self.settings.mesh}: its trust_domain is {mesh.trust_domain}, and the CA in {self.settings.directory} "
                f"is of {self._authority.trust_domain}"
            )
        return mesh

    def _seed(self) -> None:
        """An empty store gets the bundle that the directory has."""
        document = self.store.read(bundles.newest_bundle) or authority.bundle_document(self.settings.directory).decode()
        bundle = self._read_bundle(document)

        def add(transaction: Transaction) -> None:
            if bundles.newest_bundle(transaction.connection) is None:
                bundles.publish(transaction, bundle, document.encode())

        self.store.write(add)

    def _read_bundle(self, document: str) -> Bundle:
        own = self._authority
        try:
            return bundles.own_bundle(document, own.trust_domain, own.roots, self.clock())
        except UntrustedError as error:
            raise UntrustedError(
                f"the store's trust bundle is not of the CA in {self.settings.directory}: {error}; "
                "is it the store of another CA?"
            ) from error

    def _ask(self, connection: sa.Connection) -> _Known:
        revoked = bundles.revocations(connection, self._authority.trust_domain, self.clock())
        return _Known(bundles.newest_bundle(connection) or "", revoked)

    def _assemble(self) -> Snapshot:
        """From the directory, the mesh, and what the store was last known to hold. Raises :class:`UsageError` and
        :class:`UntrustedError`."""
        own = self._authority
        if own.delegate is None:
            raise UsageError(
                f"{self.settings.directory / authority.DELEGATE} is missing: this CA was made by an older version; "
                f"with the root's key at hand: certs renew-issuing {self.settings.directory}"
            )
        bundle = self._read_bundle(self._known.bundle)
        signed = sign_revocations(self._known.revoked, own.delegate)
        terms = IssuingTerms(
            own,
            frozenset(self._mesh.services),
            self.settings.ttl,
            self._mesh.reenrol_window,
            bundle.distrusted,
            self.api.admit,
        )
        return Snapshot(terms, bundle, signed, etag(signed))

    def _show(self, bundle: Bundle) -> tuple[x509.Certificate, Context]:
        """Our own certificate, new, and the roots whose certificates we take from sidecars. A peer without one gets in too:
        it may enrol. Names of hosts are for people's tools; sidecars look at the identity alone."""
        names = {"localhost", "ca", "mesh-ca", socket.gethostname(), self.settings.listen.host}
        issued = authority.issue(self._authority, CA_SERVICE, self.clock(), OWN_TTL, dns=sorted(names))
        keys = KeyPair(issued.chain, issued.key, bundle.roots)
        terms = VerifyParams(self._authority.trust_domain, max_leaf_ttl=self._mesh.max_leaf_ttl, anonymous=True)
        return issued.chain[0], Context(keys, terms)

    # -- following -----------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        pruned = trio.current_time()
        while True:
            await self._look()
            if trio.current_time() - pruned > PRUNE_SECONDS:
                pruned = trio.current_time()
                with contextlib.suppress(StoreUnavailableError):
                    await self.api.write(bundles.prune)
            await trio.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        """Takes what is new and good; says, once, what is new and is not."""
        now = self.clock()
        if self._watch.look(read_all(self._followed)) is not None:
            taken = [self._try("directory", self._take_authority), self._try("mesh", self._take_mesh)]
            if not all(taken):
                self._watch = Watch({})  # once more when it has settled: another program may have been at work in there
        try:
            known = await trio.to_thread.run_sync(self.store.read, self._ask)
        except StoreUnavailableError as error:
            self.api.metrics.store_up(up=False)
            self._tell("store", f"{error}; what was in force before stays")
        else:
            self.api.metrics.store_up(up=True)
            self._try("store", lambda: self._take_store(known))
        # (A clock that was ahead and is right again leaves a certificate of the future, which nobody takes.)
        begin, end = self._own.not_valid_before_utc, self._own.not_valid_after_utc
        if not begin <= now <= begin + (end - begin) / 2:
            self._try("own certificate", self._take_own)
        self._tell("issuing", authority.soon_over(self._authority, now))

    def _take_authority(self) -> None:
        loaded = authority.load(self.settings.directory, self.clock())
        if loaded.trust_domain != self._authority.trust_domain:
            raise UsageError(
                f"{self.settings.directory} holds a CA of another trust domain now: restart to be that one"
            )
        if _shape(loaded) != _shape(self._authority):
            before, self._authority = self._authority, loaded
            try:
                self._take_all()
            except BaseException:
                self._authority = before
                raise
            end = loaded.issuer.certificate.not_valid_after_utc
            self.log.info("reloaded", message=f"the CA in {self.settings.directory}, issuing until {end:%FT%TZ}")

    def _take_mesh(self) -> None:
        mesh = self._load_mesh()
        if mesh != self._mesh:
            before, self._mesh = self._mesh, mesh
            try:
                self._take_all()
            except BaseException:
                self._mesh = before
                raise
            self.log.info("reloaded", message=f"{self.settings.mesh}: {len(mesh.services)} services")

    def _take_store(self, known: _Known) -> None:
        """The bundle and the revocations, if they changed, or if it is time to sign again."""
        age = (known.revoked.issued_at - self._known.revoked.issued_at).total_seconds()
        changed = known.bundle != self._known.bundle or known.revoked.version != self._known.revoked.version
        if not changed and 0 <= age < SIGN_SECONDS:
            return
        before, bundle = self._known, self.in_force.bundle
        if known.bundle != before.bundle:
            # The files that a bundle is about are there before it is; told of it first, every sidecar would renew, and get
            # a certificate that is no news.
            self._take_authority()
        try:
            self._known = known
            self.in_force = self._assemble()
        except UntrustedError:
            # The bundle is no reason not to tell what is revoked.
            self._known = replace(known, bundle=before.bundle)
            self.in_force = self._assemble()
            raise
        if self.in_force.bundle != bundle:
            self._take_own()
            self.log.info("reloaded", message=f"trust bundle {self.in_force.bundle.version}")

    def _take_all(self) -> None:
        """All at once, or nothing."""
        in_force = self._assemble()
        self._own, self.context = self._show(in_force.bundle)
        self.in_force = in_force

    def _take_own(self) -> None:
        self._own, self.context = self._show(self.in_force.bundle)

    def _try(self, what: str, take: Callable[[], None]) -> bool:
        """Returns False where another try may be of use."""
        try:
            take()
        except (UsageError, UntrustedError, StoreUnavailableError) as error:
            self._tell(what, f"{error}; what was in force before stays")
            return False
        except Exception as error:  # a fault of ours, and no reason to serve nobody
            self.log.bug("reload_failed", error)
        else:
            self._tell(what, None)
        return True

    def _tell(self, what: str, message: str | None) -> None:
        """Says it once, and again when it is mended."""
        if message is None:
            if self._said.pop(what, None) is not None:
                self.log.info("mended", message=f"{what}: good again")
            return
        plain = re.sub(r"[0-9]+", "", message)  # the time that it is may be part of it
        if self._said.get(what) != plain:
            self.log.warning("warning", message=message)
        self._said[what] = plain


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
                message=f"CA of {own.terms.authority.trust_domain} for {len(own.terms.services)} services",
                listen=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
                issuing_until=f"{own.terms.authority.issuer.certificate.not_valid_after_utc:%FT%TZ}",
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
