"""Foreign programs at one permissive port, plain and through a caller's sidecar: redis, and a server that speaks first."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.beds.mesh import mesh_bed
from tests.beds.processes import SIDECAR, Shop, SidecarProcess, free_port, output, sidecar_process
from tests.protocols.programs import PATIENT, needs, server
from tests.protocols.test_server_speaks_first import smtp

PERMISSIVE = "mode: permissive, until: 2099-12-31"


@asynccontextmanager
async def pair(
    shop: Shop, app: str, service: str, port: str, mode: str
) -> AsyncIterator[tuple[SidecarProcess, SidecarProcess, Path]]:
    """web's sidecar, the callee's with its permissive port, and the callee's file."""
    mesh = shop.path / "mesh.yaml"
    mesh.write_text(mesh.read_text() + f'  - {{name: old, from: plaintext, to: "{service}:{port}"}}\n')
    admin = f"unix:{shop.path / 'admin.sock'}"
    listen = f'{{port: {port}, listen: "127.0.0.1:0", app: "{app}", {mode}}}'
    callee = shop.wiring(service, f'inbound: [{listen}]\nadmin: {{listen: "{admin}"}}\n{PATIENT}')
    async with sidecar_process(callee) as there:
        route = f'{{to: "{service}:{port}", listen: "127.0.0.1:0", peers: ["{there.at(port)}"]}}'
        async with sidecar_process(shop.wiring("web", f"outbound: [{route}]\n{PATIENT}")) as web:
            yield web, there, callee


async def status(file: Path) -> Any:
    return json.loads(await output(*SIDECAR, "status", file, "--json"))


@needs("redis-server", "redis-cli")
async def test_redis_plain_and_in_mutual_tls_at_one_port(shop: Shop) -> None:
    number = free_port()
    options = ("--port", str(number), "--bind", "127.0.0.1", "--save", "", "--dir", shop.path)
    async with (
        server("redis-server", *options, ready="Ready to accept connections"),
        pair(shop, f"127.0.0.1:{number}", "db", "redis", PERMISSIVE) as (web, db, file),
    ):
        for host, port in (db.address("redis"), web.address("db:redis")):
            at = ("redis-cli", "-h", host, "-p", str(port))
            assert await output(*at, "set", "greeting", str(port)) == "OK\n"
            assert await output(*at, "get", "greeting") == f"{port}\n"
            pipelined = "".join(f"SET key:{n} {n}\r\n" for n in range(5000)).encode()
            assert "errors: 0, replies: 5000" in await output(*at, "--pipe", stdin=pipelined)
        lines = [await db.program.connection(number) for number in range(1, 7)]
        assert [(line.get("plaintext", False), line["peer_id"], line["reason"]) for line in lines] == [
            *[(True, None, "ok")] * 3,
            *[(False, "spiffe://shop.internal/web", "ok")] * 3,
        ]
        told = await status(file)
        [caller] = told["plaintext"]
        assert (caller["address"], caller["count"], caller["allowed"]) == ("127.0.0.1", 3, True)
        [listener] = told["inbound"]
        assert (listener["mode"], listener["until"]) == ("permissive", "2099-12-31")
        text = await output(*SIDECAR, "status", file)
        assert "PERMISSIVE: redis takes plaintext until 2099-12-31" in text
        assert "3 connections" in text


@needs("curl")
async def test_mail_plain_and_in_mutual_tls_where_the_server_speaks_first(shop: Shop, tmp_path: Path) -> None:
    mail = tmp_path / "mail"
    mail.write_text("Subject: hello\r\n\r\n" + "All work and no play.\r\n" * 1000)
    async with mesh_bed() as bed:
        app = await bed.app(smtp)
        async with pair(shop, str(app.address), "api", "http", f"{PERMISSIVE}, server_first: true") as (web, api, _):
            envelope = ("--mail-from", "web@shop.internal", "--mail-rcpt", "api@shop.internal", "--upload-file", mail)
            for number, at in enumerate((api.at("http"), web.at("api:http")), 1):
                await output("curl", "-sS", "--max-time", "60", f"smtp://{at}", *envelope)
                assert app.received.count(mail.read_bytes()) == number
            lines = [await api.program.connection(number) for number in (1, 2)]
            assert [(line.get("plaintext", False), line["peer_id"], line["reason"]) for line in lines] == [
                (True, None, "ok"),
                (False, "spiffe://shop.internal/web", "ok"),
            ]
