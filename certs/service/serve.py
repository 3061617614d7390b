"""The process of ``certs serve``: start, stop, and reload of the files, the store and its own certificate.

How this works. :class:`CaServer` holds one immutable :class:`_State`, built from three sources: the CA's directory,
``mesh.yaml``, and the store (the newest bundle and what is revoked). :meth:`CaServer._look` polls them once a second. So a
change by an editor, by ``certs revoke`` in another terminal, or by another CA on the same database takes effect within a
second, without a restart.

Invariants:

* A changed source makes a new state, which replaces the old one in one assignment. A request reads the state once, so it
  never sees parts of two.
* A source that is invalid or unreadable is logged once, and the last good state stays.
* The revocation list is signed again each minute, but only while the store can be read. A CA that cannot read revocations
  must not sign that there are none; its sidecars then see the list become stale.
* When a new bundle appears, the directory is read again before the bundle takes effect: a rotation writes the files first.
  If the directory cannot be loaded, a bundle that ends trust in something takes effect all the same, with the keys that are
  in memory, so far as it trusts those; any other waits. ``/healthz`` tells both.
* The CA's own certificate is valid for :data:`OWN_TTL` and is renewed at half of that, and whenever the directory, the mesh
  or the bundle changes.
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
from certs.protocol.documents import MAX_BYTES, Bundle, RevocationList, UntrustedError, sign_revocations
from certs.protocol.x509_profile import Issuer
from certs.registrar import bundles, followers, registrar, revocations
from certs.registrar.commands import ANYWHERE, Commands
from certs.registrar.registrar import IssuingPolicy
from certs.service.admin import open_admin
from certs.service.api import CaApi, RateLimits, Snapshot, etag
from certs.service.listener import CaListener
from certs.service.posting import Posting
from certs.store.store import Store, StoreUnavailableError, Transaction, audit_head
from certs.store.writer import Writer
from sidecar.documents.address import Address
from sidecar.documents.regular import Read, read_regular
from sidecar.host import memory
from sidecar.host.apart import parse_apart
from sidecar.host.disk import Disk, StalledError
from sidecar.host.follow import LOOK_SECONDS, QUIET_SECONDS, Follower, ReportOnce
from sidecar.host.process import hangup_ignored, keep_loop_responsive
from sidecar.identity.judge import Revocations, VerifyParams
from sidecar.identity.keys import key_digest
from sidecar.identity.reasons import UsageError
from sidecar.observe import stray
from sidecar.observe.logs import Log
from sidecar.policy.mesh import Mesh, load_mesh
from sidecar.policy.opening import opening
from sidecar.transport import sockets
from sidecar.transport.gate import Gate
from sidecar.transport.tls import Context, KeyPair

SIGN_SECONDS = 60.0
"""How often the revocation list is signed again."""

OWN_TTL = timedelta(hours=24)
PRUNE_SECONDS = 3600.0

STORE_SECONDS = 20.0
"""How long a look at the store may take: longer than the store itself waits for another program's lock."""

_KEPT = "the previous state stays in force"


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of ``certs serve``. ``ttl``: the lifetime of the certificates that it issues. ``commands``: what its
    messages tell people to do."""

    directory: Path
    mesh: Path
    listen: Address
    store_url: str
    ttl: timedelta
    limits: RateLimits = field(default_factory=RateLimits)
    commands: Commands = ANYWHERE


@dataclass(frozen=True, slots=True)
class _StoreContents:
    """What the store holds: the newest bundle's document, and what was revoked when it was read."""

    bundle: str
    revoked: RevocationList


@dataclass(frozen=True, slots=True)
class _State:
    """The sources, and what was made from them: the snapshot for requests, the CA's own certificate, and its TLS context.
    Replaced as a whole."""

    authority: Authority
    mesh: Mesh
    stored: _StoreContents
    in_force: Snapshot
    own: x509.Certificate
    context: Context


