"""Half-close: one side has said all, and says so; the other may still speak, as long as it likes."""

from __future__ import annotations

import os
import socket

import pytest
import trio

from sidecar.transport import sockets
from tests.beds.mesh import App, mesh_bed, receive_all
from tests.beds.processes import DEADLINE, Shop, sidecar_pair
from tests.protocols.programs import all_ok, entered

QUESTION, ANSWER = os.urandom(300_000), os.urandom(300_000)


@pytest.mark.parametrize("question", [QUESTION, b""], ids=["question", "nothing"])
async def test_an_answer_after_the_end_of_the_question(shop: Shop, question: bytes) -> None:
    """As ``nc -N``, ``rsh`` or ``git`` over a plain socket do: the end of the input is what starts the answer."""
    heard, late = trio.Event(), trio.Event()

    async def answer_late(sock: socket.socket, app: App) -> None:
        asked = await receive_all(sock)
        if asked == question:
            heard.set()
            await late.wait()
        await sockets.send_all(sock, ANSWER)

    async with mesh_bed() as bed:
        app = await bed.app(answer_late)
        async with sidecar_pair(shop, str(app.address)) as (web, api):
            with await entered(web) as client:
                await sockets.send_all(client, question)
                client.shutdown(socket.SHUT_WR)
                with trio.fail_after(DEADLINE):
                    await heard.wait()
                # Much happens on other connections until the answer comes.
                for _ in range(20):
                    with await entered(web) as other:
                        await sockets.send_all(other, b"and you?")
                        other.shutdown(socket.SHUT_WR)
                        assert await receive_all(other) == ANSWER
                late.set()
                assert await receive_all(client) == ANSWER
            await all_ok(web, api, connections=21)


async def test_a_server_that_is_done_goes_on_listening(shop: Shop) -> None:
    done = trio.Event()

    async def answer_first(sock: socket.socket, app: App) -> None:
        await sockets.send_all(sock, ANSWER)
        sock.shutdown(socket.SHUT_WR)
        app.received += await receive_all(sock)
        done.set()

    async with mesh_bed() as bed:
        app = await bed.app(answer_first)
        async with sidecar_pair(shop, str(app.address)) as (web, api):
            with await entered(web) as client:
                assert await receive_all(client) == ANSWER
                await sockets.send_all(client, QUESTION)
                client.shutdown(socket.SHUT_WR)
                with trio.fail_after(DEADLINE):
                    await done.wait()
                assert bytes(app.received) == QUESTION
            await all_ok(web, api, connections=1)
