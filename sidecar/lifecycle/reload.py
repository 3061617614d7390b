"""Changes while a sidecar runs: of the mesh file, and of certificate, key and trust bundle.

How it works. A :class:`~sidecar.proxy.node.Snapshot` holds everything that connections are judged by. The start and every
reload make it with :func:`load_credentials` and :func:`snapshot`, so both apply the same checks. There are three sources:

* files (:class:`~sidecar.host.follow.Follower`): the mesh file and, if the identity is in files, certificate, key, bundle;
* the CA, if it issues the identity: the agent calls :meth:`Reloader.adopt`;
* the date: rules end with a day, so live connections are judged again when the day changes.

Invariants. A reload replaces one reference, ``node.current``: a connection that begins later sees all of the new snapshot,
and live connections are judged again by it. A source that is refused leaves its last good value in force, which is logged
with the time until which that is good, and does not keep a good change of another source out. The wiring (``sidecar.yaml``)
never changes here: a restart applies it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

import trio

from sidecar.agent import credentials
from sidecar.agent.credentials import Credentials
from sidecar.config.sidecar_yaml import Config, FileIdentity
from sidecar.config.wiring import parse_config
from sidecar.documents.regular import Read, read_regular
from sidecar.documents.yaml12 import load_text
from sidecar.host.apart import parse_apart
from sidecar.host.disk import Disk
from sidecar.host.follow import DESCRIPTORS, LOOK_SECONDS, QUIET_SECONDS, Follower, ReportOnce, mounted
from sidecar.identity.judge import Revocations, VerifyParams
from sidecar.identity.reasons import UsageError
from sidecar.policy.mesh import Mesh, load_mesh
from sidecar.policy.opening import opening
from sidecar.proxy.node import Node, Snapshot
from sidecar.transport.tls import Context, KeyPair

EXPIRY_WARNING, EXPIRY_SHARE = timedelta(minutes=10), 0.25
"""How long before the end of our certificate a warning is logged: ten minutes, or a quarter of its life if that is less. A
sidecar that renews at half of its certificate's life, give or take a tenth, never has so little left."""


NOTHING_REVOKED = Revocations()


def load_credentials(config: Config, mesh: Mesh, now: datetime, read: Read = read_regular) -> Credentials:
    """Our own certificate, key and bundle from files, checked. Raises :class:`UsageError`."""
    if not isinstance(config.identity, FileIdentity):
        raise TypeError("an identity that a CA issues has no credential files")
    files, own = config.identity, mesh.identity(config.service)
    params = VerifyParams(mesh.trust_domain, own, mesh.max_leaf_ttl)
    return credentials.load(files.certificate, files.key, files.bundle, params, now, read)


def snapshot(service: str, mesh: Mesh, keys: KeyPair, revocations: Revocations = NOTHING_REVOKED) -> Snapshot:
    """The snapshot that connections of ``service`` are judged by."""
    params = VerifyParams(mesh.trust_domain, max_leaf_ttl=mesh.max_leaf_ttl, revocations=revocations)
    return Snapshot(mesh.identity(service), mesh, Context(keys, params))


CLOCKS_APART_SECONDS = 2.0
"""When the two clocks have moved apart by so much, all that is open is judged again."""


