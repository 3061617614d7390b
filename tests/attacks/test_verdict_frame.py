"""The callee's word, bent: only a whole and exact ``ok`` lets the app's bytes flow."""

from __future__ import annotations

import contextlib
import socket

import pytest
from OpenSSL import SSL

from sidecar.identity.reasons import Reason
from sidecar.transport import sockets
from tests.attacks.stage import HONEST, attacked_call
from tests.beds.mesh import Foreigner, connect

NO_VERDICT = {
    "a length of 0": b"\x00ok",
    "a length of 33": b"\x21" + b"a" * 33,
    "a length of 255": b"\xff" + b"a" * 255,
    "HTTP": b"HTTP/1.1 200 OK\r\n\r\n",
    "a word that begins with ok": b"\x03ok!",
    "ok and NUL": b"\x03ok\0",
    "ok and a newline": b"\x03ok\n",
    "ok in capitals": b"\x02OK",
    "o": b"\x01o",
    "an unknown word": b"\x05maybe",
    "bytes that are no text": b"\x04\xff\xfe\x00\x80",
}


@pytest.mark.parametrize("frame", NO_VERDICT.values(), ids=NO_VERDICT)
async def test_whatever_is_not_ok_is_no(frame: bytes) -> None:
    async with attacked_call() as call:
        await call.attack(call.impostor.shows(call.bed.authority.leaf("api"), frame=frame))
        line = await call.refused("peer_refused", alarm=False)
        assert line["message"].isprintable()


@pytest.mark.parametrize("word", [reason.value for reason in Reason if reason is not Reason.OK])
async def test_the_reason_of_the_callee_is_quoted(word: str) -> None:
    async with attacked_call() as call:
        await call.attack(call.impostor.shows(call.bed.authority.leaf("api"), frame=bytes([len(word)]) + word.encode()))
        line = await call.refused("peer_refused", alarm=False)
        assert line["peer_reason"] == word


async def test_an_unknown_word_with_control_characters_is_escaped() -> None:
    evil = b'\x1b[2J\r\n{"event":"x"}'
    async with attacked_call() as call:
        await call.attack(call.impostor.shows(call.bed.authority.leaf("api"), frame=bytes([len(evil)]) + evil))
        line = await call.refused("peer_refused", alarm=False)
        assert line["peer_reason"].isprintable()
        assert line["message"].isprintable()


@pytest.mark.parametrize(
    "records",
    [
        pytest.param([b"\x02", b"o", b"k", HONEST], id="a byte a record"),
        pytest.param([b"\x02ok" + HONEST], id="data in the same record"),
        pytest.param([b"\x02o", b"k" + HONEST[:3], HONEST[3:]], id="data behind its end"),
    ],
)
async def test_a_verdict_in_pieces_and_with_data(records: list[bytes]) -> None:
    """What comes with the verdict is the app's, to the byte."""
    async with attacked_call() as call:

        async def answer(sock: socket.socket) -> None:
            peer = Foreigner(sock, call.bed.authority.leaf("api"), server=True)
            await peer.handshake()
            for one in records:
                await peer.send(one)
            await peer.close()
            with contextlib.suppress(SSL.Error, EOFError):
                await peer.receive()

        call.impostor.answer = answer
        with await connect(call.entry) as client:
            assert await sockets.receive(client, 100) == HONEST
            assert await sockets.receive(client, 100) == b""
        assert (await call.sidecar.log.connection())["decision"] == "allow"


@pytest.mark.parametrize("how", ["close_notify", "FIN", "RST", "half a frame"])
async def test_a_peer_that_ends_without_a_verdict(how: str) -> None:
    async with attacked_call() as call:

        async def answer(sock: socket.socket) -> None:
            peer = Foreigner(sock, call.bed.authority.leaf("api"), server=True)
            await peer.handshake()
            if how == "half a frame":
                await peer.send(b"\x02o")
            if how in ("close_notify", "half a frame"):
                await peer.close()
            if how == "RST":
                sockets.hard_close(sock)
                return
            sock.shutdown(socket.SHUT_WR)
            while data := await sockets.receive(sock, 1000):
                assert HONEST not in data

        await call.attack(answer)
        await call.refused("peer_refused", alarm=False)


async def test_no_byte_of_the_app_goes_out_before_the_verdict() -> None:
    """The app has long spoken when the callee says no."""
    async with attacked_call() as call:
        heard: list[bytes] = []

        async def answer(sock: socket.socket) -> None:
            peer = Foreigner(sock, call.bed.authority.leaf("api"), server=True)
            await peer.handshake()
            await call.sidecar.node.gate.turn()
            with contextlib.suppress(SSL.WantReadError, BlockingIOError):
                peer.tls.bio_write(sock.recv(65536))
                heard.append(peer.tls.recv(65536))
            await peer.send(b"\x0dpolicy_denied")
            with contextlib.suppress(SSL.Error, EOFError, OSError):
                heard.append(await peer.receive())

        await call.attack(answer)
        line = await call.refused("peer_refused", alarm=False)
        assert line["peer_reason"] == "policy_denied"
        assert b"".join(heard) == b""
