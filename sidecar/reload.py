"""What may change while a sidecar runs: its mesh file, and its certificate, key and trust bundle.

:func:`load` makes a :class:`~sidecar.node.Generation` out of the files; the start and every reload go through it. A reload
swaps one reference: connections that begin after it see all of the new, and those that live are judged again by it. What is
wrong is refused as at the start, but then the last good stays in force, said loudly and with until when. A broken mesh file
does not keep a new certificate out, nor the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

import trio

from sidecar import credentials
from sidecar.config import Config, FileIdentity, load_config
from sidecar.credentials import Credentials
from sidecar.judge import Terms
from sidecar.mesh import Mesh
from sidecar.node import Generation, Node
from sidecar.reasons import UsageError
from sidecar.tls import Context
from sidecar.watch import LOOK_SECONDS, Watch, read_all

_T = TypeVar("_T")

EXPIRY_WARNING = timedelta(minutes=10)


def load_credentials(config: Config, mesh: Mesh, now: datetime) -> Credentials:
    """Our own certificate, key and bundle, checked. Raises :class:`UsageError`."""
    if not isinstance(config.identity, FileIdentity):
        raise UsageError(
            f"{config.path}: identity.ca: this version takes certificates from files only; "
            "make them with `certs issue` and write identity: {files: {certificate: …, key: …, bundle: …}}"
        )
    files, own = config.identity, mesh.identity(config.service)
    terms = Terms(mesh.trust_domain, own, mesh.max_leaf_ttl)
    return credentials.load(files.certificate, files.key, files.bundle, terms, now)


def generation(config: Config, mesh: Mesh, loaded: Credentials) -> Generation:
    """Everything that a connection is judged by."""
    context = Context(loaded.keys, Terms(mesh.trust_domain, max_leaf_ttl=mesh.max_leaf_ttl))
    return Generation(mesh.identity(config.service), mesh, context)


class Reloader:
    """Follows one sidecar's files. ``environ`` is what its configuration was read with."""

    def __init__(self, node: Node, loaded: Credentials, environ: Mapping[str, str]) -> None:
        self.node = node
        self.loaded = loaded
        self._environ = environ
        self._expiry_said = ""
        config = node.config
        self._paths = [config.path, config.mesh_path]
        if isinstance(config.identity, FileIdentity):
            self._paths += [config.identity.certificate, config.identity.key, config.identity.bundle]

    async def run(self) -> None:
        """Looks at the files and at the clock, until cancelled."""
        for path in _mounted(self._paths):
            self._say(
                "single_file_mount",
                f"{path} is mounted as a single file: it will not change here when an editor replaces it there; "
                "mount its directory instead",
            )
        # It knows nothing yet, so what changed between the start's reading and now is not missed.
        watch = Watch({})
        day = self.node.clock().date()
        while True:
            self._watch_expiry()
            if watch.look(read_all(self._paths)) is not None:
                await self.reload()
            if (today := self.node.clock().date()) != day:  # rules end with a day
                day = today
                await self._rejudge()
            await trio.sleep(LOOK_SECONDS)

    async def reload(self) -> None:
        """Takes what the files hold now, as far as it is good, and judges the live connections by it."""
        node, now = self.node, self.node.clock()
        in_force = node.current
        until = f"{self.loaded.svid.not_after:%F %T} UTC"
        mesh = self._try(self._mesh, in_force.mesh, f"the policy of {in_force.mesh.filename} as it was read before")
        loaded = self._try(
            lambda: load_credentials(node.config, mesh, now), self.loaded, f"the certificate that is good until {until}"
        )
        changed = []
        if mesh != in_force.mesh:
            changed.append(f"policy of {mesh.filename}, rules: {len(mesh.rules)}")
        if loaded.keys.chain != self.loaded.keys.chain:
            changed.append(f"certificate, good until {loaded.svid.not_after:%F %T} UTC")
        if loaded.keys.roots != self.loaded.keys.roots:
            changed.append(f"trust bundle, roots: {len(loaded.keys.roots)}")
        if not changed:
            return
        node.current, self.loaded = generation(node.config, mesh, loaded), loaded
        cut = await self._rejudge()
        node.log.info(
            "reloaded", service=node.config.service, message=f"in force now: {'; '.join(changed)}", connections_cut=cut
        )

    async def _rejudge(self) -> int:
        return await self.node.registry.rejudge(self.node.standing)

    def _mesh(self) -> Mesh:
        """The mesh file as it is now. The wiring stays as it was at the start, and a change of it is told."""
        config = self.node.config
        fresh = load_config(config.path, self._environ)
        if fresh.mesh.trust_domain != config.mesh.trust_domain:
            raise UsageError(f"{config.mesh_path}: another trust_domain is another mesh: restart to join it")
        if replace(fresh, mesh=config.mesh) != config:
            self._say("restart_needed", f"{config.path} has changed; what it says takes effect with a restart")
        return fresh.mesh

    def _try(self, attempt: Callable[[], _T], good: _T, what: str) -> _T:
        try:
            return attempt()
        except UsageError as error:
            self._say("reload_refused", f"{error}; still in force: {what}")
            return good

    def _watch_expiry(self) -> None:
        """Says before and when our own certificate runs out: from then on every peer refuses us."""
        until = self.loaded.svid.not_after
        left = until - self.node.clock()
        stage = "expired" if left <= timedelta() else "expiring" if left <= EXPIRY_WARNING else ""
        if stage and stage != self._expiry_said:
            self._say(
                f"certificate_{stage}",
                f"our certificate is good until {until:%F %T} UTC and no longer; put a new one in its place",
            )
        self._expiry_said = stage

    def _say(self, event: str, message: str) -> None:
        self.node.log.warning(event, service=self.node.config.service, message=message)


def _mounted(paths: Iterable[Path], mounts: Path = Path("/proc/self/mountinfo")) -> list[Path]:
    """Those of the paths that are mount points themselves (proc(5)); none where the system does not tell."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return []
    points = {line.split()[4] for line in lines}
    return [path for path in paths if str(path.resolve()) in points]
