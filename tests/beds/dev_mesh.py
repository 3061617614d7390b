"""Whole meshes in one process for tests: a mesh file whose ports are free here, and apps where it says.

Local ports are made of names, so a name that ends in ``-TAG`` gets another tag until all of its ports are free on this
machine, and reserved: several runs of these tests at once do not meet.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path

import trio

from sidecar.demo.stage import hold
from sidecar.dev.dev_mesh import DevMesh
from sidecar.dev.plan import DevPlan, plan
from sidecar.host.clock import utc_now
from sidecar.observe.logs import Log
from sidecar.policy.mesh import parse_mesh
from sidecar.policy.names import Target
from sidecar.transport import sockets
from tests.beds.clock import time_passes
from tests.beds.live import exchange
from tests.beds.mesh import App, LogSink, MeshBed, echo, mesh_bed
from tests.beds.patience import PATIENCE

MESH = """\
trust_domain: shop.internal
services:
  web-TAG: {}
  job-TAG: {}
  api-TAG: {ports: {http: 80}}
  db-TAG: {ports: {sql: 81}}
policy:
  - {from: [web-TAG, job-TAG], to: "api-TAG:http"}
  - {from: web-TAG, to: "db-TAG:sql"}
"""
GROWN = MESH + '  - {from: job-TAG, to: "db-TAG:sql"}\n'
"""What it becomes in some tests: its ports are kept free from the beginning."""


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether nobody listens there, and one could."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError:
            return False
    return True


async def connect_to(port: int, host: str = "127.0.0.1") -> socket.socket:
    """A plaintext connection to a port of loopback."""
    with trio.fail_after(PATIENCE):
        return await sockets.connect(socket.AF_INET6 if ":" in host else socket.AF_INET, (host, port))


class MeshFile:
    """A ``mesh.yaml`` for ``sidecar dev``, to be used as a context. Services are named without their tags."""

    def __init__(self, directory: Path, text: str = MESH) -> None:
        self.path = directory / "mesh.yaml"
        self._reserved = ExitStack()
        while True:
            self.tag = secrets.token_hex(3)
            if self._reserve({port for one in (text, GROWN) for port in self._ports(self.plan(one))}):
                break
        self.write(text)

    def __enter__(self) -> MeshFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._reserved.close()

    def free_port(self) -> int:
        """One that no name leads to, another each time."""
        while not self._reserve([port := 30_000 + secrets.randbelow(2_700)]):
            pass
        return port

    def _reserve(self, ports: Iterable[int]) -> bool:
        """Whether these ports were free, and are ours now: as those that :func:`~sidecar.demo.stage.free_ports` finds."""
        with ExitStack() as attempt:
            for port in ports:
                if (held := hold(port)) is None:
                    return False
                attempt.enter_context(held)
            self._reserved.push(attempt.pop_all())
        return True

    def write(self, text: str) -> None:
        fresh = self.path.with_suffix(".fresh")
        fresh.write_text(self.tagged(text))
        fresh.rename(self.path)

    def tagged(self, text: str) -> str:
        return text.replace("TAG", self.tag)

    def plan(self, text: str) -> DevPlan:
        return plan(parse_mesh(self.tagged(text), "mesh.yaml"), utc_now())

    @staticmethod
    def _ports(made: DevPlan) -> Iterator[int]:
        yield from made.apps.values()
        yield from made.inbound.values()
        yield from (call.local_port for call in made.calls)

    @property
    def ports(self) -> list[int]:
        """All of them, as the file is now."""
        return list(self._ports(self.plan(self.path.read_text())))

    def name(self, service: str) -> str:
        return f"{service}-{self.tag}"

    def target(self, text: str) -> Target:
        service, _, port = text.partition(":")
        return Target(self.name(service), port)

    def app(self, target: str, made: DevPlan | None = None) -> int:
        """The port where the app of ``api:http`` is to listen."""
        return (made or self.plan(self.path.read_text())).apps[self.target(target)]

    def call(self, caller: str, target: str, made: DevPlan | None = None) -> int:
        """The port where a call enters the mesh."""
        wanted = (self.name(caller), self.target(target))
        calls = (made or self.plan(self.path.read_text())).calls
        return next(call.local_port for call in calls if (call.caller, call.target) == wanted)


class DevBed:
    """A mesh that runs, and its apps, which send everything back."""

    def __init__(self, file: MeshFile, mesh: DevMesh, log: LogSink, bed: MeshBed) -> None:
        self.file, self.mesh, self.log = file, mesh, log
        self.stop, self.stopped = trio.Event(), trio.Event()
        self._bed = bed

    async def app(
        self, target: str, host: str = "127.0.0.1", handler: Callable[[socket.socket, App], object] = echo
    ) -> App:
        app = App(sockets.listen("test", host, self.file.app(target, self.mesh.plan)), handler)
        self._bed.nursery.start_soon(self._bed.serve_app, app)
        return app

    async def call(self, caller: str, target: str, host: str = "127.0.0.1") -> socket.socket:
        """A new connection of a service's app to where it is told to."""
        return await connect_to(self.file.call(caller, target, self.mesh.plan), host)

    async def works(self, caller: str, target: str, host: str = "127.0.0.1") -> None:
        with await self.call(caller, target, host) as sock:
            await exchange(sock)

    def lines(self, service: str) -> list[dict[str, object]]:
        """The access log of one service's sidecar."""
        return [line for line in self.log.connections if line["service"] == self.file.name(service)]

    async def line(self, service: str, number: int = 1) -> dict[str, object]:
        await self.log.until(lambda: len(self.lines(service)) >= number)
        return self.lines(service)[number - 1]

    async def event(self, event: str, number: int = 1) -> str:
        await self.log.until(lambda: len(self.log.events(event)) >= number)
        return str(self.log.events(event)[number - 1]["message"])

    async def run(self) -> None:
        await self.mesh.run(self.stop)
        self.stopped.set()


@asynccontextmanager
async def dev_bed(
    file: MeshFile, *, apps: bool = True, clock: Callable[[], datetime] = utc_now
) -> AsyncIterator[DevBed]:
    """A mesh that runs as long as the block, with an app at every port (``apps``)."""
    log = LogSink()
    mesh = DevMesh(file.path, Log(log, "json"), clock=clock)
    async with time_passes(), mesh_bed() as bed, trio.open_nursery() as nursery:
        made = DevBed(file, mesh, log, bed)
        if apps:
            for target in mesh.plan.apps:
                await made.app(f"{target.service.rpartition('-')[0]}:{target.port}")
        nursery.start_soon(made.run)
        yield made
        made.stop.set()
