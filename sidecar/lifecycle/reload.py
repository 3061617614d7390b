"""What may change while a sidecar runs: its mesh file, and its certificate, key and trust bundle.

:func:`load_credentials` and :func:`snapshot` make what connections are judged by; the start and every reload go through
them. A reload swaps one reference: connections that begin after it see all of the new, and those that live are judged again
by it. What is wrong is refused as at the start, but then the last good stays in force, said loudly and with until when. A
broken mesh file does not keep a new certificate out, nor the other way round; and the wiring, which only a restart changes,
keeps neither out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

import trio

from sidecar.agent import credentials
from sidecar.agent.credentials import Credentials
from sidecar.config.sidecar_yaml import Config, FileIdentity
from sidecar.config.wiring import parse_config
from sidecar.documents.yaml12 import load_text
from sidecar.host.follow import LOOK_SECONDS, Follower, ReportOnce, mounted
from sidecar.identity.judge import Revocations, VerifyParams
from sidecar.identity.reasons import UsageError
from sidecar.policy.mesh import Mesh, load_mesh
from sidecar.proxy.node import Node, Snapshot
from sidecar.transport.tls import Context, KeyPair

EXPIRY_WARNING = timedelta(minutes=10)
NOTHING_REVOKED = Revocations()


def load_credentials(config: Config, mesh: Mesh, now: datetime) -> Credentials:
    """Our own certificate, key and bundle from files, checked. Raises :class:`UsageError`."""
    if not isinstance(config.identity, FileIdentity):
        raise TypeError("credentials that a CA gives are not in files of the configuration")
    files, own = config.identity, mesh.identity(config.service)
    params = VerifyParams(mesh.trust_domain, own, mesh.max_leaf_ttl)
    return credentials.load(files.certificate, files.key, files.bundle, params, now)


def snapshot(service: str, mesh: Mesh, keys: KeyPair, revocations: Revocations = NOTHING_REVOKED) -> Snapshot:
    """Everything that a connection of ``service`` is judged by."""
    params = VerifyParams(mesh.trust_domain, max_leaf_ttl=mesh.max_leaf_ttl, revocations=revocations)
    return Snapshot(mesh.identity(service), mesh, Context(keys, params))


class Reloader:
    """Follows one sidecar's files, and takes what its CA gives. ``environ`` is what its configuration was read with."""

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
        self._faults = ReportOnce[str](lambda _, message: self._say("reload_refused", message))
        self._wiring = ReportOnce[str](self._say, exact=True)
        self._expiry = ReportOnce[str](self._say)
        self._files = Follower(sources, self._take, self._faults, self._log_bug)

    async def run(self) -> None:
        """Looks at the files and at the clock, until cancelled."""
        for path in mounted(self._files.paths):
            self._say(
                "single_file_mount",
                f"{path} is mounted as a single file: it will not change here when an editor replaces it there; "
                "mount its directory instead",
            )
        day = self.node.clock().date()
        while True:
            self._watch_expiry()
            await self._files.look()
            if (today := self.node.clock().date()) != day:  # rules end with a day
                day = today
                await self._rejudge()
            await trio.sleep(LOOK_SECONDS)

    async def reload(self) -> None:
        """Takes what the files hold now, as far as it is good, and judges the live connections by it."""
        await self._files.reload()

    async def adopt(self, loaded: Credentials, revocations: Revocations) -> None:
        """Puts in force what the CA gave; lives on what was let in before, unless that is not believed any more."""
        before = self.loaded.keys.roots, replace(self.revocations, fresh_until=None)
        self.loaded, self.revocations = loaded, revocations
        node = self.node
        node.current = snapshot(node.config.service, node.current.mesh, loaded.keys, revocations)
        if (loaded.keys.roots, replace(revocations, fresh_until=None)) != before:
            cut = await self._rejudge()
            message = "in force now: what the CA says of trust and revocations"
            node.log.info("reloaded", service=node.config.service, message=message, connections_cut=cut)

    async def _take(self) -> None:
        """Puts in force what is new and good, all of it at once."""
        node, in_force, before, were_faults = self.node, self.node.current, self.loaded, bool(self._faults)
        kept = f"still in force: the policy of {in_force.mesh.filename} as it was read before"
        mesh = await self._files.attempt("mesh", self._mesh, in_force.mesh, kept)
        loaded = before
        if isinstance(node.config.identity, FileIdentity):
            kept = f"still in force: the certificate that is good until {before.svid.not_after:%F %T} UTC"
            loaded = await self._files.attempt(
                "credentials", lambda: load_credentials(node.config, mesh, node.clock()), before, kept
            )
        changed = []
        if mesh != in_force.mesh:
            changed.append(f"policy of {mesh.filename}, rules: {len(mesh.rules)}")
        if loaded.keys.chain != before.keys.chain:
            changed.append(f"certificate, good until {loaded.svid.not_after:%F %T} UTC")
        if loaded.keys.roots != before.keys.roots:
            changed.append(f"trust bundle, roots: {len(loaded.keys.roots)}")
        if changed:
            node.current = snapshot(node.config.service, mesh, loaded.keys, self.revocations)
            self.loaded = loaded
        self._compare_wiring(mesh)
        if not changed and were_faults and not self._faults:
            changed = ["what was before, its files are good again"]
        if changed:
            cut = await self._rejudge()
            message = f"in force now: {'; '.join(changed)}"
            node.log.info("reloaded", service=node.config.service, message=message, connections_cut=cut)

    async def _rejudge(self) -> int:
        return await self.node.registry.rejudge(self.node.objection)

    def _mesh(self) -> Mesh:
        """The mesh file as it is now, if what this sidecar is wired to is still in it."""
        config = self.node.config
        mesh = load_mesh(config.mesh_path)
        if mesh.trust_domain != config.mesh.trust_domain:
            raise UsageError(f"{config.mesh_path}: another trust_domain is another mesh: restart to join it")
        if config.service not in mesh.services:
            raise UsageError(
                f"{config.mesh_path}: it has no service {config.service!r} any more, and this is its sidecar"
            )
        own = [f"{config.service}:{one.port}" for one in config.inbound]
        for target in [*own, *(str(one.target) for one in config.outbound)]:
            try:
                mesh.target(target)
            except ValueError as error:
                raise UsageError(f"{config.mesh_path}: this sidecar is wired to {target}, and {error}") from error
        return mesh

    def _compare_wiring(self, mesh: Mesh) -> None:
        """The wiring stays as it was at the start; that its file says something else by now is told, once."""
        config, said = self.node.config, None
        try:
            fresh = parse_config(load_text(config.path), str(config.path), self._environ, mesh)
            if replace(fresh, mesh=config.mesh) != config:
                said = f"{config.path} has changed; what it says takes effect with a restart"
        except UsageError as error:
            said = f"{error}; the wiring stays as it is, and a restart would not succeed"
        self._wiring.report("restart_needed", said)

    def _watch_expiry(self) -> None:
        """Says before and when our own certificate runs out: from then on every peer refuses us."""
        until = self.loaded.svid.not_after
        left = until - self.node.clock()
        stage = "certificate_expired" if left <= timedelta() else "certificate_expiring"
        mend = "put a new one in its place"
        if not isinstance(self.node.config.identity, FileIdentity):
            mend = "the CA has not given a new one"
        message = f"our certificate is good until {until:%F %T} UTC and no longer; {mend}"
        for event in ("certificate_expiring", "certificate_expired"):
            self._expiry.report(event, message if event == stage and left <= EXPIRY_WARNING else None)

    def _say(self, event: str, message: str) -> None:
        self.node.log.warning(event, service=self.node.config.service, message=message)

    def _log_bug(self, error: Exception) -> None:
        self.node.log.bug("reload_failed", error, service=self.node.config.service)
