"""Programs that run for as long as a block lasts: started, waited for until they listen, stopped by their numbers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import randrange

import trio

from tests.bench import procfs
from tests.bench.contestants import Command
from tests.bench.errors import BenchError

START_SECONDS = 20.0
STOP_SECONDS = 3.0
POLL_SECONDS = 0.02
_TAIL = 20

PORTS = range(10_000, 30_000)
"""Below those that the system gives to connections, or a load could take a port before its listener does."""


@dataclass(frozen=True, slots=True)
class Program:
    """A program that runs in its own process group; ``log`` has what it wrote to stdout and stderr."""

    name: str
    process: trio.Process
    log: Path

    def tree(self) -> procfs.ProcessTree:
        return procfs.ProcessTree(self.name, self.process.pid)

    def check(self) -> None:
        """Raises :class:`BenchError`, with the end of its log, if it has ended."""
        if self.process.poll() is not None:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-_TAIL:])
            raise BenchError(f"{self.name} ended with {self.process.returncode}; its log ends with:\n{tail}")


class Stage:
    """See :func:`stage`."""

    def __init__(self) -> None:
        self._programs: list[Program] = []

    async def start(self, name: str, command: Command, directory: Path, ports: Collection[int]) -> Program:
        """Starts a program in ``directory`` and returns when it listens on all ``ports``. Raises :class:`BenchError`."""
        log = directory / "log"
        with log.open("wb") as output:
            process = await trio.lowlevel.open_process(
                [str(part) for part in command.arguments],
                cwd=directory,
                env={**_environment(), **command.variables},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # its children are stopped with it, and Ctrl-C is for us alone
            )
        program = Program(name, process, log)
        self._programs.append(program)
        with trio.move_on_after(START_SECONDS):
            while not procfs.listening() >= set(ports):
                program.check()
                await trio.sleep(POLL_SECONDS)
            return program
        raise BenchError(f"{name} does not listen on {sorted(ports)} after {START_SECONDS:g} s")

    async def close(self) -> None:
        """Stops all of them: asked first, all at once, then forced. What ended long ago is not signalled: its number may
        be somebody else's by now."""
        running = [program.process for program in self._programs if program.process.poll() is None]
        for process in running:
            _signal(process, signal.SIGTERM)
        with trio.move_on_after(STOP_SECONDS):
            for process in running:
                await process.wait()
        for process in running:
            _signal(process, signal.SIGKILL)  # whoever ignored it, and children that were left behind
            await process.wait()


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    """A place for programs; none of them outlives the block, however it ends."""
    it = Stage()
    try:
        yield it
    finally:
        with trio.CancelScope(shield=True):
            await it.close()


async def run(arguments: Sequence[str | Path], seconds: float, *, may_fail: bool = False) -> str:
    """What a program prints, within a deadline. Raises :class:`BenchError` if it fails, or is late."""
    name = Path(arguments[0]).name
    with trio.move_on_after(seconds):
        done = await trio.run_process(
            [str(part) for part in arguments],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=_environment(),
            start_new_session=True,
        )
        text = (done.stdout + done.stderr).decode(errors="replace")
        if done.returncode and not may_fail:
            raise BenchError(f"{name} ended with {done.returncode}:\n{text}")
        return text
    raise BenchError(f"{name} did not end within {seconds:g} s")


class Ports:
    """Ports that nobody listens on, each given once."""

    def __init__(self) -> None:
        self._numbers = count(randrange(len(PORTS)))  # noqa: S311 (so that two runs at once do not meet)

    def take(self) -> int:
        for _ in PORTS:
            port = PORTS[next(self._numbers) % len(PORTS)]
            with socket.socket() as sock:
                try:
                    sock.bind(("127.0.0.1", port))
                except OSError:
                    continue
                return port
        raise BenchError(f"no free port from {PORTS.start} to {PORTS.stop - 1}")


def _signal(process: trio.Process, number: int) -> None:
    """To its process group, which has its number."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def _environment() -> dict[str, str]:
    """Ours, without what would configure a sidecar."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")}
