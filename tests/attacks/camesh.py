"""A whole mesh of real processes, as a newcomer starts it: ``certs init``, ``serve``, ``enrolment``, ``sidecar run``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from sidecar.documents.address import Address
from tests.harness import App
from tests.integration.processes import CERTS, SIDECAR, Running, SidecarProcess, output, running

MESH = """\
trust_domain: shop.internal
services:
  web: {}
  api: {ports: {http: 8080}}
  job: {}
policy:
  - {from: [web, job], to: "api:http"}
"""


@dataclass
class CaProcess:
    """``certs serve`` in one process, and the commands beside it."""

    path: Path
    program: Running
    address: Address

    async def certs(self, *words: str, check: bool = True) -> str:
        """What a command of the CA's prints: ``certs("revoke", "web")``."""
        command, *rest = words
        return await output(*CERTS, command, self.path / "ca", *rest, check=check)

    async def wiring(self, service: str, body: str) -> Path:
        """The sidecar.yaml of a service that has an enrolment secret."""
        secret = self.path / f"{service}.enrol"
        if not secret.exists():
            await self.certs("enrolment", service, "--out", str(secret))
        file = self.path / f"{service}.yaml"
        file.write_text(
            f"service: {service}\nmesh: mesh.yaml\nlog_format: json\n"
            f'identity: {{ca: "https://{self.address}", root: ca/root.pem, enrolment: {secret.name},'
            f" state_dir: {service}-state}}\n{body}"
        )
        return file


@asynccontextmanager
async def ca_process(path: Path, *before: str, mesh: str = MESH) -> AsyncIterator[CaProcess]:
    """A CA that serves; ``before``: what runs it, such as a shell with a limit."""
    (path / "mesh.yaml").write_text(mesh)
    await output(*CERTS, "init", path / "ca", "--trust-domain", "shop.internal")
    serve: tuple[str | Path, ...] = (*CERTS, "serve", path / "ca", "--mesh", path / "mesh.yaml", "--log", "json")
    async with running(*before, *serve, "--listen", "127.0.0.1:0") as program:
        host, _, port = (await program.event("started"))["listen"].rpartition(":")
        yield CaProcess(path, program, Address(host, int(port)))


@dataclass
class Mesh:
    """web's sidecar and api's, and where web's app calls api."""

    ca: CaProcess
    web: SidecarProcess
    api: SidecarProcess

    @property
    def entry(self) -> Address:
        return Address(*self.web.address("api:http"))


@asynccontextmanager
async def ca_mesh(path: Path, app: App) -> AsyncIterator[Mesh]:
    async with ca_process(path) as ca, AsyncExitStack() as stack:

        async def start(service: str, body: str) -> SidecarProcess:
            program = await stack.enter_async_context(running(*SIDECAR, "run", await ca.wiring(service, body)))
            return SidecarProcess(program, await program.event("started"))

        api = await start("api", f'inbound: [{{port: http, listen: "127.0.0.1:0", app: "{app.address}"}}]\n')
        peers = f'peers: ["{api.at("http")}"]'
        web = await start("web", f'outbound: [{{to: "api:http", listen: "127.0.0.1:0", {peers}}}]\n')
        yield Mesh(ca, web, api)
