"""The admin port: for this machine's own user, and for no web page that got here by another name."""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from sidecar.documents.address import Address
from sidecar.identity.reasons import UsageError
from sidecar.observe import admin as admin_module
from sidecar.observe.admin import AdminServer, Source, listen_unix
from sidecar.observe.logs import Log
from sidecar.observe.metrics import Metrics
from sidecar.transport import sockets
from tests.beds.mesh import PATIENCE, LogSink, connect, receive_all

WELL: dict[str, Any] = {"healthy": True, "unwell": [], "draining": False, "connected": []}


@asynccontextmanager
async def admin(listen: Address | Path, **status: Any) -> AsyncIterator[AdminServer]:
    metrics = Metrics()
    metrics.ended["inbound", "http", "allow", "ok"] = 3
    metrics.folded = 7
    one = AdminServer(
        "sidecar.yaml: admin.listen", listen, Source(lambda: {**WELL, **status}, metrics), Log(LogSink(), "json")
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        yield one
        nursery.cancel_scope.cancel()


BOTH = [
    (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
]


async def test_localhost_is_asked_on_every_loopback_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", lambda *_, **__: BOTH)
        listening = admin(Address("localhost", 0))
        async with listening as one:
            patch.undo()
            places = one.address.split(", ")
            assert len({place.rpartition(":")[2] for place in places}) == 1
            for place in places:
                assert (await trio.to_thread.run_sync(get, place, "/healthz"))[0] == 200
    assert [sock.fileno() for sock in one.sockets] == [-1] * len(places)


def get(address: str, target: str, host: str | None = None, method: str = "GET") -> tuple[int, str]:
    if address.startswith("/"):
        connection = http.client.HTTPConnection("localhost", timeout=20)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.connect(address)
    else:
        connection = http.client.HTTPConnection(address, timeout=20)
    try:
        connection.request(method, target, headers={} if host is None else {"Host": host})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


async def asked(*words: Any, **more: Any) -> tuple[int, str]:
    return await trio.to_thread.run_sync(lambda: get(*words, **more))


LOOPBACK = Address("127.0.0.1", 0)


async def test_it_says_whether_all_is_well() -> None:
    async with admin(LOOPBACK) as one:
        assert await asked(one.address, "/healthz") == (200, '{"healthy": true, "unwell": []}\n')


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({"healthy": False, "unwell": ["its certificate ended"]}, "its certificate ended"),
        ({"draining": True}, "it is draining"),
    ],
)
async def test_and_why_not(status: dict[str, Any], said: str) -> None:
    async with admin(LOOPBACK, **status) as one:
        code, body = await asked(one.address, "/healthz")
        assert (code, said in body) == (503, True)


async def test_status_and_metrics() -> None:
    connected = [{"direction": "inbound", "port": "http", "peer": "a", "connections": 2}]
    async with admin(LOOPBACK, connected=connected) as one:
        assert '"healthy": true' in (await asked(one.address, "/status"))[1]
        _, text = await asked(one.address, "/metrics")
        assert 'sidecar_connections_total{decision="allow",direction="inbound",port="http",reason="ok"} 3.0' in text
        assert 'sidecar_live_connections{direction="inbound",port="http"} 2.0' in text
        assert "sidecar_healthy 1.0" in text
        assert "sidecar_log_folded_total 7.0" in text