class Reloader:
    """Applies changes of one sidecar's files and of what its CA issues. ``environ``: the environment that its configuration
    was read with. ``refused``: what is refused now of the files, and why, by source."""

    def __init__(
        self,
        node: Node,
        loaded: Credentials,
        environ: Mapping[str, str],
        revocations: Revocations = NOTHING_REVOKED,
    ) -> None:
        self.node = node
        self.loaded = loaded
        self.revocations = revocations
        self._environ = environ
        config = node.config
        sources = {"mesh": [config.mesh_path], "wiring": [config.path]}
        if isinstance(config.identity, FileIdentity):
            files = config.identity
            sources["credentials"] = [files.certificate, files.key, files.bundle]
        self.refused: dict[str, str] = {}
        self._faults = ReportOnce[str](self._refuse, self._log_mended, quiet=QUIET_SECONDS)
        self._wiring = ReportOnce[str](self._warn, exact=True, quiet=QUIET_SECONDS)
        self._expiry = ReportOnce[str](self._warn)
        self._files = Follower(
            sources, self._take, self._faults, self._log_bug, waits=partial(self._warn, "reload_waiting")
        )
        self._wanted = trio.Event()

    async def run(self) -> None:
        """Looks at the files and at the clock, until cancelled."""
        await self._warn_of_mounts()
        day, apart = self.node.clock().date(), self._clocks_apart()
        while True:
            self._watch_expiry()
            if self._wanted.is_set():
                self._wanted = trio.Event()
                await self.reload()
            else:
                await self._files.look()
            self._faults.remind()
            self._wiring.remind()
            today, now_apart = self.node.clock().date(), self._clocks_apart()
            # Rules end with a day. A pass ends by the wall clock, while its connections are cut by the other one, which
            # stands still as long as the machine sleeps.
            if today != day or abs(now_apart - apart) > CLOCKS_APART_SECONDS:
                day, apart = today, now_apart
                await self._rejudge()
            with trio.move_on_after(LOOK_SECONDS):
                await self._wanted.wait()

    def _clocks_apart(self) -> float:
        """Seconds, of the wall clock and the monotonic one. It changes when one of them is set, or stood still."""
        return self.node.clock().timestamp() - self.node.time()

    def request_reload(self) -> None:
        """Has :meth:`run` reload at once."""
        self._wanted.set()

    async def reload(self) -> None:
        """Reads the files now, applies what is good, and judges the live connections by it."""
        await self._files.reload()

    async def adopt(self, loaded: Credentials, revocations: Revocations) -> None:
        """Puts the CA's credentials and revocations in force. Live connections are judged again if roots or revocations
        changed."""
        before = self.loaded.keys.roots, replace(self.revocations, fresh_until=None)
        self.loaded, self.revocations = loaded, revocations
        node = self.node
        node.current = snapshot(node.config.service, node.current.mesh, loaded.keys, revocations)
        if (loaded.keys.roots, replace(revocations, fresh_until=None)) != before:
            cut = await self._rejudge()
            message = "in force now: the CA's trust bundle and revocations"
            node.log.info("reloaded", service=node.config.service, message=message, connections_cut=cut)

    async def _take(self) -> None:
        """Puts what is new and good in force, in one step."""
        node, were_faults = self.node, bool(self._faults)
        before = node.current.mesh
        kept = f"still in force: the policy of {before.filename} as it was read before"
        mesh = await self._files.attempt("mesh", partial(self._load_mesh, before), before, kept, opens=opening)
        fresh = await self._load_credentials(mesh)
        # From here to the change nothing waits: the CA's credentials may have changed until now.
        loaded = fresh or self.loaded
        changed = []
        if mesh is not before:
            longer = mesh.revocation_staleness - before.revocation_staleness
            if (until := self.revocations.fresh_until) is not None:  # at once: the CA may be cut off
                self.revocations = replace(self.revocations, fresh_until=until + longer)
            changed.append(f"policy of {mesh.filename}, rules: {len(mesh.rules)}")
        if loaded.keys.chain != self.loaded.keys.chain:
            changed.append(f"certificate, good until {loaded.svid.not_after:%F %T} UTC")
        if loaded.keys.roots != self.loaded.keys.roots:
            changed.append(f"trust bundle, roots: {len(loaded.keys.roots)}")
        if changed:
            node.current = snapshot(node.config.service, mesh, loaded.keys, self.revocations)
            self.loaded = loaded
        await self._compare_wiring(mesh)
        if not changed and were_faults and not self._faults:
            changed = ["the values from before; their files are good again"]
        if changed:
            cut = await self._rejudge()
            message = f"in force now: {'; '.join(changed)}"
            node.log.info("reloaded", service=node.config.service, message=message, connections_cut=cut)

    async def _load_credentials(self, mesh: Mesh) -> Credentials | None:
        """The certificate, key and bundle of the files; None if they are not in files."""
        node, before = self.node, self.loaded
        if not isinstance(node.config.identity, FileIdentity):
            return None
        now, kept = (
            node.clock(),
            f"still in force: the certificate that is good until {before.svid.not_after:%F %T} UTC",
        )
        return await self._files.attempt(
            "credentials", lambda read: load_credentials(node.config, mesh, now, read), before, kept
        )

    async def _rejudge(self) -> int:
        return await self.node.registry.rejudge(self.node.recheck)

    def _load_mesh(self, before: Mesh, read: Read) -> Mesh:
        """The mesh file; ``before`` if it says the same. Raises :class:`UsageError`, also if a service or port of the wiring
        is not in it."""
        config = self.node.config
        mesh = load_mesh(config.mesh_path, read, before, parse_apart)
        if mesh == before:
            return before
        if mesh.trust_domain != config.mesh.trust_domain:
            raise UsageError(
                f"{config.mesh_path}: its trust_domain has changed, which takes effect with a restart only"
            )
        if config.service not in mesh.services:
            raise UsageError(
                f"{config.mesh_path}: service {config.service!r}, which this sidecar serves, is not in it any more"
            )
        own = [f"{config.service}:{one.port}" for one in config.inbound]
        for target in [*own, *(str(one.target) for one in config.outbound)]:
            try:
                mesh.target(target)
            except ValueError as error:
                raise UsageError(f"{config.mesh_path}: this sidecar is wired to {target}, and {error}") from error
        return mesh

    async def _compare_wiring(self, mesh: Mesh) -> None:
        """Warns once if ``sidecar.yaml`` has changed since the start: the wiring stays until a restart."""
        warning = await self._files.attempt(
            "wiring", partial(self._wiring_fault, mesh), None, "the wiring stays as it is"
        )
        self._wiring.report("restart_needed", warning)

    def _wiring_fault(self, mesh: Mesh, read: Read) -> str | None:
        config = self.node.config
        try:
            fresh = parse_config(load_text(config.path, read), str(config.path), self._environ, mesh)
        except UsageError as error:
            return f"{error}; the wiring stays as it is, and a restart would not succeed"
        if replace(fresh, mesh=config.mesh) != config:
            return f"{config.path} has changed; the change takes effect with a restart"
        return None

    async def _warn_of_mounts(self) -> None:
        try:
            found = await Disk().run(partial(mounted, self._files.paths))
        except OSError:
            return  # nothing is known of mounts; that the files are not readable is said elsewhere
        for path in found:
            self._warn(
                "single_file_mount",
                f"{path} is mounted as a single file: when an editor replaces the file, the change does not arrive here; "
                "mount its directory instead",
            )

    def _refuse(self, topic: str, message: str) -> None:
        self.refused[topic] = message
        self._warn("reload_refused", message)

    def _log_mended(self, topic: str) -> None:
        self.refused.pop(topic, None)
        if topic == DESCRIPTORS:
            message = "file descriptors are free again; files are read"
            self.node.log.info("reloaded", service=self.node.config.service, message=message)

    def _watch_expiry(self) -> None:
        """Warns before our own certificate ends and when it has: from then on every peer refuses it."""
        until = self.loaded.svid.not_after
        left = until - self.node.clock()
        soon = min(EXPIRY_WARNING, (until - self.loaded.svid.not_before) * EXPIRY_SHARE)
        stage = "certificate_expired" if left <= timedelta() else "certificate_expiring"
        advice = "replace it with a new one"
        if not isinstance(self.node.config.identity, FileIdentity):
            advice = "the CA has not issued a new one, and `certificate_failed` in this log says why"
        message = f"our certificate is good until {until:%F %T} UTC only; {advice}"
        for event in ("certificate_expiring", "certificate_expired"):
            self._expiry.report(event, message if event == stage and left <= soon else None)

    def _warn(self, event: str, message: str) -> None:
        self.node.log.warning(event, service=self.node.config.service, message=message)

    def _log_bug(self, error: Exception) -> None:
        self.node.log.bug("reload_failed", error, service=self.node.config.service)
