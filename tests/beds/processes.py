"""Sidecars and other programs as real processes, from files made as a newcomer makes them.

A test reads as a transcript: ``async with sidecar_process(shop.wiring("api", …)) as api``, then ``api.event("draining")``.
Nothing here sleeps: every wait is for a line that the process writes, or for its end, and fails after :data:`DEADLINE`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from sidecar.demo.stage import free_ports
from tests import commands
from tests.beds import forks
from tests.beds.patience import PATIENCE

DEADLINE = max(PATIENCE, 30.0)
"""Seconds after which a process that was waited for has failed: only ever reached by a failing test."""

SIDECAR = [sys.executable, "-m", "sidecar"]
CERTS = [sys.executable, "-m", "certs"]

MESH = """\
trust_domain: shop.internal
services:
  web: {}
  api: {ports: {http: 8080}}
  db: {ports: {redis: 6379}}
  reporting: {}
policy:
  - {from: web, to: "api:http"}
  - {from: [web, reporting], to: "db:redis"}
"""


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skips a test, and says why, where a real program is missing that it drives."""
    missing = [name for name in programs if shutil.which(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed on this machine: {', '.join(missing)}")


Process = trio.Process | forks.Forked


class Running:
    """A process that runs. ``lines`` is what it wrote to stdout, ``errors`` to stderr."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self.errors = ""
        self._said: list[dict[str, Any]] = []
        self._events: dict[str, list[dict[str, Any]]] = {}
        self._news = trio.lowlevel.ParkingLot()
        self._streams_open = 2

    # -- what it says --------------------------------------------------------------------------------------------------

    @property
    def said(self) -> list[dict[str, Any]]:
        """Its JSON lines."""
        self._parse()
        return self._said

    def _parse(self) -> None:
        for text in self.lines[len(self._said) :]:  # each once
            line = json.loads(text)
            self._said.append(line)
            self._events.setdefault(line["event"], []).append(line)

    def events(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """Its lines of one event that have these fields."""
        self._parse()
        return [line for line in self._events.get(event, []) if fields.items() <= line.items()]

    @property
    def connections(self) -> list[dict[str, Any]]:
        return self.events("connection")

    async def event(self, event: str, number: int = 1, **fields: Any) -> dict[str, Any]:
        """The ``number``-th (from 1) such line, once it is there."""
        await self.until(lambda: len(self.events(event, **fields)) >= number, f"event {event} {fields or ''}")
        return self.events(event, **fields)[number - 1]

    async def connection(self, number: int = 1) -> dict[str, Any]:
        return await self.event("connection", number)

    async def line(self, text: str) -> str:
        """The first line of stdout with ``text`` in it."""
        await self.until(lambda: any(text in line for line in self.lines), repr(text))
        return next(line for line in self.lines if text in line)

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        with trio.move_on_after(DEADLINE):
            while not condition():
                if not self._streams_open:
                    break
                await self._news.park()
        if not condition():
            pytest.fail(f"waited for {what}; it said:\n{self.text}")

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n" + self.errors

    # -- its life ------------------------------------------------------------------------------------------------------

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Its exit code, once it has ended and all that it said is here."""
        with trio.move_on_after(DEADLINE):
            await self.process.wait()
            await self.until(lambda: not self._streams_open, "its end")
        if self.process.returncode is None:
            pytest.fail(f"it did not end; it said:\n{self.text}")
        return self.process.returncode

    async def read_lines(self, stream: Any) -> None:
        rest = b""
        async for data in stream:
            *lines, rest = (rest + data).split(b"\n")
            self.lines += [line.decode() for line in lines]
            self._news.unpark_all()
        self._closed()

    async def read_errors(self, stream: Any) -> None:
        async for data in stream:
            self.errors += data.decode()
            self._news.unpark_all()
        self._closed()

    def _closed(self) -> None:
        self._streams_open -= 1
        self._news.unpark_all()


@asynccontextmanager
async def begun(
    command: Sequence[str | Path],
    *,
    variables: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    to: int = subprocess.PIPE,
) -> AsyncIterator[Process]:
    """A process that is killed, if need be, at the end of the block. ``variables`` are added to its environment; ``to``:
    where stdout and stderr go. There is a pipe to its stdin, held open: some programs end with their input."""
    words, env = [str(part) for part in command], {**clean_environment(), **(variables or {})}
    start = forks.start if forks.can_start(words, env) else trio.lowlevel.open_process
    process: Process = await start(words, stdin=subprocess.PIPE, stdout=to, stderr=to, env=env, cwd=cwd)
    try:
        yield process
    finally:
        with trio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
            await process.wait()


@asynccontextmanager
async def running(
    *command: str | Path, variables: Mapping[str, str] | None = None, cwd: Path | None = None
) -> AsyncIterator[Running]:
    """The same, with what it says."""
    async with begun(command, variables=variables, cwd=cwd) as process, trio.open_nursery() as nursery:
        program = Running(process)
        nursery.start_soon(program.read_lines, process.stdout)
        nursery.start_soon(program.read_errors, process.stderr)
        yield program
        nursery.cancel_scope.cancel()


async def output(
    *command: str | Path,
    stdin: bytes = b"",
    check: bool = True,
    variables: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """What a program prints, once it has ended: stdout, then stderr."""
    heard = [b"", b""]

    async def hear(number: int, stream: Any) -> None:
        heard[number] = b"".join([data async for data in stream])

    with trio.fail_after(2 * DEADLINE):
        async with begun(command, variables=variables, cwd=cwd) as process, trio.open_nursery() as nursery:
            nursery.start_soon(hear, 0, process.stdout)
            nursery.start_soon(hear, 1, process.stderr)
            assert process.stdin is not None
            async with process.stdin:
                with contextlib.suppress(trio.BrokenResourceError):  # it need not read to the end
                    await process.stdin.send_all(stdin)
            code = await process.wait()
    text = b"".join(heard).decode()
    if check and code:
        pytest.fail(f"{command} ended with {code}:\n{text}")
    return text


def clean_environment() -> dict[str, str]:
    """Ours, without what would configure a sidecar or send an HTTP client elsewhere, and with this checkout importable."""
    ours = {name: value for name, value in os.environ.items() if not name.upper().startswith(("SIDECAR_", "HTTP"))}
    return {**ours, "PYTHONPATH": str(Path(__file__).parents[2])}


# -- the newcomer's files ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shop:
    """A directory with a CA, a mesh.yaml, and a certificate for each service, all made by the commands (in this process: as
    processes they are tested elsewhere)."""

    path: Path

    @classmethod
    def make(cls, path: Path, services: Sequence[str] = ("web", "api", "db", "reporting")) -> Shop:
        path.mkdir(parents=True, exist_ok=True)
        (path / "mesh.yaml").write_text(MESH)
        shop = cls(path)
        shop.certs("init", "ca", "--trust-domain", "shop.internal")
        for service in services:
            shop.certs("issue", "ca", service, "--out", service)
        return shop

    def certs(self, *arguments: str) -> None:
        with contextlib.chdir(self.path):
            commands.ran(*arguments)

    def wiring(self, service: str, body: str, *, certificates: str | None = None) -> Path:
        """Writes a sidecar.yaml, beside mesh.yaml; ``body`` is what follows service, mesh and identity."""
        name = certificates or service
        path = self.path / f"{service}-{len(list(self.path.glob('*.yaml')))}.yaml"
        path.write_text(
            f"service: {service}\nmesh: mesh.yaml\n"
            f"identity: {{files: {{certificate: {name}/certificate.pem, key: {name}/key.pem,"
            f" bundle: {name}/bundle.pem}}}}\n{body}"
        )
        return path


@dataclass(frozen=True)
class SidecarProcess:
    """A sidecar that serves, as a process."""

    program: Running
    started: dict[str, Any]

    def address(self, name: str) -> tuple[str, int]:
        """Where it listens: ``http`` inbound, ``api:http`` outbound."""
        for text in self.started["inbound"] + self.started["outbound"]:
            listener, _, address = text.partition(" on ")
            if listener == name:
                host, _, port = address.rpartition(":")
                return host.strip("[]"), int(port)
        raise LookupError(name)

    def at(self, name: str) -> str:
        """The same as text."""
        host, port = self.address(name)
        return f"{host}:{port}"


@asynccontextmanager
async def sidecar_process(file: Path) -> AsyncIterator[SidecarProcess]:
    """``sidecar run`` on a file, once it has started."""
    async with running(*SIDECAR, "run", file) as program:
        yield SidecarProcess(program, await program.event("started"))


@asynccontextmanager
async def sidecar_pair(
    shop: Shop, app: str, *, service: str = "api", port: str = "http", caller: str = "web", more: str = ""
) -> AsyncIterator[tuple[SidecarProcess, SidecarProcess]]:
    """The callee's sidecar before ``app``, and the caller's that leads to it; ``more`` goes to both files."""
    callee = shop.wiring(service, f'inbound: [{{port: {port}, listen: "127.0.0.1:0", app: "{app}"}}]\n{more}')
    async with sidecar_process(callee) as there:
        wiring = shop.wiring(
            caller,
            f'outbound: [{{to: "{service}:{port}", listen: "127.0.0.1:0", peers: ["{there.at(port)}"]}}]\n{more}',
        )
        async with sidecar_process(wiring) as here:
            yield here, there


def free_port() -> int:
    """A port that nobody listens on, below those that the system gives to whoever connects: one of these could be taken
    between two processes that listen there in turn."""
    (port,) = free_ports(1)
    return port
