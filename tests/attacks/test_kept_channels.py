"""A kept channel under attack: by its own peer, who has a valid certificate, and by somebody on the wire between two
streams. No byte of one stream reaches another, nothing is taken before it is due, and the next honest call goes through.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from OpenSSL import SSL

from sidecar.relay.frames import Kind, Open, encode_open
from sidecar.transport import sockets
from tests.attacks.stage import HONEST, STOLEN, Port, attacked_call, attacked_port
from tests.attacks.tap import Tap, tapped
from tests.beds.frames import frame
from tests.beds.mesh import Foreigner, RunningSidecar, connect, inbound, mesh_bed, outbound, receive_all
from tests.beds.patience import PATIENCE

OPENED, OK = frame(Kind.OPENED, b"\0\0\0\1"), frame(Kind.VERDICT, b"ok")


def opening(number: int = 1, milliseconds: int = 5000, attributes: bytes = b"") -> bytes:
    return frame(Kind.OPEN, encode_open(Open(number, milliseconds, {})) + attributes)


@asynccontextmanager
async def caller(port: Port, service: str = "web") -> AsyncIterator[Foreigner]:
    """A peer with a valid certificate that speaks mesh/2."""
    foreigner = await port.foreigner(port.bed.authority.leaf(service), alpn=[b"mesh/2/http", b"mesh/1/http"])
    with foreigner.sock:
        await foreigner.handshake()
        assert foreigner.tls.get_alpn_proto_negotiated() == b"mesh/2/http"
        yield foreigner


async def hears(foreigner: Foreigner, *expected: bytes) -> None:
    heard = b""
    while len(heard) < len(b"".join(expected)):
        heard += await foreigner.receive()
    assert heard == b"".join(expected)


async def is_cut(foreigner: Foreigner) -> None:
    """Until the other side ends the connection, whatever it still says."""
    with trio.fail_after(PATIENCE), contextlib.suppress(SSL.Error, OSError, EOFError):
        while await foreigner.receive():
            pass


async def test_a_peer_s_streams_follow_one_another() -> None:
    async with attacked_port() as port, caller(port) as foreigner:
        for number in (1, 2):
            await foreigner.send(opening(number))
            await hears(foreigner, frame(Kind.OPENED, bytes([0, 0, 0, number])), OK)
            await foreigner.send(frame(Kind.DATA, b"hello"))
            await hears(foreigner, frame(Kind.DATA, b"hello"))
            await foreigner.send(frame(Kind.END))
            await hears(foreigner, frame(Kind.END))
            line = await port.sidecar.log.connection(number)
            assert (line["reason"], line["reused"], line["bytes_to_app"]) == ("ok", number == 2, 5)


BEFORE: dict[str, bytes] = {
    "data instead of open": frame(Kind.DATA, STOLEN),
    "an end": frame(Kind.END),
    "a verdict of its own": OK,
    "a confirmation of its own": OPENED,
    "the number of no stream": opening(0),
    "a number too high": opening(2),
    "open with a frame behind it in the record": opening() + frame(Kind.DATA, STOLEN),
    "open cut short": frame(Kind.OPEN, b"\0\0\0\1"),
    "an attribute twice": opening(attributes=b"\0\5\0\0\0\5\0\0"),
    "plaintext of mesh/1": STOLEN,
}


@pytest.mark.parametrize("what", BEFORE)
async def test_what_is_no_first_stream(what: str) -> None:
    async with attacked_port() as port:
        async with caller(port) as foreigner:
            await foreigner.send(BEFORE[what])
            await is_cut(foreigner)
        line = await port.refused("truncated")
        assert line["peer_id"] == "spiffe://shop.internal/web"


BETWEEN: dict[str, bytes] = {
    "data after the end": frame(Kind.DATA, STOLEN),
    "the same number again": opening(1),
    "a number left out": opening(3),
    "a second end": frame(Kind.END),
}


@pytest.mark.parametrize("what", BETWEEN)
async def test_what_is_no_next_stream_ends_the_channel(what: str) -> None:
    async with attacked_port() as port:
        async with caller(port) as foreigner:
            await foreigner.send(opening())
            await hears(foreigner, OPENED, OK)
            await foreigner.send(frame(Kind.DATA, HONEST))
            await hears(foreigner, frame(Kind.DATA, HONEST))
            await foreigner.send(frame(Kind.END))
            await hears(foreigner, frame(Kind.END))
            await port.sidecar.log.connection(1)
            port.lines, port.served = 1, 1
            await foreigner.send(BETWEEN[what])
            await is_cut(foreigner)
        await port.honest()


async def test_data_before_the_verdict_of_a_refused_stream_is_nobody_s() -> None:
    """It comes where the next open is due. The one that was refused is not let in by it either."""
    async with attacked_port() as port:
        async with caller(port, "db") as foreigner:
            await foreigner.send(opening())
            await foreigner.send(frame(Kind.DATA, STOLEN))
            await foreigner.send(opening(2))
            await is_cut(foreigner)
        await port.refused("policy_denied")


async def test_a_critical_attribute_that_is_unknown_refuses_that_stream_and_leaves_the_channel_clean() -> None:
    async with attacked_port() as port, caller(port) as foreigner:
        await foreigner.send(opening(attributes=b"\x80\x07\0\0"))
        await hears(foreigner, OPENED, frame(Kind.VERDICT, b"handshake_failed"))
        line = await port.sidecar.log.connection(1)
        assert (line["reason"], line["decision"]) == ("handshake_failed", "deny")
        await foreigner.send(opening(2, attributes=b"\x00\x07\0\0" + b"\0\1\0\4here"))
        await hears(foreigner, frame(Kind.OPENED, b"\0\0\0\2"), OK)
        await foreigner.send(frame(Kind.END))
        line = await port.sidecar.log.connection(2)
        assert line["unverified"] == {"client_address": "'here'"}, "a claim, and nothing more"
        assert line["peer_id"] == "spiffe://shop.internal/web"


async def test_claims_change_no_decision() -> None:
    async with attacked_port() as port:
        async with caller(port, "db") as foreigner:
            await foreigner.send(opening(attributes=b"\0\1\0\3web"))
            await hears(foreigner, OPENED, frame(Kind.VERDICT, b"policy_denied"))
        line = await port.refused("policy_denied")
        assert line["peer_id"] == "spiffe://shop.internal/db"


async def test_a_stream_whose_caller_waits_no_longer_is_not_connected_for_long() -> None:
    """The callee takes the smaller of the caller's time and its own."""
    async with attacked_port() as port:
        port.app.listener.setblocking(False)
        async with caller(port) as foreigner:
            await foreigner.send(opening(milliseconds=0))
            heard = b""
            with contextlib.suppress(SSL.Error, OSError, EOFError):
                heard = await foreigner.receive()
            assert heard