class CaServer:
    """One CA. The constructor raises :class:`UsageError` for everything that can be wrong at start."""

    def __init__(self, settings: Settings, log: Log, clock: Callable[[], datetime]) -> None:
        self.settings = settings
        self.log = log
        self.clock = clock
        self.store = Store(settings.store_url, clock=lambda: int(clock().timestamp()))
        self.gate = Gate()
        self._faults = ReportOnce[str](
            lambda _, fault: log.warning("warning", message=fault),
            lambda topic: log.info("mended", message=f"{topic}: good again"),
            quiet=QUIET_SECONDS,
        )
        self._wanted = trio.Event()
        self._store_disk = Disk(STORE_SECONDS)
        names = (authority.ROOT, authority.ISSUING, authority.DELEGATE)
        self._files = Follower(
            {"directory": [settings.directory / name for name in names], "mesh": [settings.mesh]},
            self._take_files,
            self._faults,
            partial(log.bug, "reload_failed"),
            refusals=(UsageError, UntrustedError, StoreUnavailableError),
            again=True,
            waits=lambda message: log.warning("reload_waiting", message=message),
        )
        try:
            self.api = CaApi(self, self.store, Writer(self.store), log, clock, settings.limits)
            self.api.ailment = self._ailment
            self._posting = Posting(self._alarm_url, log)
            self.api.post = self._posting.put
            own = authority.load(settings.directory, clock())
            self._trust_domain = own.trust_domain
            mesh = self._load_mesh()
            self._seed(own)
            self._signed = b""  # the list in force
            self._coming = frozenset[str]()  # the services of the newest mesh.yaml, in force or not
            self._state = self._build(own, mesh, self.store.read(self._read_store))
            self._signed = self._state.in_force.revocations
            self._newest = self._state.stored.bundle
            self.store.write(partial(followers.forget_all_but, identities=self._identities()))
            self.sockets = sockets.listen_all("--listen", settings.listen.host, settings.listen.port)
            self.connections = CaListener(
                self.sockets, self.api, lambda: self._state.context, self.gate, log, clock, self._faults.report
            )
        except (UntrustedError, StoreUnavailableError) as error:
            self.store.close()
            raise UsageError(str(error)) from error
        except BaseException:
            self.store.close()
            raise

    @property
    def in_force(self) -> Snapshot:
        """The snapshot that answers requests."""
        return self._state.in_force

    def request_reload(self) -> None:
        """Has every source read again at once."""
        self._wanted.set()

    async def run(self, stop: trio.Event) -> None:
        """Serves until ``stop``, then drains."""
        try:
            async with trio.open_nursery() as machinery:
                machinery.start_soon(self.api.writer.run)
                machinery.start_soon(self.gate.run)
                machinery.start_soon(self._follow)
                machinery.start_soon(self._posting.run)
                machinery.start_soon(self.api.desk.log.run)
                await self.connections.run(stop)
                machinery.cancel_scope.cancel()
            self.api.desk.log.write_all()
        finally:
            for sock in self.sockets:
                sock.close()
            self.store.close()

    def _alarm_url(self) -> str | None:
        """Where alarms are posted now."""
        alarm = self._state.mesh.alarm
        return None if alarm is None else alarm.url

    # -- building a state ----------------------------------------------------------------------------------------------

    def _load_mesh(self, read: Read = read_regular, before: Mesh | None = None) -> Mesh:
        mesh = load_mesh(self.settings.mesh, read, before, parse_apart)
        if mesh.trust_domain != self._trust_domain:
            raise UsageError(
                f"{self.settings.mesh}: its trust_domain is {mesh.trust_domain}, but the CA in {self.settings.directory} "
                f"is of {self._trust_domain}"
            )
        return mesh

    def _seed(self, own: Authority) -> None:
        """Publishes the directory's bundle in an empty store."""
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

    def _build(self, own: Authority, mesh: Mesh, stored: _StoreContents) -> _State:
        """A new state, with a new certificate of the CA's own. Raises :class:`UsageError` and :class:`UntrustedError`."""
        in_force = self._make_snapshot(own, mesh, stored)
        return _State(own, mesh, stored, in_force, *self._issue_own_certificate(own, mesh, in_force.bundle))

    def _make_snapshot(self, own: Authority, mesh: Mesh, stored: _StoreContents) -> Snapshot:
        """Raises :class:`UsageError` and :class:`UntrustedError`."""
        if own.delegate is None:
            raise UsageError(
                f"{self.settings.directory / authority.DELEGATE} is missing: this CA was made by an older version; "
                f"with the root's key, run: {self.settings.commands.renew_issuing(str(self.settings.directory))}"
            )
        bundle = self._read_bundle(stored.bundle, own)
        signed = self._sign(own.delegate, bundle, stored)
        policy = IssuingPolicy(
            own,
            frozenset(mesh.services),
            self.settings.ttl,
            mesh.reenrol_window,
            bundle.distrusted,
            self.api.admit,
            self.settings.commands,
            _unfit(own, bundle),
            lambda: self._coming,
        )
        revoked = Revocations(dict(stored.revoked.identities), stored.revoked.serials, bundle.distrusted)
        listed = stored.revoked.version, stored.revoked.issued_at
        return Snapshot(policy, bundle, signed, etag(signed), revoked, listed, mesh.version)

    def _sign(self, delegate: Issuer, bundle: Bundle, stored: _StoreContents) -> bytes:
        """The signed list. With a distrusted delegate it is the last one, as no reader takes anything newer; at the start
        that is an error."""
        if key_digest(delegate.certificate) in bundle.distrusted:  # `renew-issuing --distrust` replaces it next
            if self._signed:
                return self._signed
            raise UsageError(
                f"{self.settings.directory / authority.DELEGATE} has a key that trust bundle {bundle.version} distrusts, so "
                f"no sidecar takes its lists; run: {self.settings.commands.renew_issuing(str(self.settings.directory))}"
            )
        signed = sign_revocations(replace(stored.revoked, bundle=bundle.name, distrusted=bundle.distrusted), delegate)
        if len(signed) > MAX_BYTES:
            raise UsageError(
                f"the list of revocations has {len(signed)} bytes, and its readers read {MAX_BYTES}, so it is not signed: "
                "revoke whole services in place of their single certificates: certs revoke SERVICE"
            )
        return signed

    def _issue_own_certificate(self, own: Authority, mesh: Mesh, bundle: Bundle) -> tuple[x509.Certificate, Context]:
        """A new certificate of the CA, and the TLS context of its listener. The context accepts a client without a
        certificate, because it may enrol. The DNS names are for tools such as curl; sidecars check the SPIFFE ID only."""
        names = {"localhost", "ca", "mesh-ca", socket.gethostname(), self.settings.listen.host}
        issued = authority.issue(own, wire.CA_SERVICE, self.clock(), OWN_TTL, dns=sorted(names))
        keys = KeyPair(issued.chain, issued.key, bundle.roots)
        params = VerifyParams(own.trust_domain, max_leaf_ttl=mesh.max_leaf_ttl, anonymous=True)
        return issued.chain[0], Context(keys, params)

    # -- following the sources -----------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        pruned = trio.current_time()
        while True:
            await self._look()
            if trio.current_time() - pruned > PRUNE_SECONDS:
                pruned = trio.current_time()
                with contextlib.suppress(StoreUnavailableError, StalledError):
                    await self.api.write(partial(registrar.prune, window=self._state.mesh.reenrol_window))
                    head = await self._store_disk.run(partial(self.store.read, audit_head))
                    self.log.info("audit_head", message=f"the newest entry of the audit log is {_expected(head)}")
            with trio.move_on_after(LOOK_SECONDS):
                await self._wanted.wait()

    async def _look(self) -> None:
        """Polls every source once: takes valid changes, and logs each fault once."""
        if self._wanted.is_set():
            self._wanted = trio.Event()
            await self._files.reload()
        else:
            await self._files.look()
        self._faults.remind()
        now = self.clock()
        if now < self._state.stored.revoked.issued_at:  # it was set back, and no reader takes a list with an older date
            with contextlib.suppress(StoreUnavailableError):
                await self.api.write(revocations.raise_version)
        try:
            stored = await self._store_disk.run(partial(self.store.read, self._read_store))
        except (StoreUnavailableError, StalledError) as error:
            self.api.metrics.store_up(up=False)
            self._faults.report("store", f"{error}; {_KEPT}")
        else:
            self.api.metrics.store_up(up=True)
            await self._take_store(stored)
        # Also if it is not valid yet: that remains from a clock that was ahead, and no peer accepts it.
        begin, end = self._state.own.not_valid_before_utc, self._state.own.not_valid_after_utc
        if not begin <= now <= begin + (end - begin) / 2:
            self._swap(await self._files.attempt("own certificate", lambda _: self._renewed(), self._state, _KEPT))
        renew = self.settings.commands.renew_issuing(str(self.settings.directory))
        self._faults.report("issuing", authority.soon_over(self._state.authority, now, renew))

    async def _take_files(self) -> None:
        attempt = self._files.attempt
        self._swap(await attempt("directory", lambda _: self._with_directory(), self._state, _KEPT, reads_disk=True))
        before = self._state.mesh
        self._swap(
            await attempt(
                "mesh", self._with_mesh, self._state, _KEPT, opens=lambda old, new: opening(old.mesh, new.mesh)
            )
        )
        if self._state.mesh is not before:
            with contextlib.suppress(StoreUnavailableError):  # then a rotation waits until their certificates end
                await self.api.write(partial(followers.forget_all_but, identities=self._identities()))

    def _identities(self) -> set[str]:
        return {str(self._state.mesh.identity(service)) for service in self._state.mesh.services}

    async def _take_store(self, stored: _StoreContents) -> None:
        """Takes the bundle and the revocations. If the bundle is refused, the revocations are still taken."""
        current, self._newest = self._state, stored.bundle
        attempt = self._files.attempt
        state = await attempt("store", lambda _: self._with_store(stored), None, _KEPT, reads_disk=True)
        if state is None and stored.bundle == current.stored.bundle:
            return
        if state is None:
            state = await attempt("revocations", lambda _: self._with_present_keys(stored), current, _KEPT)
        self._swap(state)

    def _swap(self, state: _State) -> None:
        before, self._state = self._state, state
        self._signed = state.in_force.revocations
        if state.authority is not before.authority:
            end = state.authority.issuer.certificate.not_valid_after_utc
            self.log.info("reloaded", message=f"the CA in {self.settings.directory}, issuing until {end:%FT%TZ}")
        if state.mesh is not before.mesh:
            self.log.info("reloaded", message=f"{self.settings.mesh}: {len(state.mesh.services)} services")
        if state.in_force.bundle != before.in_force.bundle:
            self.log.info("reloaded", message=f"trust bundle {state.in_force.bundle.version}")

    # -- the state with one source read again; the current state if nothing changed ------------------------------------

    def _with_directory(self) -> _State:
        current, own = self._state, self._load_authority()
        return current if own is current.authority else self._build(own, current.mesh, current.stored)

    def _load_authority(self) -> Authority:
        loaded = authority.load(self.settings.directory, self.clock())
        if loaded.trust_domain != self._trust_domain:
            raise UsageError(
                f"{self.settings.directory} now holds a CA of another trust domain: restart to serve that one"
            )
        before = self._state.authority
        return before if _certificates(loaded) == _certificates(before) else loaded

    def _with_mesh(self, read: Read) -> _State:
        current = self._state
        mesh = self._load_mesh(read, current.mesh)
        self._coming = frozenset(mesh.services)
        return current if mesh == current.mesh else self._build(current.authority, mesh, current.stored)

    def _with_store(self, stored: _StoreContents) -> _State:
        """Changed if the bundle or the revocations did, or if the list must be signed again."""
        current = self._state
        age = (stored.revoked.issued_at - current.stored.revoked.issued_at).total_seconds()
        if stored.bundle != current.stored.bundle:
            # A rotation writes the files before it publishes the bundle, so read them now. Otherwise every sidecar would
            # renew because of the bundle, and get a certificate from the old issuing CA.
            return self._build(self._load_authority(), current.mesh, stored)
        if stored.revoked.version != current.stored.revoked.version or not 0 <= age < SIGN_SECONDS:
            snapshot = self._make_snapshot(current.authority, current.mesh, stored)
            return replace(current, stored=stored, in_force=snapshot)
        return current

    def _with_present_keys(self, stored: _StoreContents) -> _State:
        """Without the directory, which cannot be loaded. A new bundle takes effect if it ends trust in something."""
        current = self._state
        before = current.in_force.bundle
        with contextlib.suppress(UntrustedError):
            bundle = self._read_bundle(stored.bundle, current.authority)
            if not (bundle.distrusted <= before.distrusted and before.anchors <= bundle.anchors):
                return self._build(current.authority, current.mesh, stored)
        return self._with_store(replace(stored, bundle=current.stored.bundle))

    def _ailment(self) -> str | None:
        """Why this CA does not do its work, in words for strangers."""
        state = self._state
        if self._newest != state.stored.bundle:
            return "the newest trust bundle is not in force here; see this CA's log"
        if state.in_force.policy.unfit:
            return f"this CA issues no certificates: {state.in_force.policy.unfit}"
        if abs(self.clock() - state.stored.revoked.issued_at) > timedelta(seconds=3 * SIGN_SECONDS):
            return "the list of revocations cannot be signed; see this CA's log"
        return None

    def _renewed(self) -> _State:
        """With a new certificate of the CA's own."""
        current = self._state
        own, context = self._issue_own_certificate(current.authority, current.mesh, current.in_force.bundle)
        return replace(current, own=own, context=context)


