"""How a stream ends at one app is how it ends at the other: early answers whole, resets as resets, either side first."""

from __future__ import annotations

import socket

import pytest
import trio

from sidecar.transport import sockets
from tests.beds.mesh import App, connect, mesh_bed, receive_all
from tests.beds.patience import PATIENCE

ANSWER = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 5000\r\n\r\n" + b"n" * 5000


async def answer_early(sock: socket.socket, _: App) -> None:
    """Reads the beginning of an upload, answers, and closes with the rest unread: its kernel sends a reset behind it."""
    await sockets.receive(sock, 100)
    await sockets.send_all(sock, ANSWER)
    sock.shutdown(socket.SHUT_WR)


async def upload(client: socket.socket) -> None:
    try:
        for _ in range(50):
            await sockets.send_all(client, b"u" * 20_000)
    except OSError:
        pass  # as any HTTP client: it goes on to read what was answered


async def test_an_early_answer_arrives_whole_every_time() -> None:
    async with mesh_bed() as bed:
        app = await bed.app(answer_early)
        _, _, entry = await bed.pair(app)
        heard: list[bytes] = []

        async def one() -> None:
            with await connect(entry) as client:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(upload, client)
                    answer = b""
                    with trio.fail_after(PATIENCE):
                        while len(answer) < len(ANSWER) and (data := await sockets.receive(client, 65536)):
                            answer += data
                    heard.append(answer)
                    nursery.cancel_scope.cancel()

        for _ in range(10):
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(one)
        assert [len(answer) for answer in heard] == [len(ANSWER)] * 100
        assert set(heard) == {ANSWER}


async def test_the_server_may_speak_first() -> None:
    """As SMTP, SSH and MySQL do: the caller says nothing before it has read the greeting."""

    async def greet(sock: socket.socket, app: App) -> None:
        await sockets.send_all(sock, b"220 ready\r\n")
        app.received += await sockets.receive(sock, 100)
        await sockets.send_all(sock, b"221 bye\r\n")
        sock.shutdown(socket.SHUT_WR)

    async with mesh_bed() as bed:
        app = await bed.app(greet)
        web, api, entry = await bed.pair(app)
        with await connect(entry) as client:
            with trio.fail_after(PATIENCE):
                assert await sockets.receive(client, 100) == b"220 ready\r\n"
            await sockets.send_all(client, b"QUIT\r\n")
            assert await receive_all(client) == b"221 bye\r\n"
        assert bytes(app.received) == b"QUIT\r\n"
        assert (await web.log.connection())["reason"] == (await api.log.connection())["reason"] == "ok"


async def test_an_app_s_reset_is_a_reset_for_the_client_after_all_that_it_had_sent() -> None:
    async def send_and_reset(sock: socket.socket, _: App) -> None:
        await sockets.receive(sock, 100)
        await sockets.send_all(sock, b"half of an ans")
        await received.wait()
        sockets.hard_close(sock)

    received = trio.Event()
    async with mesh_bed() as bed:
        app = await bed.app(send_and_reset)
        web, api, entry = await bed.pair(app)
        with await connect(entry) as client:
            await sockets.send_all(client, b"question")
            assert await sockets.receive(client, 100) == b"half of an ans"
            received.set()
            with pytest.raises(ConnectionResetError):
                await receive_all(client)
        here, there = await web.log.connection(), await api.log.connection()
    assert there["reason"] == "app_reset"
    assert here["reason"] == "truncated"  # which it is, whoever did it: nobody said that this was the end
    assert (here["bytes_to_app"], there["bytes_from_app"]) == (14, 14)


async def test_a_client_s_reset_is_a_reset_for_the_app() -> None:
    heard: list[Exception | bytes] = []

    async def listen(sock: socket.socket, app: App) -> None:
        try:
            while data := await sockets.receive(sock, 100):
                app.received += data
            heard.append(b"a clean end")
        except OSError as error:
            heard.append(error)
        done.set()

    done = trio.Event()
    async with mesh_bed() as bed:
        app = await bed.app(listen)
        web, api, entry = await bed.pair(app)
        client = await connect(entry)
        await sockets.send_all(client, b"INSERT; no COMMIT")
        with trio.fail_after(PATIENCE):
            while len(app.received) < 17:
                await trio.lowlevel.checkpoint()
        sockets.hard_close(client)
        with trio.fail_after(PATIENCE):
            await done.wait()
        assert [type(one) for one in heard] == [ConnectionResetError]
        assert (await web.log.connection())["reason"] == "client_reset"
        assert (await api.log.connection())["reason"] == "truncated"
        assert bytes(app.received) == b"INSERT; no COMMIT"


async def test_both_ends_close_cleanly_without_a_byte() -> None:
    async with mesh_bed() as bed:
        web, api, entry = await bed.pair()
        with await connect(entry) as client:
            client.shutdown(socket.SHUT_WR)
            assert await receive_all(client) == b""
        for sidecar in (web, api):
            line = await sidecar.log.connection()
            assert (line["reason"], line["bytes_to_app"], line["bytes_from_app"]) == ("ok", 0, 0)
