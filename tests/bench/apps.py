"""Real applications behind a pair: a Redis, and a PostgreSQL with the tables of pgbench."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.bench.contestants import Command, find_program
from tests.bench.stage import Ports, Stage, run
from tests.integration.database import Database, owned_directory

FILL_SECONDS = 60.0


async def start_redis(where: Stage, directory: Path, ports: Ports) -> int:
    """Returns the port on which it listens."""
    port, home = ports.take(), directory / "redis"
    home.mkdir()
    options = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", home)
    await where.start("redis", Command((find_program("redis-server") or "redis-server", *options)), home, [port])
    return port


@asynccontextmanager
async def postgresql() -> AsyncIterator[int]:
    """The port on which it listens while the block lasts."""
    with owned_directory() as (path, as_owner):
        database = Database.make(path, as_owner)
        async with database.serves(max_connections="200"):
            at = ("-h", "127.0.0.1", "-p", str(database.port), "-U", "tester")
            await run((find_program("pgbench") or "pgbench", "--initialize", "--quiet", *at, "postgres"), FILL_SECONDS)
            yield database.port
