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
from trio.testing import MockClock, wait_all_tasks_blocked

from sidecar.documents.address import Address
from sidecar.identity.reasons import UsageError
from sidecar.observe import admin as admin_module
from sidecar.observe.admin import FIRST_REQUEST_SECONDS, MAX_CONNECTIONS, AdminServer, Source, listen_unix
from sidecar.observe.logs import Log
from sidecar.observe.metrics import Metrics
from sidecar.transport import sockets
from tests.beds.mesh import LogSink, connect, receive_all

WELL: dict[str, Any] = {
    "healthy": True, "unwell": [], "draining": False, "connected": [], "log": {"lost": 3}, "strangers": {"now": 5},
    "channels": {"idle": 4},
}  # fmt: skip


@asynccontextmanager
async def admin(listen: Address | Path, **status: Any) -> AsyncIterator[AdminServer]:
    metrics = Metrics()
    metrics.ended["inbound", "http", "allow", "ok"] = 3
    metrics.folded = 7
    metrics.streams["outbound", "api:http"], metrics.reused["outbound", "api:http"] = 9, 8
    document = {**WELL, **status}
    source = Source(lambda: document["unwell"], lambda: document["draining"], lambda: document, metrics)
    one = AdminServer("sidecar.yaml: admin.listen", listen, source, Log(LogSink(), "json"))
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
KEPT = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
STATUS = b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n"


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


async def test_live_is_the_process_and_ready_is_who_can_be_called() -> None:
    async with admin(LOOPBACK) as one:
        assert await asked(one.address, "/livez") == (200, '{"live": true}\n')
        assert await asked(one.address, "/readyz") == (200, '{"ready": true, "unwell": []}\n')
    for status in ({"healthy": False, "unwell": ["its certificate ended"]}, {"draining": True}):
        async with admin(LOOPBACK, **status) as one:
            assert (await asked(one.address, "/livez"))[0] == 200
            code, body = await asked(one.address, "/readyz")
            assert (code, '"ready": false' in body) == (503, True)


@pytest.mark.parametrize("target", ["/livez", "/healthz", "/readyz", "/status", "/metrics"])
async def test_head_is_answered_everywhere(target: str) -> None:
    async with admin(LOOPBACK) as one:
        assert await asked(one.address, target, method="HEAD") == (200, "")
        assert (await asked(one.address, target, method="HEAD", host="evil.example"))[0] == 403


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"GET /healthz HTTP/1.0\r\n\r\n", b"200"),
        (b"GET /healthz HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n", b"200"),
        (b"GET /healthz HTTP/1.0\r\nHost: evil.example\r\n\r\n", b"403"),
        (b"GET /healthz HTTP/1.0\r\nHost:\r\n\r\n", b"403"),
        (b"GET /healthz HTTP/1.1\r\n\r\n", b"400"),
    ],
)
async def test_only_http_1_0_may_name_no_host(request_head: bytes, status: bytes) -> None:
    """As probes of balancers do; no browser sends such a request."""
    async with admin(LOOPBACK) as one:
        with await connected(one) as sock:
            await sockets.send_all(sock, request_head)
            sock.shutdown(socket.SHUT_WR)
            assert (await receive_all(sock)).split()[1] == status


async def test_it_answers_by_the_address_where_it_was_told_to_listen() -> None:
    async with admin(Address("127.0.0.2", 0)) as one:
        assert one.address.startswith("127.0.0.2:")
        assert (await asked(one.address, "/healthz"))[0] == 200


async def test_status_and_metrics() -> None:
    connected = [{"direction": "inbound", "port": "http", "peer": "a", "connections": 2}]
    async with admin(LOOPBACK, connected=connected) as one:
        assert '"healthy": true' in (await asked(one.address, "/status"))[1]
        _, text = await asked(one.address, "/metrics")
        assert 'sidecar_connections_total{decision="allow",direction="inbound",port="http",reason="ok"} 3.0' in text
        assert 'sidecar_live_connections{direction="inbound",port="http"} 2.0' in text
        assert "sidecar_healthy 1.0" in text
        assert "sidecar_log_folded_total 7.0" in text
        assert "sidecar_log_lost_total 3.0" in text
        assert "sidecar_strangers 5.0" in text
        assert 'sidecar_streams_total{direction="outbound",port="api:http"} 9.0' in text
        assert 'sidecar_streams_reused_total{direction="outbound",port="api:http"} 8.0' in text
        assert "sidecar_idle_channels 4.0" in text


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:15000", "127.0.0.1:9", "[::1]:80", "[::1]", "LOCALHOST", "127.0.0.2:5", "127.0.0.2"],
)
async def test_our_own_host_is_answered(host: str) -> None:
    async with admin(LOOPBACK) as one:
        assert (await asked(one.address, "/status", host=host))[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:15000",
        "localhost.evil.example",
        "127.0.0.1.evil",
        "",
        "10.0.0.1",
        "127.1",
        "0.0.0.0",
    ],
)
@pytest.mark.parametrize("target", ["/status", "/healthz", "/metrics", "/livez", "/readyz"])
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