@pytest.mark.parametrize("host", ["localhost", "localhost:15000", "127.0.0.1:9", "[::1]:80", "LOCALHOST"])
async def test_our_own_host_is_answered(host: str) -> None:
    async with admin(LOOPBACK) as one:
        assert (await asked(one.address, "/status", host=host))[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:15000", "localhost.evil.example", "127.0.0.1.evil", ""])
@pytest.mark.parametrize("target", ["/status", "/healthz", "/metrics"])
async def test_a_page_of_another_host_is_not(target: str, host: str) -> None:
    async with admin(LOOPBACK) as one:
        assert (await asked(one.address, target, host=host))[0] == 403


async def test_nothing_else_is_there_and_nothing_is_changed() -> None:
    async with admin(LOOPBACK) as one:
        assert (await asked(one.address, "/nonsense"))[0] == 404
        assert (await asked(one.address, "/status", method="POST"))[0] == 405


async def test_a_unix_socket_is_its_owner_s_alone(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    async with admin(path) as one:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
        assert one.address == str(path)
        assert (await asked(str(path), "/healthz", host="anything"))[0] == 200, "no browser gets here"
    assert not path.exists()


ASK = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
try:
    s.sendall(b"GET /healthz HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
    print(s.recv(1) or "closed")
except ConnectionError:
    print("closed")
"""


def open_to_all(*paths: Path) -> None:
    for path in paths:
        path.chmod(0o777)


@pytest.mark.skipif(os.geteuid() != 0, reason="another user can be played by root only")
async def test_another_user_is_not_answered_though_the_file_was_opened_to_all(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    async with admin(path):
        open_to_all(path, tmp_path, *tmp_path.parents[:-2])
        # It asks, because a connection that asks nothing is closed in the end whoever opened it.
        for user, answer in ((65534, b"closed\n"), (0, b"b'H'\n")):
            done = await trio.run_process(
                ["python3", "-c", ASK, str(path)], capture_stdout=True, user=user, group=user, extra_groups=[]
            )
            assert done.stdout == answer


async def test_there_is_a_most_of_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is closed unanswered; once another has ended, there is room."""
    monkeypatch.setattr(admin_module, "MAX_CONNECTIONS", 2)
    async with admin(LOOPBACK) as one:
        port = one.sockets[0].getsockname()[1]
        with trio.fail_after(PATIENCE):
            first = await trio.open_tcp_stream("127.0.0.1", port)
            async with await trio.open_tcp_stream("127.0.0.1", port) as second:
                assert await answered(first)
                assert await answered(second)
                assert not await is_answered(port)
                await first.aclose()
                while not await is_answered(port):
                    pass  # that the first has ended is not noticed at once
                assert await answered(second)


async def is_answered(port: int) -> bool:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        return await answered(stream)


async def answered(stream: trio.SocketStream) -> bool:
    try:
        await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return bool(await stream.receive_some())
    except trio.BrokenResourceError:
        return False


def test_a_socket_that_nobody_listens_on_is_replaced_and_one_in_use_is_not(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    listen_unix("x", path).close()
    assert path.is_socket()
    with listen_unix("x", path), pytest.raises(UsageError, match="another process listens"):
        listen_unix("x", path)


def test_a_place_where_none_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for path in (tmp_path / "none" / "admin.sock", tmp_path / "file"):
        with pytest.raises(UsageError, match=r"admin\.listen: cannot listen on"):
            listen_unix("sidecar.yaml: admin.listen", path)
    assert (tmp_path / "file").read_text() == "precious"


async def closed_at_once(where: Address) -> bool:
    """Whether a new connection is closed without a word; else it is asked after its health."""
    with await connect(where) as sock, contextlib.suppress(ConnectionError):
        await sockets.send_all(sock, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return not await receive_all(sock)
    return True


async def test_more_connections_than_it_may_have_are_closed_and_the_next_is_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admin_module, "MAX_CONNECTIONS", 2)
    async with admin(LOOPBACK) as one:
        where = Address(*one.sockets[0].getsockname())
        assert not await closed_at_once(where)
        silent = [await connect(where) for _ in range(2)]
        assert await closed_at_once(where)
        for sock in silent:
            sock.close()
        with trio.fail_after(PATIENCE):
            while await closed_at_once(where):
                await trio.lowlevel.checkpoint()


async def test_when_no_descriptor_is_left_that_is_said_once_and_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    real, left = socket.socket.accept, [errno.EMFILE] * 3

    def exhausted(self: socket.socket) -> Any:
        if left:
            raise OSError(left.pop(), "none left")
        return real(self)

    monkeypatch.setattr(socket.socket, "accept", exhausted)
    log = LogSink()
    one = AdminServer("x", LOOPBACK, Source(lambda: WELL, Metrics()), Log(log, "json"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        assert not await closed_at_once(Address(*one.sockets[0].getsockname()))
        nursery.cancel_scope.cancel()
    assert left == []
    (line,) = log.events("accept_paused")
    assert line["message"] == "admin port: cannot accept connections: none left"
