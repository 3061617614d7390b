"""PostgreSQL: psql, pgbench, 100 MB by COPY both ways, a cancelled query, and a listener that idles until it is notified."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import struct
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tests.beds.processes import DEADLINE, MESH, SIDECAR, Shop, SidecarProcess, free_port, output, sidecar_pair
from tests.commands import ran
from tests.protocols.programs import PATIENT, all_ok, merged, needs, program, server, sha256, shell

pytestmark = needs("postgres", "initdb", "psql", "pgbench")

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "synchronize_seqscans": "off",  # else a table may be read from its middle on
}


@dataclass(frozen=True)
class PostgreSQL:
    """A server behind two sidecars; ``at`` are the options with which its clients reach it through them."""

    web: SidecarProcess
    db: SidecarProcess
    at: tuple[str, ...]

    async def sql(self, *statements: str) -> str:
        options = [f"--command={statement}" for statement in statements]
        return await output(program("psql"), *self.at, "-qAtX", *options)


@contextmanager
def owned_directory() -> Iterator[tuple[Path, list[str]]]:
    """A directory for the server, and the command that runs what follows as its owner: root may not run PostgreSQL, and
    nobody else may enter pytest's own directories."""
    with tempfile.TemporaryDirectory(prefix="postgresql-") as name:
        path = Path(name)
        if os.geteuid():
            yield path, []
            return
        nobody = pwd.getpwnam("nobody")
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
        yield path, ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[Path, list[str]]]:
    """An empty data directory, made once."""
    with owned_directory() as (path, as_owner):
        initdb = [*as_owner, program("initdb"), "-U", "tester", "-A", "trust", "-E", "UTF8", "--no-locale", "-N", "-D"]
        subprocess.run([*initdb, path / "data"], check=True, capture_output=True, timeout=DEADLINE)
        yield path / "data", as_owner


@asynccontextmanager
async def postgresql(shop: Shop, cluster: tuple[Path, list[str]]) -> AsyncIterator[PostgreSQL]:
    data, as_owner = cluster
    port = free_port()
    settings = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
    command = (*as_owner, program("postgres"), "-D", str(data), "-p", str(port), *settings)
    async with (
        server(*command, ready="database system is ready to accept connections", stop=signal.SIGINT),
        sidecar_pair(shop, f"127.0.0.1:{port}", service="db", port="redis", more=PATIENT) as (web, db),
    ):
        host, entry = web.address("db:redis")
        yield PostgreSQL(web, db, ("-h", host, "-p", str(entry), "-U", "tester", "-d", "postgres"))


async def test_psql_and_pgbench(shop: Shop, cluster: tuple[Path, list[str]]) -> None:
    async with postgresql(shop, cluster) as it:
        assert await it.sql("select 6 * 7") == "42\n"
        await all_ok(it.web, it.db, connections=1)

        connection = it.at[:-2]  # pgbench names the database without an option
        await output(program("pgbench"), *connection, "-i", "-q", "postgres")
        said = await output(program("pgbench"), *connection, "-n", "-c", "8", "-j", "2", "-t", "50", "postgres")
        assert "number of transactions actually processed: 400/400" in said
        assert await it.sql("select count(*) from pgbench_history") == "400\n"
        assert not it.db.program.events("connection", decision="deny")


