"""Redis, a legacy TCP service, through a pair of ``sidecar run`` processes: its own client programs notice nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.beds.processes import (
    Shop,
    SidecarProcess,
    free_port,
    needs,
    output,
    running,
    sidecar_pair,
)

pytestmark = needs("redis-server", "redis-cli", "redis-benchmark")


@asynccontextmanager
async def redis_mesh(shop: Shop) -> AsyncIterator[tuple[SidecarProcess, SidecarProcess, list[str]]]:
    """Both sidecars, and the arguments with which redis's clients reach the service through them."""
    port = free_port()
    options = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(shop.path))
    async with running("redis-server", *options) as redis:
        await redis.line("Ready to accept connections")
        async with sidecar_pair(shop, f"127.0.0.1:{port}", service="db", port="redis") as (web, db):
            host, entry = web.address("db:redis")
            yield web, db, ["-h", host, "-p", str(entry)]


async def test_set_get_pipelines_and_pubsub(shop: Shop) -> None:
    async with redis_mesh(shop) as (web, db, where):
        assert await output("redis-cli", *where, "set", "greeting", "hello") == "OK\n"
        assert await output("redis-cli", *where, "get", "greeting") == "hello\n"

        pipelined = "".join(f"SET key:{n} {n}\r\n" for n in range(5000)).encode()
        assert "errors: 0, replies: 5000" in await output("redis-cli", *where, "--pipe", stdin=pipelined)
        assert await output("redis-cli", *where, "dbsize") == "5001\n"

        async with running("redis-cli", *where, "subscribe", "news") as subscriber:
            await subscriber.line("subscribe")
            await subscriber.line("1")
            assert await output("redis-cli", *where, "publish", "news", "it works") == "1\n"
            await subscriber.line("it works")

        lines = [await db.program.connection(number) for number in range(1, 7)]
        assert {line["peer_id"] for line in lines} == {"spiffe://shop.internal/web"}
        assert {(line["decision"], line["rule"]) for line in lines} == {("allow", "web,reporting->db:redis")}
        assert {line["reason"] for line in lines[:5]} == {"ok"}
        both = {line["connection_id"] for line in lines}
        assert both == {(await web.program.connection(number))["connection_id"] for number in range(1, 7)}


async def test_fifty_clients_at_once(shop: Shop) -> None:
    async with redis_mesh(shop) as (web, db, where):
        benchmark = ("redis-benchmark", *where, "-c", "50", "-n", "5000", "-t", "set,get", "-q")
        told = await output(*benchmark)
        assert told.count("requests per second") == 2
        assert await output("redis-cli", *where, "ping") == "PONG\n"
        for end in (web, db):
            await end.program.event("connection", 101, reason="ok")
            if end.program.events("connection", decision="deny"):
                pytest.fail(end.program.text)
