"""The demo's environment: a CA and files in a temporary directory, apps and sidecars as processes, and their logs."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

PATIENCE_SECONDS = 60.0
"""How long something may take to come that a failing demo alone waits for."""

MOST_PORTS = 100
_ours: deque[int] = deque()  # descriptors of sockets that are bound to the ports that were found last


class StoryError(Exception):
    """A check of the demo does not hold; the demo fails."""


class LogFile:
    """The log lines of one process, as they arrive."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: list[dict[str, Any]] = []
        self._news = trio.lowlevel.ParkingLot()

    def add(self, text: str) -> None:
        try:
            self.lines.append(json.loads(text))
        except ValueError as error:
            raise StoryError(f"{self.name}'s sidecar wrote a line that is not JSON: {text!r}") from error
        self._news.unpark_all()

    async def find(self, since: int = 0, **expected: object) -> dict[str, Any]:
        """The first line with these values, after the first ``since`` lines. Raises :class:`StoryError` after a timeout."""
        with trio.move_on_after(PATIENCE_SECONDS):
            while True:
                for line in self.lines[since:]:
                    if all(line.get(key) == value for key, value in expected.items()):
                        return line
                await self._news.park()
        wanted = ", ".join(f"{key}={value}" for key, value in expected.items())
        seen = (
            "; ".join(f"{line['event']} {line.get('reason', '')}".strip() for line in self.lines[since:]) or "nothing"
        )
        raise StoryError(f"{self.name}'s sidecar never logged {wanted}; it logged: {seen}")


class Stage:
    """The directory, and every process."""

    def __init__(self, directory: Path, nursery: trio.Nursery) -> None:
        self.directory = directory
        self._nursery = nursery
        self._environ = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")}

    async def certs(self, *words: str, **variables: str) -> None:
        """Runs ``certs`` with these arguments; ``variables`` are added to its environment. Raises :class:`StoryError`."""
        command = [sys.executable, "-m", "certs", *words]
        environ = {**self._environ, **variables}
        done = await trio.run_process(command, cwd=self.directory, env=environ, capture_stdout=True, check=False)
        if done.returncode:
            raise StoryError(f"certs {' '.join(words)} ended with exit code {done.returncode}; see above")

    def write(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text)

    def read(self, name: str) -> str:
        return (self.directory / name).read_text()

    def steal(self, service: str, directory: str) -> None:
        """Copies the state of a service's sidecar: its key, its certificate, and the trusted root."""
        kept = self.read(f"{service}.state/identity.pem")
        key, begin, chain = kept.partition("-----BEGIN CERTIFICATE-----")
        (self.directory / directory).mkdir()
        for name, text in (("key", key), ("certificate", begin + chain), ("bundle", self.read("root.pem"))):
            path = self.directory / directory / f"{name}.pem"
            path.touch(0o600)
            path.write_text(text)

    async def certs_until(self, text: str, *words: str) -> None:
        """Runs ``certs`` with these arguments until it has printed ``text``, then terminates it, as Ctrl-C would."""
        process = await self._start([sys.executable, "-m", "certs", *words], stdout=subprocess.PIPE)
        assert process.stdout is not None  # noqa: S101 (it was asked for)
        output = b""
        with trio.move_on_after(PATIENCE_SECONDS):
            async for chunk in process.stdout:
                output += chunk
                if text.encode() in output:
                    process.terminate()
                    await process.wait()
                    return
        raise StoryError(f"certs {' '.join(words)} did not print {text!r}; its output: {output.decode()}")

    async def ca(self, port: int) -> LogFile:
        """Starts ``certs serve``; returns its log once it serves."""
        words = ["serve", "ca", "--mesh", "mesh.yaml", "--listen", f"127.0.0.1:{port}", "--log", "json"]
        return await self._logged(LogFile("the CA"), [sys.executable, "-m", "certs", *words])

    async def sidecar(self, name: str) -> LogFile:
        """Starts ``sidecar run NAME.yaml``; returns its log once it serves."""
        return await self._logged(LogFile(name), [sys.executable, "-m", "sidecar", "run", f"{name}.yaml"])

    async def _logged(self, log: LogFile, command: list[str]) -> LogFile:
        process = await self._start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._nursery.start_soon(self._read, process, log)
        await log.find(event="started")
        return log

    async def _read(self, process: trio.Process, log: LogFile) -> None:
        assert process.stdout is not None  # noqa: S101 (it was asked for)
        rest = b""
        async for chunk in process.stdout:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                log.add(line.decode())
        if (code := await process.wait()) > 0:
            assert process.stderr is not None  # noqa: S101 (likewise)
            output = (await process.stderr.receive_some(4096)).decode()
            raise StoryError(f"{log.name}'s sidecar ended with exit code {code}: {output}")

    async def app(self, name: str, port: int, upstream: int = 0) -> None:
        """Starts one of the demo's apps; returns when it accepts connections."""
        await self._start([sys.executable, "-m", "sidecar.demo.apps", name, str(port), str(upstream)])
        await self._until_open(name, port)

    async def redis(self, port: int) -> str:
        """Starts redis-server if it is installed, else the stand-in. Returns a description of it."""
        if shutil.which("redis-server") is None:
            await self.app("redis", port)
            return "a stand-in (no redis-server is installed here)"
        words = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.directory)]
        await self._start(["redis-server", *words], stdout=subprocess.DEVNULL)
        await self._until_open("redis-server", port)
        return "a real redis-server"

    async def _start(self, command: list[str], **options: Any) -> trio.Process:
        """Starts a process that ends with the stage."""
        run = partial(trio.run_process, command, cwd=self.directory, env=self._environ, check=False, **options)
        process: trio.Process = await self._nursery.start(run)
        return process

    async def background(self, task: Callable[..., Awaitable[None]]) -> None:
        """Starts a task that ends with the stage; returns when the task has started."""
        await self._nursery.start(task)

    async def _until_open(self, name: str, port: int) -> None:
        with trio.move_on_after(PATIENCE_SECONDS):
            while True:
                try:
                    await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
                except OSError:
                    await trio.sleep(0.02)  # there is no event for another process's listener
                else:
                    return
        raise StoryError(f"{name} does not listen on port {port}")


