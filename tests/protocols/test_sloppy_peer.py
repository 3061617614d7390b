"""A peer that closes without close_notify: an attacker may have cut it, unless the file says that it is just sloppy."""

from __future__ import annotations

import socket

import pytest
import trio

from sidecar.transport import sockets
from tests.beds.certificates import Authority
from tests.beds.mesh import App, Foreigner, connect, inbound, mesh_bed, outbound, receive_all
from tests.beds.patience import PATIENCE

SAID = b"all that there is to say"


@pytest.mark.parametrize("tolerant", [False, True])
@pytest.mark.parametrize("alpn", [(), (b"mesh/1/http",)], ids=["raw", "mesh"])
async def test_a_caller_that_says_no_goodbye(tolerant: bool, alpn: tuple[bytes, ...]) -> None:
    endings, ended = [], trio.Event()

    async def listen(sock: socket.socket, app: App) -> None:
        try:
            while data := await sockets.receive(sock, 65536):
                app.received += data
        except ConnectionResetError:
            endings.append("reset")
        else:
            endings.append("end")
        ended.set()

    authority = Authority()
    async with mesh_bed(authority=authority) as bed:
        app = await bed.app(listen)
        port = inbound("http", app.address, tolerate_missing_close_notify=tolerant)
        api = await bed.sidecar("api", inbound=[port])
        with await connect(api.address("http")) as sock:
            peer = Foreigner(sock, authority.leaf("web"), alpn=alpn)
            await peer.handshake()
            if alpn:
                assert await peer.verdict() == "ok"
            await peer.send(SAID)
            sock.shutdown(socket.SHUT_WR)  # a bare FIN
            line = await api.log.connection()
            with trio.fail_after(PATIENCE):
                await ended.wait()
    assert app.received == SAID  # what was authentic is delivered ...
    assert endings == ["end" if tolerant else "reset"]  # ... and only a tolerant end is a clean one
    assert (line["decision"], line["reason"]) == ("allow", "ok" if tolerant else "truncated")
    assert line["bytes_to_app"] == len(SAID)
    if not tolerant:
        assert "without close_notify" in line["message"]


@pytest.mark.parametrize("tolerant", [False, True])
async def test_a_callee_that_says_no_goodbye(tolerant: bool) -> None:
    authority = Authority()

    async def answer(sock: socket.socket, _: App) -> None:
        peer = Foreigner(sock, authority.leaf("api"), server=True, alpn=())
        await peer.handshake()
        assert await peer.receive() == b"question"
        await peer.send(SAID)  # and the socket is closed

    async with mesh_bed(authority=authority) as bed:
        peer = await bed.app(answer)
        route = outbound("api", "http", peer.address, tolerate_missing_close_notify=tolerant)
        web = await bed.sidecar("web", outbound=[route])
        with await connect(web.address("api:http", "outbound")) as sock:
            await sockets.send_all(sock, b"question")
            if tolerant:
                assert await receive_all(sock) == SAID
            else:
                assert await sockets.receive(sock, 65536) == SAID
                with pytest.raises(ConnectionResetError):
                    await receive_all(sock)
        line = await web.log.connection()
    assert (line["decision"], line["reason"]) == ("allow", "ok" if tolerant else "truncated")
    assert line["bytes_to_app"] == len(SAID)
