"""Processes of a siege: started, read, and ended by their numbers."""

from __future__ import annotations

import contextlib
import fcntl
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

import trio

from tests.beds.processes import clean_environment
from tests.bench import procfs
from tests.siege.errors import InvalidError

START_SECONDS = 60.0
END_SECONDS = 15.0
"""How long a program may take to end once it is told to: longer than the drain of 8 s."""

TAIL_BYTES = 3000
PIPE_BYTES = 4096


class Process:
    """One process; what it writes goes to ``log``, unless its reader is told to stall (:meth:`stall`)."""

    def __init__(self, name: str, process: trio.Process, log: Path) -> None:
        self.name = name
        self.process = process
        self.log = log
        self._reading = trio.Event()
        self._reading.set()
        self._news = trio.lowlevel.ParkingLot()
        self._text = ""
        self.lines: list[str] = []

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def memory(self) -> int:
        """Bytes of RSS; 0 once it has ended."""
        try:
            return procfs.parse_kilobytes(Path(f"/proc/{self.process.pid}/status").read_text(), "VmRSS") or 0
        except OSError:
            return 0

    def stall(self) -> None:
        """Nobody reads what it writes, from now on; and its pipe holds no more than a page (F_SETPIPE_SZ, fcntl(2)): 64 KB
        of lines would take longer than a flood."""
        self._reading = trio.Event()
        assert self.process.stdout is not None
        with contextlib.suppress(OSError):
            fcntl.fcntl(self.process.stdout.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)  # type: ignore[attr-defined]

    def go_on(self) -> None:
        self._reading.set()

    async def tell(self, line: str) -> None:
        """A line for its input."""
        assert self.process.stdin is not None
        await self.process.stdin.send_all(f"{line}\n".encode())

    async def line(self, wanted: Callable[[str], bool], since: int = 0) -> str:
        """The first such line that it writes, after the first ``since``. Raises :class:`InvalidError` if none comes."""
        with trio.move_on_after(START_SECONDS):
            while True:
                for line in self.lines[since:]:
                    if wanted(line):
                        return line
                if not self.alive:
                    break
                with trio.move_on_after(0.5):
                    await self._news.park()
        raise InvalidError(f"{self.name} did not do what it was waited for; it wrote:\n{self.tail()}")

    def tail(self) -> str:
        with contextlib.suppress(OSError):
            return self.log.read_bytes()[-TAIL_BYTES:].decode(errors="replace")
        return ""

    async def read(self) -> None:
        """Reads it until it ends; keeps only the first lines in memory."""
        assert self.process.stdout is not None
        with self.log.open("ab") as file:
            while True:
                await self._reading.wait()
                data = await self.process.stdout.receive_some(65536)
                if not data:
                    return
                self._keep(file, bytes(data))

    def _keep(self, file: IO[bytes], data: bytes) -> None:
        file.write(data)
        file.flush()
        if len(self.lines) < 1000:
            *lines, self._text = (self._text + data.decode(errors="replace")).split("\n")
            self.lines += lines
            self._news.unpark_all()

    async def end(self) -> bool:
        """Told to end, then forced to. Returns whether it was alive, and ended by itself in time."""
        if not self.alive:
            return False
        self.process.send_signal(signal.SIGTERM)
        with trio.move_on_after(END_SECONDS):
            await self.process.wait()
        ended = not self.alive
        self.kill()
        await self.process.wait()
        return ended

    def kill(self) -> None:
        if self.alive:
            self.process.kill()


class Processes:
    """See :func:`processes`."""

    def __init__(self, nursery: trio.Nursery, directory: Path) -> None:
        self._nursery = nursery
        self._directory = directory
        self._all: list[Process] = []

    async def start(
        self, name: str, command: Sequence[str | Path], variables: Mapping[str, str] | None = None
    ) -> Process:
        process = await trio.lowlevel.open_process(
            [str(part) for part in command],
            cwd=self._directory,
            env={**clean_environment(), **(variables or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us alone
        )
        made = Process(name, process, self._directory / f"{name}.log")
        self._all.append(made)
        self._nursery.start_soon(made.read)
        return made

    def forget(self, process: Process) -> None:
        """It has ended, and is waited for no more."""
        self._all.remove(process)

    async def close(self) -> None:
        for process in self._all:
            process.kill()
        for process in self._all:
            await process.process.wait()


@asynccontextmanager
async def processes(directory: Path) -> AsyncIterator[Processes]:
    """A place for processes; none outlives the block, however it ends."""
    async with trio.open_nursery() as nursery:
        made = Processes(nursery, directory)
        try:
            yield made
        finally:
            with trio.CancelScope(shield=True):
                await made.close()
            nursery.cancel_scope.cancel()
