"""HTTP/2 with prior knowledge: many streams on a connection, by nghttpd and its clients."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.beds.processes import Shop, SidecarProcess, free_port, output, sidecar_pair
from tests.protocols.programs import all_ok, needs, program, server, sha256, shell

pytestmark = needs("nghttpd", "h2load", "curl")


@asynccontextmanager
async def http2_mesh(shop: Shop, root: Path) -> AsyncIterator[tuple[SidecarProcess, SidecarProcess, str]]:
    port = free_port()
    command = (program("nghttpd"), "-a", "127.0.0.1", "--no-tls", "-d", root, str(port))
    async with (
        server(*command, ready=("127.0.0.1", port)),
        sidecar_pair(shop, f"127.0.0.1:{port}") as (web, api),
    ):
        yield web, api, f"http://{web.at('api:http')}"


async def test_many_streams_on_ten_connections(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "page").write_bytes(b"x" * 10_000)
    async with http2_mesh(shop, tmp_path) as (web, api, url):
        said = await output(program("h2load"), "-n", "5000", "-c", "10", "-m", "50", f"{url}/page")
        assert "5000 total, 5000 started, 5000 done, 5000 succeeded, 0 failed, 0 errored" in said
        assert "Application protocol: h2c" in said
        await web.program.connection(10)
        await api.program.connection(10)
        assert [line["rule"] for line in api.program.connections] == ["web->api:http"] * 10


async def test_one_big_stream_each_way(shop: Shop, tmp_path: Path) -> None:
    big, back = tmp_path / "big", tmp_path / "back"
    await shell('head -c 20000000 /dev/urandom > "$1"', big)
    curl = ("curl", "-sS", "--fail", "--max-time", "60", "--http2-prior-knowledge", "-w", "%{http_version}")
    async with http2_mesh(shop, tmp_path) as (web, api, url):
        assert await output(*curl, "-o", back, f"{url}/big") == "2"
        assert await sha256(back) == await sha256(big)
        assert await output(*curl, "-o", tmp_path / "page", "--data-binary", f"@{big}", f"{url}/big") == "2"
        await all_ok(web, api, connections=2)
        assert api.program.connections[1]["bytes_to_app"] > 20_000_000
