"""The dashboard's server, attacked: by another page in the same browser, by another user of the machine, by a fool."""

from __future__ import annotations

import http.client
import json
import re
import socket
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from sidecar.dashboard.board import MOST_PAGES, Board
from sidecar.dashboard.guard import HEADERS
from sidecar.dashboard.server import EVENTS, FILES, DashboardServer
from sidecar.identity.reasons import UsageError
from sidecar.observe.logs import Log
from tests.beds.dashboard import TOKEN, Shown, dashboard, shop
from tests.beds.mesh import LogSink
from tests.beds.patience import PATIENCE

MINE = {"Authorization": f"Bearer {TOKEN}"}


class Answer:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body


async def ask(
    one: Shown, target: str, headers: dict[str, str] | None = None, method: str = "GET", body: Any = None
) -> Answer:
    """One request, and its answer; of an answer without an end its first event."""

    def go() -> Answer:
        connection = http.client.HTTPConnection(one.origin.removeprefix("http://"), timeout=PATIENCE)
        try:
            connection.request(method, target, body, headers or {})
            with connection.getresponse() as found:
                feed = found.getheader("content-type") == "text/event-stream" and method == "GET"
                data = b"".join(found.readline() for _ in range(3)) if feed else found.read()
                return Answer(found.status, {name.lower(): value for name, value in found.getheaders()}, data)
        finally:
            connection.close()

    return await trio.to_thread.run_sync(go)


async def raw(one: Shown, data: bytes) -> bytes:
    """Bytes as they are, and what comes back until the end."""
    host, _, port = one.origin.removeprefix("http://").rpartition(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        with trio.fail_after(PATIENCE):
            await stream.send_all(data)
            return b"".join([part async for part in stream])


async def test_the_page_and_the_mesh() -> None:
    async with dashboard() as one:
        one.show(shop())
        page = await ask(one, "/")
        assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        told = await ask(one, EVENTS, MINE)
        assert (told.status, told.headers["content-type"]) == (200, "text/event-stream")
        name, data = told.body.decode().splitlines()[:2]
        assert name == "event: view"
        assert json.loads(data.removeprefix("data: "))["verdict"]["state"] == "good"


async def test_every_file_has_every_header_and_nothing_is_kept() -> None:
    async with dashboard() as one:
        for path, (_, content_type) in FILES.items():
            found = await ask(one, path)
            assert (found.status, found.headers["content-type"]) == (200, content_type)
            assert {name: found.headers[name.lower()] for name in HEADERS} == dict(HEADERS)
            assert found.headers["cache-control"] == "no-store"
        told = await ask(one, EVENTS, MINE)
        assert {name: told.headers[name.lower()] for name in HEADERS} == dict(HEADERS)
        assert told.headers["cache-control"] == "no-store"


async def test_no_file_asks_for_anything_elsewhere_or_writes_html() -> None:
    async with dashboard() as one:
        for path in FILES:
            text = re.sub(r"^ *//.*$", "", (await ask(one, path)).body.decode(), flags=re.MULTILINE)
            text = text.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
            assert "://" not in text, path
            for word in (
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "onclick=",
                "style=",
            ):
                assert word not in text, (path, word)


@pytest.mark.parametrize("path", ["/", EVENTS])
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:{port}"]
)
async def test_another_host_is_refused(path: str, host: str) -> None:
    """DNS rebinding: a name of an attacker's that resolves to us."""
    async with dashboard() as one:
        port = one.origin.rpartition(":")[2]
        found = await ask(one, path, {**MINE, "Host": host.format(port=port)})
        assert 400 <= found.status < 500
        assert b"shop.internal" not in found.body


async def test_no_host_is_refused() -> None:
    async with dashboard() as one:
        assert (await raw(one, b"GET / HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 421 ")


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}]
)
async def test_another_page_is_refused(headers: dict[str, str]) -> None:
    async with dashboard() as one:
        found = await ask(one, EVENTS, {**MINE, **headers})
        assert found.status == 403
        assert "access-control-allow-origin" not in found.headers


async def test_and_its_preflight_too() -> None:
    asks = {"Origin": "http://evil.example", "Access-Control-Request-Headers": "authorization"}
    async with dashboard() as one:
        found = await ask(one, EVENTS, asks, method="OPTIONS")
        assert found.status == 405
        assert not any(name.startswith("access-control") for name in found.headers)