async def test_a_peer_that_opens_streams_without_waiting_holds_nobody_up() -> None:
    """A thousand of them arrive in one piece; each is refused, and others have their turn after each."""
    async with attacked_port() as port:
        ended, most, before = port.sidecar.node.metrics.ended, 0, 0

        async def neighbour() -> None:
            nonlocal most, before
            while True:
                most, before = max(most, ended.total() - before), ended.total()
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery, caller(port, "db") as foreigner:
            nursery.start_soon(neighbour)
            await foreigner.send(opening())
            await port.sidecar.log.connection(1)
            for number in range(2, 1000):
                foreigner.tls.send(opening(number))
            await foreigner.flush()
            await port.sidecar.log.connection(999)
            nursery.cancel_scope.cancel()
        assert {line["reason"] for line in port.sidecar.log.connections} == {"policy_denied"}
        assert most <= 3, "between two turns of a neighbour lie two ticks at most"


# -- a callee that is not honest ---------------------------------------------------------------------------------------

ANSWERS: dict[str, bytes] = {
    "data before the verdict": frame(Kind.DATA, STOLEN),
    "an end before the verdict": frame(Kind.END),
    "an open of its own": opening(),
    "a verdict of mesh/1": b"\2ok",
    "the confirmation of another stream": frame(Kind.OPENED, b"\0\0\0\2"),
}


