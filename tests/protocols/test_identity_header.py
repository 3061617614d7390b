"""``identity_header`` before the real nginx, called by the real curl: who calls is told, and HTTP goes on as without it."""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from sidecar.transport import sockets
from tests.beds.mesh import App, mesh_bed, receive_all
from tests.beds.patience import PATIENCE
from tests.beds.processes import Shop, SidecarProcess, output
from tests.protocols import nginx
from tests.protocols.foreign import API, TOLERANT, WEB, api_before, web_to
from tests.protocols.programs import all_ok, entered, needs, sha256, shell
from tests.protocols.test_websocket import chat, converse

pytestmark = needs("nginx", "curl")

HEADER = ", identity_header: x-forwarded-client-cert"
CURL = ("curl", "--silent", "--show-error", "--max-time", "60")
TOLD = re.compile(rf"By={API};Hash=[0-9a-f]{{64}};URI={WEB}")
BIG = 200_000_000
GROWTH = 32 << 20
"""How many bytes a sidecar's memory may grow while it carries so much. It has four buffers of 128 KiB in all."""


@asynccontextmanager
async def told(shop: Shop, app: App | str, more: str = "") -> AsyncIterator[tuple[SidecarProcess, SidecarProcess, str]]:
    """``app`` behind api's sidecar, called through web's; and the URL."""
    async with api_before(shop, app, HEADER + more) as api, web_to(shop, api.at("http")) as web:
        yield web, api, f"http://{web.at('api:http')}"


@asynccontextmanager
async def nginx_told(shop: Shop, directory: Path) -> AsyncIterator[tuple[SidecarProcess, SidecarProcess, str]]:
    """nginx, which keeps what it is sent by PUT, and says by which name it was called."""
    await shell('mkdir "$1" && printf hello > "$1/hello"', directory)
    location = (
        "root .; dav_methods PUT; client_max_body_size 0; add_header X-Told $http_x_forwarded_client_cert always;"
    )
    async with nginx.http(directory, location) as app, told(shop, app) as there:
        yield there


def named(headers: str) -> list[str]:
    """By what names nginx was called."""
    return re.findall(r"(?im)^x-told: (.*?)\r?$", headers)


async def test_each_request_of_a_kept_alive_connection_names_its_caller(shop: Shop, tmp_path: Path) -> None:
    async with nginx_told(shop, tmp_path / "root") as (web, api, url):
        forged = (
            "-H",
            "X-Forwarded-Client-Cert: URI=spiffe://shop.internal/admin",
            "-H",
            "x_forwarded_client_cert: me",
        )
        said = await output(*CURL, "-i", "-w", "[%{num_connects}]", *forged, *[f"{url}/hello"] * 20)
        assert said.count("hello[0]") == 19
        names = named(said)
        assert len(names) == 20
        assert len(set(names)) == 1
        assert TOLD.fullmatch(names[0])
        await all_ok(web, api, connections=1)


async def test_uploads_in_chunks_after_100_continue_and_heads(shop: Shop, tmp_path: Path) -> None:
    there = tmp_path / "there"
    await shell('head -c 3000000 /dev/urandom > "$1"', there)
    async with nginx_told(shop, tmp_path / "root") as (web, api, url):
        for more in ((), ("-H", "Transfer-Encoding: chunked")):
            patient = ("-v", "--expect100-timeout", "50", "-H", "Expect: 100-continue")
            said = await output(*CURL, "-i", *patient, *more, "-T", there, f"{url}/upload")
            assert said.index("HTTP/1.1 100 Continue") < said.index("HTTP/1.1 20")
            assert await sha256(tmp_path / "root" / "upload") == await sha256(there)
        said = await output(*CURL, "--head", f"{url}/upload", f"{url}/none")
        assert "Content-Length: 3000000" in said
        assert said.count("HTTP/1.1 ") == 2
        assert len(named(said)) == 2
        assert "HTTP/1.1 304" in await output(*CURL, "-i", "-H", "If-None-Match: *", f"{url}/hello")
        await all_ok(web, api, connections=4)