@pytest.mark.parametrize(
    "given", [{}, {"Authorization": "Bearer x"}, {"Authorization": TOKEN}, {"Cookie": f"token={TOKEN}"}]
)
async def test_without_the_token_nothing_is_told(given: dict[str, str]) -> None:
    async with dashboard() as one:
        one.show(shop())
        found = await ask(one, EVENTS, given)
        assert found.status == 401
        assert b"shop.internal" not in found.body


async def test_the_token_is_taken_from_no_address() -> None:
    async with dashboard() as one:
        assert (await ask(one, f"{EVENTS}?token={TOKEN}")).status == 401
        assert (await ask(one, f"{EVENTS}?authorization=Bearer%20{TOKEN}")).status == 401


async def test_the_token_is_in_no_log_and_no_answer() -> None:
    async with dashboard() as one:
        one.show(shop())
        answers = [await ask(one, path, MINE) for path in (*FILES, EVENTS, "/nothing")]
        answers += [await ask(one, EVENTS, {"Authorization": f"Bearer {TOKEN}x"})]
        assert all(TOKEN.encode() not in found.body and TOKEN not in str(found.headers) for found in answers)
        assert TOKEN not in one.log.getvalue()


async def test_another_run_has_another_token() -> None:
    some = [DashboardServer(Board(), Log(LogSink(), "json")) for _ in range(2)]
    tokens = {one.url.partition("#")[2] for one in some}
    assert len(tokens) == 2
    assert all(len(token) >= 43 for token in tokens)
    for one in some:
        one.close()


@pytest.mark.parametrize(
    "target",
    [
        "/../guard.py",
        "/page/../../guard.py",
        "/%2e%2e/guard.py",
        "/..%2fguard.py",
        "//etc/passwd",
        "/index.html",
        "/guard.py",
        "/page.js/",
    ],
)
async def test_no_path_leads_to_another_file(target: str) -> None:
    async with dashboard() as one:
        assert (await ask(one, target, MINE)).status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE", "NONSENSE"])
@pytest.mark.parametrize("path", ["/", EVENTS])
async def test_nothing_can_be_changed(method: str, path: str) -> None:
    async with dashboard() as one:
        assert (await ask(one, path, MINE, method=method)).status == 405


async def test_head_is_answered_without_a_body() -> None:
    async with dashboard() as one:
        assert (await ask(one, EVENTS, MINE, method="HEAD")).body == b""
        assert (await ask(one, "/", method="HEAD")).body == b""


async def test_what_is_too_large_is_refused() -> None:
    async with dashboard() as one:
        assert (await ask(one, "/", {"X": "x" * 40_000})).status == 431
        assert (await ask(one, "/", body=b"x" * 70_000)).status == 413
        host = one.origin.removeprefix("http://").encode()
        many = b"".join(b"X-%d: x\r\n" % at for at in range(100))
        assert (await raw(one, b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n" + many + b"\r\n")).startswith(
            b"HTTP/1.1 431 "
        )


async def test_so_many_pages_and_no_more() -> None:
    async with dashboard() as one:
        one.show(shop())
        host, _, port = one.origin.removeprefix("http://").rpartition(":")
        request = f"GET {EVENTS} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
        open_now = []
        with trio.fail_after(PATIENCE):
            for _ in range(MOST_PAGES):
                stream = await trio.open_tcp_stream(host, int(port))
                await stream.send_all(request)
                await stream.receive_some()
                open_now.append(stream)
            assert one.board.pages == MOST_PAGES
            assert (await ask(one, EVENTS, MINE)).status == 503
            assert (await ask(one, "/")).status == 200
            await open_now.pop().aclose()
            while (await ask(one, EVENTS, MINE)).status != 200:  # it is noticed at the next sign
                one.show(shop(calls=len(open_now)))
                await trio.sleep(0.1)
        for stream in open_now:
            await stream.aclose()


async def test_a_page_that_takes_nothing_more_holds_up_nobody() -> None:
    async with dashboard() as one:
        host, _, port = one.origin.removeprefix("http://").rpartition(":")
        sock = socket.create_connection((host, int(port)))
        with sock:
            sock.sendall(
                f"GET {EVENTS} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
            )
            await wait_all_tasks_blocked()
            for number in range(50):
                one.show(shop(calls=number))
            assert (await ask(one, "/")).status == 200


async def test_a_port_that_is_taken() -> None:
    async with dashboard() as one:
        port = int(one.origin.rpartition(":")[2])
        with pytest.raises(UsageError, match="sidecar dashboard: cannot listen"):
            DashboardServer(one.board, Log(LogSink(), "json"), port)
