"""HTTP/1.1 between curl and nginx: kept-alive connections, chunks both ways, and uploads that wait for 100 Continue."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.beds.processes import Shop, SidecarProcess, output, sidecar_pair
from tests.protocols import nginx
from tests.protocols.programs import all_ok, needs, sha256, shell

pytestmark = needs("nginx", "curl")

CURL = ("curl", "--silent", "--show-error", "--fail", "--max-time", "60")


@asynccontextmanager
async def nginx_mesh(shop: Shop, directory: Path) -> AsyncIterator[tuple[SidecarProcess, SidecarProcess, str]]:
    """nginx, which keeps what it is sent by PUT, behind two sidecars; and the URL of it."""
    await shell('mkdir "$1" && printf hello > "$1/hello"', directory)
    location = "root .; dav_methods PUT; client_max_body_size 0; gzip on; gzip_types *; gzip_min_length 0;"
    async with (
        nginx.http(directory, location) as app,
        sidecar_pair(shop, app) as (web, api),
    ):
        yield web, api, f"http://{web.at('api:http')}"


async def test_requests_share_a_kept_alive_connection(shop: Shop, tmp_path: Path) -> None:
    async with nginx_mesh(shop, tmp_path / "root") as (web, api, url):
        said = await output(*CURL, "-w", "[%{num_connects}]", *[f"{url}/hello"] * 20)
        assert said == "hello[1]" + "hello[0]" * 19
        await all_ok(web, api, connections=1)


async def test_chunks_both_ways(shop: Shop, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    await shell('head -c 15000000 /dev/urandom | base64 > "$1"', there)
    async with nginx_mesh(shop, tmp_path / "root") as (web, api, url):
        await output(*CURL, "-T", there, "-H", "Transfer-Encoding: chunked", f"{url}/upload")
        assert await sha256(tmp_path / "root" / "upload") == await sha256(there)
        # What nginx compresses on its way has no known length, so it comes in chunks.
        await output(*CURL, "--compressed", "-D", tmp_path / "headers", "-o", back, f"{url}/upload")
        assert "Transfer-Encoding: chunked" in (tmp_path / "headers").read_text()
        assert await sha256(back) == await sha256(there)
        await all_ok(web, api, connections=2)


async def test_an_upload_waits_for_100_continue(shop: Shop, tmp_path: Path) -> None:
    there = tmp_path / "there"
    await shell('head -c 5000000 /dev/urandom > "$1"', there)
    async with nginx_mesh(shop, tmp_path / "root") as (web, api, url):
        # It would not send without being told, not in this test's time.
        patient = ("-v", "--expect100-timeout", "50", "-H", "Expect: 100-continue")
        said = await output(*CURL, *patient, "-T", there, f"{url}/upload")
        assert said.index("Expect: 100-continue") < said.index("HTTP/1.1 100 Continue") < said.index("201 Created")
        assert await sha256(tmp_path / "root" / "upload") == await sha256(there)
        await all_ok(web, api, connections=1)