def _unfit(own: Authority, bundle: Bundle) -> str:
    """Why no reader of a bundle would accept what a CA signs; empty if all would."""
    if own.root_digest not in bundle.anchors:
        return "its root is not trusted any longer"
    signers = [own.issuer] if own.delegate is None else [own.issuer, own.delegate]
    if any(key_digest(signer.certificate) in bundle.distrusted for signer in signers):
        return "a key of it is distrusted; certs renew-issuing makes new ones"
    return ""


def _expected(head: str) -> str:
    """The audit log's newest entry, as ``certs audit --expect`` reads it."""
    return head.replace(" ", ":")


def _certificates(loaded: Authority) -> tuple[object, ...]:
    """What differs between two states of the directory. Keys need no comparison: each belongs to its certificate."""
    delegate = None if loaded.delegate is None else loaded.delegate.certificate
    return loaded.roots, loaded.issuer.certificate, delegate


async def serve(settings: Settings, log: Log, clock: Callable[[], datetime]) -> None:
    """Runs a CA until SIGTERM or SIGINT; SIGHUP reads its sources again. Raises :class:`UsageError` at start."""
    keep_loop_responsive()
    with stray.to_log(log), hangup_ignored():
        await _serve(CaServer(settings, log, clock), log)


async def _serve(server: CaServer, log: Log) -> None:
    stop = trio.Event()
    own = server.in_force
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            # Logged after the signal handlers are installed, since a supervisor may send a signal as soon as it reads this.
            log.info(
                "started",
                message=f"CA of {own.policy.authority.trust_domain} for {len(own.policy.services)} services",
                listen=", ".join(sockets.text(sock.getsockname()) for sock in server.sockets),
                issuing_until=f"{own.policy.authority.issuer.certificate.not_valid_after_utc:%FT%TZ}",
                root_sha256=own.bundle.active.hex(),
                bundle=own.bundle.version,
                audit_head=_expected(server.store.read(audit_head)),
            )
            nursery.start_soon(_obey, signals, server, stop, nursery.cancel_scope)
            nursery.start_soon(memory.give_back)
            reports, alarms = server.api.reports, server.api.desk.current
            admin = open_admin(server.settings.directory, reports, server.clock, log, alarms, lambda: server.in_force)
            if admin is not None:
                nursery.start_soon(admin.run)
            await server.run(stop)
            nursery.cancel_scope.cancel()
    log.info("stopped")


async def _obey(signals: AsyncIterator[int], server: CaServer, stop: trio.Event, everything: trio.CancelScope) -> None:
    """SIGHUP reads everything again. The first other signal drains; the second ends the process at once."""
    async for number in signals:
        if number == signal.SIGHUP:
            server.request_reload()
            continue
        if stop.is_set():
            everything.cancel()
        stop.set()