async def test_copy_of_100_megabytes_in_and_out(shop: Shop, cluster: tuple[Path, list[str]], tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    await shell('head -c 75000000 /dev/urandom | base64 -w 1000 > "$1"', there)
    assert there.stat().st_size > 100_000_000
    async with postgresql(shop, cluster) as it:
        await it.sql("create unlogged table lines (line text)", f"\\copy lines from {there}")
        assert await it.sql("select count(*) from lines") == "100000\n"
        await it.sql(f"\\copy lines to {back}")
        assert await sha256(back) == await sha256(there)
        await all_ok(it.web, it.db, connections=3)
        assert it.db.program.connections[0]["bytes_to_app"] > 100_000_000
        assert it.db.program.connections[2]["bytes_from_app"] > 100_000_000


async def test_a_query_is_cancelled_by_a_second_connection(shop: Shop, cluster: tuple[Path, list[str]]) -> None:
    forever = "do $$ begin raise notice 'it runs'; perform pg_sleep(3600); end $$"
    async with postgresql(shop, cluster) as it:
        async with merged(program("psql"), *it.at, "-X", "-c", forever) as psql:
            await psql.line("it runs")
            psql.signal(signal.SIGINT)
            await psql.line("canceling statement due to user request")
            assert await psql.ended() == 1
        # The request to cancel is 16 bytes, which the server answers by closing.
        await all_ok(it.web, it.db, connections=2)
        assert 16 in [line["bytes_to_app"] for line in it.db.program.connections]


async def test_an_idle_listener_is_notified(shop: Shop, cluster: tuple[Path, list[str]]) -> None:
    async with postgresql(shop, cluster) as it, await trio.open_tcp_stream(*it.web.address("db:redis")) as stream:
        wire = Wire(stream)
        await wire.start()
        await wire.query("listen news")
        await it.sql("notify news, 'it works'")
        kind, body = await wire.message()
        assert (kind, body[4:]) == (b"A", b"news\0it works\0")


async def test_a_colleague_with_a_pass_looks_into_it(shop: Shop, cluster: tuple[Path, list[str]]) -> None:
    """As README has it: a rule, a pass, and psql that is started with it."""
    rule = 'policy:\n  - {from: user/alice, to: "db:redis"}\n'
    (shop.path / "mesh.yaml").write_text(f"{MESH}people: [alice]\n".replace("policy:\n", rule))
    async with postgresql(shop, cluster) as it:
        at = it.db.at("redis")
        with contextlib.chdir(shop.path):
            ran("pass", "ca", "--person", "alice", "--to", "db:redis", "--at", at, "--ttl", "5m", "--out", "alice.pass")
        port = str(free_port())
        connect: list[str | Path] = [
            *SIDECAR,
            "connect",
            shop.path / "alice.pass",
            "--listen",
            f"127.0.0.1:{port}",
            "--",
        ]
        psql = (
            program("psql"),
            "-h",
            "127.0.0.1",
            "-p",
            port,
            "-U",
            "tester",
            "-qAtX",
            "postgres",
            "-v",
            "ON_ERROR_STOP=1",
        )
        assert await output(*connect, *psql, "-c", "select 6 * 7", "-c", "select 'it works'") == "42\nit works\n"
        assert "ERROR" in await output(*connect, *psql, "-c", "select nothing", check=False)
        seen = await it.db.program.connection()
        assert (seen["peer_id"], seen["reason"]) == ("spiffe://shop.internal/user/alice", "ok")


class Wire:
    """As much of PostgreSQL's protocol 3.0 as it takes to wait for a message without asking, as psql cannot."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._data = b""

    async def _take(self, size: int) -> bytes:
        with trio.fail_after(DEADLINE):
            while len(self._data) < size:
                more = await self._stream.receive_some()
                assert more, "the server closed the connection"
                self._data += more
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    async def message(self) -> tuple[bytes, bytes]:
        kind = await self._take(1)
        (size,) = struct.unpack("!I", await self._take(4))
        return kind, await self._take(size - 4)

    async def _until_ready(self) -> None:
        while (await self.message())[0] != b"Z":
            pass

    async def start(self) -> None:
        body = struct.pack("!I", 3 << 16) + b"user\0tester\0database\0postgres\0\0"
        await self._stream.send_all(struct.pack("!I", len(body) + 4) + body)
        await self._until_ready()

    async def query(self, text: str) -> None:
        body = text.encode() + b"\0"
        await self._stream.send_all(b"Q" + struct.pack("!I", len(body) + 4) + body)
        await self._until_ready()
