"""A real PostgreSQL for a CA, started, stopped and started again by a test; with its own files, on a port of loopback."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.beds.processes import DEADLINE, Running, free_port
from tests.protocols.programs import program, server
from tests.protocols.test_postgresql import owned_directory

__all__ = ["Database", "owned_directory"]

SETTINGS = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
"""Its disk is not what is tested here; what is committed outlives its process all the same."""


@dataclass(frozen=True)
class Database:
    """A data directory. ``as_owner`` is the command that runs what follows as its owner."""

    data: Path
    as_owner: tuple[str, ...]
    port: int

    @classmethod
    def make(cls, path: Path, as_owner: list[str]) -> Database:
        initdb = [*as_owner, program("initdb"), "-U", "tester", "-A", "trust", "-E", "UTF8", "--no-locale", "-N", "-D"]
        subprocess.run([*initdb, path / "data"], check=True, capture_output=True, timeout=DEADLINE)
        return cls(path / "data", tuple(as_owner), free_port())

    @asynccontextmanager
    async def serves(self, **settings: str) -> AsyncIterator[Running]:
        """PostgreSQL, ready; at the end of the block it ends its clients' sessions and stops."""
        options = [part for name, value in {**SETTINGS, **settings}.items() for part in ("-c", f"{name}={value}")]
        command = (*self.as_owner, program("postgres"), "-D", str(self.data), "-p", str(self.port), *options)
        ready = "database system is ready to accept connections"
        async with server(*command, ready=ready, stop=signal.SIGINT) as running:
            yield running

    async def live(self, stop: trio.Event, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The same as a task, until ``stop``, for what outlives it."""
        async with self.serves():
            task_status.started()
            await stop.wait()

    def url(self, name: str = "postgres") -> str:
        return f"postgresql://tester@127.0.0.1:{self.port}/{name}"

    def create(self, name: str) -> str:
        """An empty database of its own; returns its URL."""
        at = ("-h", "127.0.0.1", "-p", str(self.port), "-U", "tester", "-d", "postgres")
        subprocess.run(
            [program("psql"), *at, "-qX", "-c", f"create database {name}"],
            check=True,
            capture_output=True,
            timeout=DEADLINE,
        )
        return self.url(name)
