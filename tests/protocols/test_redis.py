"""Redis: pipelines, pub/sub, fifty clients, and one value of 64 MB, by its own client programs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.beds.processes import DEADLINE, Shop, SidecarProcess, free_port, output, running, sidecar_pair
from tests.protocols.programs import PATIENT, all_ok, needs, server, sha256, shell

pytestmark = needs("redis-server", "redis-cli", "redis-benchmark")


@dataclass(frozen=True)
class Redis:
    """A redis behind two sidecars; ``at`` are the options with which its clients reach it through them."""

    web: SidecarProcess
    db: SidecarProcess
    at: tuple[str, ...]

    async def cli(self, *command: str | Path, stdin: bytes = b"") -> str:
        return await output("redis-cli", *self.at, *command, stdin=stdin)


@asynccontextmanager
async def redis(shop: Shop) -> AsyncIterator[Redis]:
    port = free_port()
    options = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", shop.path)
    async with (
        server("redis-server", *options, ready="Ready to accept connections"),
        sidecar_pair(shop, f"127.0.0.1:{port}", service="db", port="redis", more=PATIENT) as (web, db),
    ):
        host, entry = web.address("db:redis")
        yield Redis(web, db, ("-h", host, "-p", str(entry)))


async def test_fifty_clients_with_pipelines(shop: Shop) -> None:
    async with redis(shop) as it:
        benchmark = ("redis-benchmark", *it.at, "-c", "50", "-n", "50000", "-P", "16", "-t", "incr,get", "-q")
        assert (await output(*benchmark)).count("requests per second") == 2
        assert await it.cli("get", "counter:__rand_int__") == "50000\n"  # each was carried once
        assert not it.db.program.events("connection", decision="deny")
        assert not it.web.program.events("connection", decision="deny")


async def test_every_reply_of_a_pipeline_in_its_order(shop: Shop) -> None:
    async with redis(shop) as it:
        commands = b"".join(b"ECHO %d\r\n" % number for number in range(100_000))
        replies = b"".join(b"$%d\r\n%d\r\n" % (len(str(number)), number) for number in range(100_000))
        async with await trio.open_tcp_stream(*it.web.address("db:redis")) as stream, trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, commands)
            heard = b""
            with trio.fail_after(DEADLINE):
                while len(heard) < len(replies):
                    heard += await stream.receive_some()
        assert heard == replies
        await all_ok(it.web, it.db, connections=1)


async def test_a_subscriber_hears_every_message_in_order(shop: Shop) -> None:
    async with redis(shop) as it, running("redis-cli", *it.at, "subscribe", "news") as subscriber:
        await subscriber.line("subscribe")
        await subscriber.line("1")
        told = await it.cli(stdin="".join(f"PUBLISH news item-{number}\n" for number in range(1000)).encode())
        assert told == "1\n" * 1000
        await subscriber.line("item-999")
        assert [line for line in subscriber.lines if "item-" in line] == [f"item-{number}" for number in range(1000)]


async def test_a_value_of_64_megabytes(shop: Shop, tmp_path: Path) -> None:
    value = tmp_path / "value"
    await shell('head -c 64000000 /dev/urandom > "$1"', value)
    async with redis(shop) as it:
        assert await shell('redis-cli "${@:2}" -x set big < "$1"', value, *it.at) == "OK\n"
        # redis-cli ends what it prints with a newline of its own.
        back = await shell('redis-cli "$@" get big | head -c -1 | sha256sum', *it.at)
        assert back.split()[0] == await sha256(value)
        await all_ok(it.web, it.db, connections=2)