async def test_an_old_client(shop: Shop, tmp_path: Path) -> None:
    async with nginx_told(shop, tmp_path / "root") as (web, api, url):
        said = await output(*CURL, "-i", "--http1.0", f"{url}/hello")
        assert said.endswith("\r\n\r\nhello")
        assert TOLD.fullmatch(named(said)[0])
        with await entered(web) as client:  # no host, and it waits for the end
            await sockets.send_all(client, b"GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert (await receive_all(client)).endswith(b"\r\n\r\nhello")
        await all_ok(web, api, connections=2)


async def test_http_2_is_refused_with_a_sentence_and_its_offer_not_taken(shop: Shop, tmp_path: Path) -> None:
    async with nginx_told(shop, tmp_path / "root") as (_, api, url):
        said = await output(*CURL, "--http2-prior-knowledge", f"{url}/hello", check=False)
        assert "curl: (" in said
        line = await api.program.connection()
        assert (line["reason"], line["bytes_to_app"]) == ("client_reset", 0)
        assert line["message"] == (
            "a request was refused: it is HTTP/2, and this port is HTTP/1.1 alone (identity_header)"
        )
        said = await output(*CURL, "-i", "--http2", f"{url}/hello")
        assert said.startswith("HTTP/1.1 200")
        assert said.endswith("hello")


async def test_a_request_that_is_none_hears_why(shop: Shop, tmp_path: Path) -> None:
    async with nginx_told(shop, tmp_path / "root") as (_, api, url):
        both = ("-H", "Transfer-Encoding: chunked", "-H", "Content-Length: 3", "--data", "abc")
        said = await output(*CURL, "-i", *both, url)
        assert said.startswith("HTTP/1.1 400 Bad Request")
        assert said.endswith("The sidecar refused the request: it has a Content-Length and a Transfer-Encoding.\n")
        line = await api.program.connection()
        assert line["message"] == "a request was refused: it has a Content-Length and a Transfer-Encoding"


async def test_big_bodies_pass_in_bounded_memory(shop: Shop, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    await shell(f'head -c {BIG} /dev/urandom > "$1"', there)
    async with nginx_told(shop, tmp_path / "root") as (web, api, url):
        await output(*CURL, f"{url}/hello")
        before = peak(api)
        await output(*CURL, "--fail", "-H", "Expect:", "-T", there, f"{url}/big")
        chunks = ("-H", "Expect:", "-H", "Transfer-Encoding: chunked")
        await output(*CURL, "--fail", *chunks, "-T", there, f"{url}/chunks")
        await output(*CURL, "--fail", "--limit-rate", "100M", "-o", back, f"{url}/big")  # slower than it is sent
        for file in (tmp_path / "root" / "big", tmp_path / "root" / "chunks", back):
            assert await sha256(file) == await sha256(there)
        assert peak(api) - before < GROWTH
        await all_ok(web, api, connections=4)


def peak(sidecar: SidecarProcess) -> int:
    """The most memory that it has had, in bytes."""
    status = Path(f"/proc/{sidecar.program.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


async def test_a_web_socket(shop: Shop) -> None:
    async with mesh_bed() as bed:
        app = await bed.app(chat)
        async with told(shop, app) as (web, api, _):
            await converse(web)
            await all_ok(web, api, connections=1)


async def speaks_and_ends(sock: socket.socket, app: App) -> None:
    """An app of long ago: the end of its answer is its end."""
    heard = b""
    while not heard.endswith(b"\r\n\r\n"):
        heard += await sockets.receive(sock, 65536)
    app.received += heard
    await sockets.send_all(sock, b"HTTP/1.0 200 OK\r\n\r\nall that there is")


async def answers_early(sock: socket.socket, app: App) -> None:
    """It has no wish for the body."""
    app.received += await sockets.receive(sock, 65536)
    await sockets.send_all(sock, b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno\n")


async def says_nothing(sock: socket.socket, app: App) -> None:
    app.received += await sockets.receive(sock, 65536)


async def test_apps_that_end_early_or_late(shop: Shop, tmp_path: Path) -> None:
    body = tmp_path / "body"
    await shell('head -c 20000000 /dev/zero > "$1"', body)
    async with mesh_bed() as bed:
        async with told(shop, await bed.app(speaks_and_ends)) as (_, api, url):
            assert await output(*CURL, url) == "all that there is"
            assert (await api.program.connection())["reason"] == "ok"
            assert (await output(*CURL, "--http1.0", url)) == "all that there is"
        async with told(shop, await bed.app(answers_early)) as (_, api, url):
            said = ""
            with trio.fail_after(PATIENCE):
                # As without a sidecar: a reset that comes while curl sends keeps it, now and then, from reading the answer.
                while "HTTP/1.1 413 Too Large" not in said:
                    said = await output(*CURL, "-i", "-T", body, "-H", "Expect:", url, check=False)
                    assert (await api.program.connection())["bytes_to_app"] < 20_000_000
        async with told(shop, await bed.app(says_nothing)) as (_, api, url):
            assert "curl: (52)" in await output(*CURL, url, check=False)
            assert (await api.program.connection())["reason"] == "ok"


async def test_pipelined_requests_are_answered_in_order(shop: Shop, tmp_path: Path) -> None:
    async with nginx_told(shop, tmp_path / "root") as (web, api, _):
        with await entered(web) as client:
            asked = b"".join(b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n" % one for one in (b"hello", b"none", b"hello"))
            await sockets.send_all(client, asked)
            client.shutdown(socket.SHUT_WR)
            heard = await receive_all(client)
        assert re.findall(rb"HTTP/1.1 (\d+)", heard) == [b"200", b"404", b"200"]
        await all_ok(web, api, connections=1)


@pytest.mark.parametrize("more", [TOLERANT, ""])
async def test_a_foreign_caller_is_named_too(shop: Shop, tmp_path: Path, more: str) -> None:
    """curl's own TLS, with web's certificate: no sidecar is before it."""
    (tmp_path / "root").mkdir()
    async with (
        nginx.http(tmp_path / "root", 'return 200 "$http_x_forwarded_client_cert";') as app,
        api_before(shop, app, HEADER + more) as api,
    ):
        web = shop.path / "web"
        keys = ("--cert", web / "certificate.pem", "--key", web / "key.pem", "--insecure", "--http1.1", "--no-alpn")
        said = await output(*CURL, *keys, f"https://{api.at('http')}/")
        assert TOLD.fullmatch(said)
