"""WebSocket (RFC 6455): the upgrade, frames both ways, a message in fragments, a push without a question, and the close."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import struct

import trio

from sidecar.transport import sockets
from tests.beds.mesh import App, mesh_bed
from tests.beds.processes import DEADLINE, Shop, SidecarProcess, sidecar_pair
from tests.protocols.programs import all_ok, entered

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


class Frames:
    """One end of a WebSocket. A client masks what it sends, a server does not (RFC 6455 section 5.1)."""

    def __init__(self, sock: socket.socket, *, client: bool) -> None:
        self._sock = sock
        self._client = client
        self._data = b""

    async def take(self, size: int) -> bytes:
        with trio.fail_after(DEADLINE):
            while len(self._data) < size:
                more = await sockets.receive(self._sock, 65536)
                assert more, "the other side closed"
                self._data += more
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    async def head(self) -> str:
        """The HTTP request or answer before the first frame."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await self.take(1)
        return head.decode()

    async def send(self, opcode: int, payload: bytes, *, final: bool = True) -> None:
        size = len(payload)
        long = struct.pack("!BH", 126, size) if size < 65536 else struct.pack("!BQ", 127, size)
        first, *rest = bytes([size]) if size < 126 else long
        frame = bytes([(final << 7) | opcode, (self._client << 7) | first, *rest])
        if self._client:
            mask = os.urandom(4)
            frame += mask
            payload = masked(payload, mask)
        await sockets.send_all(self._sock, frame + payload)

    async def receive(self) -> tuple[int, bool, bytes]:
        """Opcode, whether it is final, payload."""
        first, second = await self.take(2)
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", await self.take(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", await self.take(8))
        assert bool(second & 0x80) is not self._client
        mask = await self.take(4) if second & 0x80 else bytes(4)
        return first & 0x0F, bool(first & 0x80), masked(await self.take(size), mask)


def masked(payload: bytes, mask: bytes) -> bytes:
    size = len(payload)
    key = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
    return (int.from_bytes(payload, "big") ^ key).to_bytes(size, "big")


def accept(key: str) -> str:
    digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode(), usedforsecurity=False)
    return base64.b64encode(digest.digest()).decode()


async def chat(sock: socket.socket, _: App) -> None:
    """Echoes messages in one frame each, answers pings, greets first, and closes when told."""
    frames = Frames(sock, client=False)
    key = (await frames.head()).partition("Sec-WebSocket-Key: ")[2].partition("\r\n")[0]
    await sockets.send_all(
        sock,
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        + f"Sec-WebSocket-Accept: {accept(key)}\r\n\r\n".encode(),
    )
    await frames.send(TEXT, b"welcome")
    message = b""
    while True:
        opcode, final, payload = await frames.receive()
        if opcode == PING:
            await frames.send(PONG, payload)
        elif opcode == CLOSE:
            await frames.send(CLOSE, payload)
            return
        else:
            message += payload
            if final:
                await frames.send(BINARY, message)
                message = b""


async def test_a_conversation(shop: Shop) -> None:
    async with mesh_bed() as bed:
        app = await bed.app(chat)
        async with sidecar_pair(shop, str(app.address)) as (web, api):
            await converse(web)
            await all_ok(web, api, connections=1)


async def converse(web: SidecarProcess) -> None:
    """The client's side of all that :func:`chat` knows."""
    with await entered(web) as client:
        key = base64.b64encode(os.urandom(16)).decode()
        request = f"GET /chat HTTP/1.1\r\nHost: api\r\nUpgrade: websocket\r\nSec-WebSocket-Key: {key}\r\n\r\n"
        await sockets.send_all(client, request.encode())
        frames = Frames(client, client=True)
        answer = await frames.head()
        assert answer.startswith("HTTP/1.1 101 ")
        assert f"Sec-WebSocket-Accept: {accept(key)}\r\n" in answer
        assert await frames.receive() == (TEXT, True, b"welcome")  # nobody asked

        for size in (0, 1, 125, 126, 65535, 65536, 1_000_000):
            payload = os.urandom(size)
            await frames.send(BINARY, payload)
            assert await frames.receive() == (BINARY, True, payload)

        # A control frame may come between the fragments of a message.
        await frames.send(TEXT, b"in three ", final=False)
        await frames.send(PING, b"still there?")
        assert await frames.receive() == (PONG, True, b"still there?")
        await frames.send(CONTINUATION, b"fragments ", final=False)
        await frames.send(CONTINUATION, b"it came")
        assert await frames.receive() == (BINARY, True, b"in three fragments it came")

        await frames.send(CLOSE, struct.pack("!H", 1000))
        assert await frames.receive() == (CLOSE, True, struct.pack("!H", 1000))
