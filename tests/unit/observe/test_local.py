"""HTTP for this machine's own user, and for no web page that got here by another name."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from sidecar.documents.address import Address
from sidecar.identity.reasons import UsageError
from sidecar.observe import local
from sidecar.observe.admin import Source
from sidecar.observe.local import FIRST_REQUEST_SECONDS, MAX_CONNECTIONS, LocalServer, listen_unix
from sidecar.observe.logs import Log
from sidecar.observe.metrics import Metrics
from sidecar.transport import sockets
from tests.beds.admin import LOOPBACK, NUMBERS, WELL, admin, asked, connected, get
from tests.beds.mesh import LogSink, connect, receive_all

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


KEPT = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
STATUS = b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n"


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
    monkeypatch.setattr(local, "MAX_CONNECTIONS", 3)
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
    monkeypatch.setattr(local, "FIRST_REQUEST_SECONDS", 1e9)
    log = LogSink()
    one = LocalServer(
        "x", LOOPBACK, Source(list, bool, lambda: WELL, lambda: NUMBERS, Metrics()).routes(), Log(log, "json")
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        with await connected(one) as silent:
            left += [errno.EMFILE] * 3
            assert not await closed_at_once(Address(*one.sockets[0].getsockname()))
            assert await sockets.receive(silent, 1) == b"", "closed to make room"
        nursery.cancel_scope.cancel()
    assert left == []
    (line,) = log.events("accept_paused")
    assert line["message"].startswith("x: cannot accept connections: none left; it tries again by itself")