async def test_seventy_silent_connections_do_not_end_health_checks(tmp_path: Path) -> None:
    """The oldest silent one is closed to make room; who was answered before and is silent now counts as silent too."""
    for listen in (LOOPBACK, tmp_path / "admin.sock"):
        async with admin(listen) as one:
            with contextlib.ExitStack() as held:
                silent = [held.enter_context(await connected(one)) for _ in range(MAX_CONNECTIONS)]
                assert await asked(one.address, "/healthz") == (200, '{"healthy": true, "unwell": []}\n')
                assert await receive_all(silent[0]) == b""
                silent += [held.enter_context(await connected(one)) for _ in range(6)]
                for _ in range(2):
                    assert (await asked(one.address, "/healthz"))[0] == 200
                # Those that are left are still served.
                await sockets.send_all(silent[-1], HEALTH)
                assert (await receive_all(silent[-1])).startswith(b"HTTP/1.1 200 ")


async def test_who_does_not_take_its_answers_is_closed_last_but_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_module, "MAX_CONNECTIONS", 3)
    async with admin(LOOPBACK, unwell=["x" * 1_000_000], connected=[]) as one:
        with contextlib.ExitStack() as held:
            greedy = [held.enter_context(await connected(one)) for _ in range(2)]
            for sock in greedy:
                await sockets.send_all(sock, STATUS * 10)
            await wait_all_tasks_blocked()
            silent = held.enter_context(await connected(one))
            await wait_all_tasks_blocked()
            assert (await asked(one.address, "/livez"))[0] == 200
            assert await receive_all(silent) == b""
            greedy.append(held.enter_context(await connected(one)))
            await sockets.send_all(greedy[-1], STATUS * 10)
            await wait_all_tasks_blocked()
            assert (await asked(one.address, "/livez"))[0] == 200
            with contextlib.suppress(ConnectionResetError):
                assert len(await receive_all(greedy[0])) < 10_000_000, "it was closed amid its answers"


async def test_who_asks_nothing_is_closed_and_who_asked_may_ask_again_later(mock_clock: MockClock) -> None:
    async with admin(LOOPBACK) as one:
        with contextlib.ExitStack() as held:
            silent, slow, well = [held.enter_context(await connected(one)) for _ in range(3)]
            await sockets.send_all(slow, HEALTH[:10])
            for _ in range(2):
                await sockets.send_all(well, KEPT)
                assert (await sockets.receive(well, 1000)).startswith(b"HTTP/1.1 200 ")
                await wait_all_tasks_blocked()
                mock_clock.jump(FIRST_REQUEST_SECONDS + 1)
                await wait_all_tasks_blocked()
            for sock in (silent, slow):
                with contextlib.suppress(ConnectionResetError):  # where a part of a request was unread
                    assert await sockets.receive(sock, 1000) == b""


async def connected(one: AdminServer) -> socket.socket:
    """A connection that is accepted, and has asked nothing yet."""
    there = one.sockets[0]
    sock = socket.socket(there.family)
    sock.connect(there.getsockname())
    sock.setblocking(False)
    await wait_all_tasks_blocked()
    return sock


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


async def test_when_no_descriptor_is_left_that_is_said_once_and_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    real, left = socket.socket.accept, list[int]()

    def exhausted(self: socket.socket) -> Any:
        if left:
            raise OSError(left.pop(), "none left")
        return real(self)

    monkeypatch.setattr(socket.socket, "accept", exhausted)
    monkeypatch.setattr(admin_module, "FIRST_REQUEST_SECONDS", 1e9)
    log = LogSink()
    one = AdminServer("x", LOOPBACK, Source(list, bool, lambda: WELL, Metrics()), Log(log, "json"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        with await connected(one) as silent:
            left += [errno.EMFILE] * 3
            assert not await closed_at_once(Address(*one.sockets[0].getsockname()))
            assert await sockets.receive(silent, 1) == b"", "closed to make room"
        nursery.cancel_scope.cancel()
    assert left == []
    (line,) = log.events("accept_paused")
    assert line["message"] == "admin port: cannot accept connections: none left"