@asynccontextmanager
async def stage(directory: Path) -> AsyncIterator[Stage]:
    """A :class:`Stage` whose processes end with the block."""
    async with trio.open_nursery() as nursery:
        yield Stage(directory, nursery)
        nursery.cancel_scope.cancel()


def free_ports(count: int) -> list[int]:
    """Free ports of loopback, below the ephemeral ports: the kernel could give a free ephemeral port to another connection
    before the demo listens on it. On Linux they are ours from then on (:func:`hold`)."""
    found: list[socket.socket] = []
    for port in random.sample(range(20_000, 30_000), 10_000):
        if (sock := hold(port)) is not None:
            found.append(sock)
        if len(found) == count:
            break
    ports = [sock.getsockname()[1] for sock in found]
    _ours.extend(sock.detach() for sock in found)
    while _ours and (sys.platform != "linux" or len(_ours) > MOST_PORTS):
        os.close(_ours.popleft())
    return ports


def hold(port: int) -> socket.socket | None:
    """Takes a port of loopback; None if it is in use. While the socket is open, no other search for a port finds it free. On
    Linux a server, which sets SO_REUSEADDR, listens there all the same (socket(7))."""
    sock = socket.socket()
    try:
        sock.bind(("127.0.0.1", port))
    except OSError:
        sock.close()
        return None
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return sock


def from_ca(service: str, port: int) -> dict[str, str]:
    """An identity that the sidecar enrols for and renews."""
    return {
        "ca": f"https://127.0.0.1:{port}",
        "root": "root.pem",
        "enrolment": f"enrolment/{service}/secret",
        "state_dir": f"{service}.state",
    }


def from_files(directory: str) -> dict[str, dict[str, str]]:
    """An identity in files: issued by hand, or stolen."""
    return {"files": {name: f"{directory}/{name}.pem" for name in ("certificate", "key", "bundle")}}


def wiring(
    service: str, identity: Mapping[str, Any], mesh: str = "mesh.yaml", **listeners: Sequence[Mapping[str, Any]]
) -> str:
    """The text of a sidecar.yaml. JSON is valid YAML."""
    data = {"service": service, "mesh": mesh, "identity": identity, "log_format": "json", **listeners}
    return json.dumps(data, indent=1)
