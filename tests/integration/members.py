"""A CA and sidecars that are its members, in the test's own trio loop, on real sockets, disks and files.

What they do every few seconds they do every few milliseconds here (the fixture ``hasty``): nothing is waited for that
does not happen.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import trio

from certs.service import serve
from certs.service.api import RateLimits
from certs.service.limits import Rate
from certs.service.serve import CaServer, Settings
from sidecar.agent import agent
from sidecar.agent.agent import Agent
from sidecar.agent.credentials import Credentials
from sidecar.config.sidecar_yaml import CaIdentity
from sidecar.config.wiring import load_config
from sidecar.host.clock import utc_now
from sidecar.identity.judge import Revocations
from sidecar.lifecycle.reload import Reloader, snapshot
from sidecar.lifecycle.run import machinery
from sidecar.observe.logs import Log
from sidecar.proxy.node import Node
from sidecar.proxy.server import Server
from tests.beds.ca_processes import CaSite
from tests.beds.mesh import LogSink
from tests.beds.processes import DEADLINE

UNLIMITED = RateLimits(identity=Rate(1e9, 1e9), everybody=Rate(1e9, 1e9))


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking and asking at once, where the program waits seconds."""
    monkeypatch.setattr(agent, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(serve, "LOOK_SECONDS", 0.05)


class LiveMember:
    """One sidecar that is a member of the mesh. ``adopted`` are the certificates that were put in force after the first."""

    def __init__(self, file: Path) -> None:
        self.log = LogSink()
        self._log = Log(self.log, "json")
        self.config = load_config(file, {})
        assert isinstance(self.config.identity, CaIdentity)
        self.agent = Agent(self.config.service, self.config.identity, lambda: self.config.mesh, self._log, utc_now)
        self.adopted: list[str] = []
        self.server: Server
        self._news = trio.lowlevel.ParkingLot()
        self._everything = trio.CancelScope()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            with self._everything:
                await self._run(task_status)
        finally:
            print(
                self.config.service,
                "said:",
                *(line for line in self.log.lines if line.get("decision") != "allow"),
                sep="\n",
            )
            with trio.CancelScope(shield=True):
                await self.agent.close()

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        await self.agent.enrol()
        config, loaded = self.config, self.agent.credentials
        assert loaded is not None
        self._last = loaded.svid.sha256
        current = snapshot(config.service, config.mesh, loaded.keys, self.agent.revocations())
        node = Node(config, current, self._log)
        self.server = Server(node)
        self.reloader = Reloader(node, loaded, {}, self.agent.revocations())
        self.agent.follow(lambda: node.current.mesh)
        async with machinery(node), trio.open_nursery() as nursery:
            nursery.start_soon(self.agent.run, self._adopt)
            nursery.start_soon(self.server.serve, trio.Event())
            task_status.started()

    async def _adopt(self, loaded: Credentials, revocations: Revocations) -> None:
        await self.reloader.adopt(loaded, revocations)
        if loaded.svid.sha256 != self._last:
            self._last = loaded.svid.sha256
            self.adopted.append(self._last)
            self._news.unpark_all()

    def stop(self) -> None:
        self._everything.cancel()

    def address(self, name: str) -> tuple[str, int]:
        """Where it listens: ``http`` inbound, ``api:http`` outbound."""
        for listener in self.server.listeners:
            if name == (listener.port if listener.direction == "inbound" else listener.upstream):
                return listener.address
        raise LookupError(name)

    async def until_adopted(self, number: int) -> None:
        with trio.move_on_after(4 * DEADLINE):
            while len(self.adopted) < number:
                await self._news.park()
        if len(self.adopted) < number:
            said = [line for line in self.log.lines if line["event"] != "connection"]
            pytest.fail(f"{len(self.adopted)} of {number} certificates; it said: {said[-8:]}")

    def said(self, event: str) -> list[str]:
        return [line["message"] for line in self.log.events(event)]


@asynccontextmanager
async def live_ca(site: CaSite, ttl: timedelta = timedelta(hours=1)) -> AsyncIterator[CaServer]:
    """``certs serve`` for the time of the block, as often as it is asked."""
    settings = Settings(site.directory, site.path / "mesh.yaml", site.address, site.url, ttl, UNLIMITED)
    sink = LogSink()
    server = CaServer(settings, Log(sink, "json"), utc_now)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run, stop)
        try:
            yield server
        finally:
            print("the CA said:", *(line for line in sink.lines if line["event"] != "connection"), sep="\n")
            stop.set()
            nursery.cancel_scope.deadline = trio.current_time() + 1