@pytest.mark.parametrize("what", ANSWERS)
async def test_what_is_no_answer(what: str) -> None:
    """Of a callee with the right certificate: the app hears none of it, and gives away nothing."""

    async with attacked_call() as call:

        async def answer(sock: socket.socket) -> None:
            there = Foreigner(sock, call.bed.authority.leaf("api"), server=True, alpn=[b"mesh/2/http"])
            with contextlib.suppress(SSL.Error, OSError, EOFError):
                await there.handshake()
                await there.receive()
                await there.send(ANSWERS[what])
                await there.receive()

        await call.attack(answer)
        await call.refused("truncated", alarm=False)


# -- on the wire, between two streams ----------------------------------------------------------------------------------


@asynccontextmanager
async def wire() -> AsyncIterator[tuple[Tap, RunningSidecar, RunningSidecar, Callable[[bytes], Awaitable[bytes]]]]:
    async with mesh_bed() as bed:
        app = await bed.app()
        api = await bed.sidecar("api", inbound=[inbound("http", app.address)])
        tap, place = await tapped(bed, api.address("http"))
        web = await bed.sidecar("web", outbound=[outbound("api", "http", place)])

        async def ask(said: bytes) -> bytes:
            with await connect(web.address("api:http", "outbound")) as client:
                await sockets.send_all(client, said)
                client.shutdown(socket.SHUT_WR)
                return await receive_all(client)

        yield tap, web, api, ask


def flip(record: bytes) -> list[bytes]:
    return [record[:-1] + bytes([record[-1] ^ 1])]


MEDDLERS: dict[str, Callable[[Tap, bytes], list[bytes]]] = {
    "flips a bit": lambda _, record: flip(record),
    "drops it and repeats the last stream's": lambda tap, _: [tap.heard["caller"][-3]],
    "repeats the whole last stream": lambda tap, record: [*tap.heard["caller"][-3:], record],
    "puts plaintext before it": lambda _, record: [b"\x17\x03\x03\x00\x04evil", record],
    "repeats it": lambda _, record: [record, record],
    "shortens it": lambda _, record: [record[:3] + (len(record) - 6).to_bytes(2, "big") + record[5:-1]],
}


@pytest.mark.parametrize("what", MEDDLERS)
async def test_a_record_between_two_streams_is_not_what_was_sent(what: str) -> None:
    """The call goes through on another channel, or fails; nothing but its own bytes reaches either app."""
    async with wire() as (tap, web, api, ask):
        assert await ask(b"the first") == b"the first"
        await api.log.connection(1)

        def meddle(number: int, record: bytes) -> list[bytes]:
            return MEDDLERS[what](tap, record) if number == 0 else [record]

        tap.arm("caller", meddle)
        with contextlib.suppress(OSError):
            assert await ask(b"the second") in (b"the second", b"")
        tap.disarm()
        assert await ask(b"the third") == b"the third"
        for line in api.log.connections:
            assert line["bytes_to_app"] in (0, len(b"the first"), len(b"the second"), len(b"the third"))
        assert not web.log.events("internal_error") + api.log.events("internal_error")


async def test_bytes_that_come_while_it_is_idle_end_it_before_the_next_stream() -> None:
    """From the callee's side of the wire: whatever is unread at the caller discards the channel."""
    async with wire() as (_, web, _, ask):
        assert await ask(b"the first") == b"the first"
        ((waiting, _),) = next(iter(web.server.channels._idle.values()))
        # What somebody between the two can do without a key: one byte, straight into the caller's socket.
        waiting.sock.shutdown(socket.SHUT_RD)
        assert await ask(b"the second") == b"the second"
        assert not (await web.log.connection(2))["reused"]
