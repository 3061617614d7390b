"""One protected connection: what goes in at one end comes out at the other, both ways, and both ends log it once."""

from __future__ import annotations

import socket

from sidecar.transport import sockets
from tests.beds.mesh import App, connect, echo, mesh_bed, receive_all


async def test_bytes_cross_both_ways_and_both_ends_log_the_same_connection() -> None:
    async with mesh_bed() as bed:
        app = await bed.app(echo)
        web, api, entry = await bed.pair(app)
        with await connect(entry) as client:
            await sockets.send_all(client, b"hello" * 100_000)
            client.shutdown(socket.SHUT_WR)
            assert await receive_all(client) == b"hello" * 100_000
        there, here = await web.log.connection(), await api.log.connection()
        assert app.connections == 1
    assert there["connection_id"] == here["connection_id"] is not None
    assert (there["decision"], there["reason"], there["rule"]) == ("allow", "ok", "web->api:http")
    assert (here["decision"], here["reason"], here["rule"]) == ("allow", "ok", "web->api:http")
    assert (there["peer_id"], here["peer_id"]) == ("spiffe://shop.internal/api", "spiffe://shop.internal/web")
    assert there["bytes_from_app"] == there["bytes_to_app"] == here["bytes_to_app"] == here["bytes_from_app"] == 500_000
    assert len(web.log.connections) == len(api.log.connections) == 1


async def test_half_close_leaves_the_other_direction_open() -> None:
    async def late(sock: socket.socket, app: App) -> None:
        while data := await sockets.receive(sock, 65536):
            app.received += data
        await sockets.send_all(sock, b"an answer after the end of the question")
        sock.shutdown(socket.SHUT_WR)

    async with mesh_bed() as bed:
        app = await bed.app(late)
        web, _, entry = await bed.pair(app)
        with await connect(entry) as client:
            await sockets.send_all(client, b"question")
            client.shutdown(socket.SHUT_WR)
            assert await receive_all(client) == b"an answer after the end of the question"
        assert bytes(app.received) == b"question"
        assert (await web.log.connection())["reason"] == "ok"
