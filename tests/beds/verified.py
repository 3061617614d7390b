"""A mesh for `sidecar verify`: real sidecars in the test's own loop, each with the Unix socket by which it is asked."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import trio
from cryptography import x509

from sidecar.documents.address import Address
from sidecar.host.clock import utc_now
from sidecar.identity.judge import Revocations
from sidecar.lifecycle.reload import snapshot
from sidecar.observe.local import LocalServer
from sidecar.policy.mesh import parse_mesh
from sidecar.proxy import probing
from sidecar.proxy.probing import Probing
from sidecar.verify import trial
from sidecar.verify.doors import SocketDoor
from sidecar.verify.judgement import Attempt, Check, Edge, Listener, Report, Status
from sidecar.verify.stranger import Credential as Pem
from sidecar.verify.trial import Place
from tests.beds import certificates
from tests.beds.certificates import HOUR, Credential
from tests.beds.mesh import MESH, App, MeshBed, RunningSidecar, inbound, mesh_bed, outbound
from tests.beds.patience import PATIENCE


def pem(credential: Credential) -> Pem:
    return Pem(credential.chain_pem.decode(), credential.key_pem.decode())


class VerifyBed:
    """web calls api: ``place`` is what `sidecar verify` is told of it. A test bends it, and looks at the report."""

    def __init__(self, bed: MeshBed, directory: Path) -> None:
        self.bed = bed
        self._directory = directory
        authority, now = bed.authority, utc_now()
        self.revoked = authority.leaf("mesh/probe")
        ended = authority.leaf("mesh/probe", not_before=now - 2 * HOUR, not_after=now - timedelta(minutes=1))
        self.place = Place(
            "a test",
            "shop.internal",
            credentials={
                Attempt.NO_RULE: pem(authority.leaf("mesh/probe")),
                Attempt.EXPIRED: pem(ended),
                Attempt.REVOKED: pem(self.revoked),
            },
        )
        self.app: App
        self.web: RunningSidecar
        self.api: RunningSidecar

    async def start(
        self,
        *,
        peer: Callable[[], Address] | None = None,
        clock: Callable[[], datetime] = utc_now,
        web: Credential | None = None,
        revoking: bool = True,
        roots: Sequence[x509.Certificate] = (),
        keep: int = 256,
    ) -> None:
        """The usual mesh, and doors to both. ``peer``: where web finds api, if not at api."""
        authority = self.bed.authority
        self.app = await self.bed.app()
        own = authority.leaf("api").trusting(*authority.roots, *roots)
        self.api = await self.bed.sidecar(
            "api", inbound=[inbound("http", self.app.address)], credential=own, clock=clock, keep=keep
        )
        if revoking:
            self.revoke(self.api, own)
        at = self.api.address("http")
        self.place.listeners.append(Listener("api", "http", str(at)))
        route = outbound("api", "http", at if peer is None else peer(), require_alpn=True)
        calling = web or authority.leaf("web")
        self.web = await self.bed.sidecar("web", outbound=[route], credential=calling)
        self.place.edges.append(Edge("web", "api:http", allowed=True))
        await self.door(self.api, own)
        await self.door(self.web, calling)

    def revoke(self, sidecar: RunningSidecar, own: Credential) -> None:
        """Gives a sidecar the list on which the probe's certificate is."""
        leaf = self.revoked.certificate
        listed = Revocations(serials=frozenset({(leaf.issuer.public_bytes(), leaf.serial_number)}))
        node = sidecar.node
        node.current = snapshot(node.config.service, node.current.mesh, certificates.key_pair(own), listed)

    def put_in_force(self, sidecar: RunningSidecar, mesh: str) -> None:
        """Another policy, at this sidecar alone."""
        sidecar.node.current = replace(sidecar.node.current, mesh=parse_mesh(mesh, "mesh.yaml"))

    async def door(self, sidecar: RunningSidecar, own: Credential) -> None:
        service, node = sidecar.node.config.service, sidecar.node
        keys = self.bed.keys(own)
        one = Probing(node, lambda: node.config.outbound, lambda: keys, lambda: sidecar.server.listening)
        path = self._directory / f"{service}.sock"
        server = LocalServer(
            "test", path, probing.routes(lambda name: one if name in (None, service) else None), node.log
        )
        self.bed.nursery.start_soon(server.run)
        self.place.doors[service] = SocketDoor(f"unix:{path}")

    async def verify(self, **options: Any) -> Report:
        with trio.fail_after(PATIENCE):
            return await trio.to_thread.run_sync(partial(trial.run, self.place, utc_now, **options))


@asynccontextmanager
async def verify_bed(mesh: str = MESH) -> AsyncIterator[VerifyBed]:
    # Not pytest's directory: the path of a Unix socket has 107 bytes at most.
    with tempfile.TemporaryDirectory() as directory:
        async with mesh_bed(mesh) as bed:
            yield VerifyBed(bed, Path(directory))


def found(report: Report, kind: str) -> Check:
    """The one check of a kind that is not ok."""
    (check,) = [one for one in report.checks if one.kind == kind and one.status is not Status.OK]
    return check


def kinds(report: Report) -> set[str]:
    """The kinds of checks that are not ok."""
    return {one.kind for one in report.checks if one.status is not Status.OK}
