"""Nothing older than TLS 1.3, and of TLS 1.3 nothing optional: no renegotiation, no late authentication, no early data."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from OpenSSL import SSL

from sidecar.transport import sockets
from tests.attacks.records import (
    ALERT,
    CERTIFICATE_REQUEST,
    CHANGE_CIPHER_SPEC,
    CLIENT_HELLO,
    DATA,
    HANDSHAKE,
    NEW_SESSION_TICKET,
    TICKETS,
    KeyLog,
    Writer,
    message,
    old_client_hello,
    old_server_hello,
    plain_record,
)
from tests.attacks.stage import HONEST, STOLEN, attacked_call, attacked_port
from tests.attacks.tap import tapped
from tests.beds.mesh import Foreigner, connect, inbound, mesh_bed, outbound

CCS = plain_record(CHANGE_CIPHER_SPEC, b"\x01")


def only_tls12(context: SSL.Context) -> None:
    context.set_max_proto_version(SSL.TLS1_2_VERSION)


OLD = {"TLS 1.2": b"\x03\x03", "TLS 1.1": b"\x03\x02", "TLS 1.0": b"\x03\x01", "SSL 3": b"\x03\x00"}


async def test_a_client_of_tls_12() -> None:
    async with attacked_port() as port:
        alert = await port.attack(port.bed.authority.leaf("web"), configure=only_tls12)
        assert "protocol version" in (alert or "")
        await port.refused("tls_version")


async def test_a_server_of_tls_12() -> None:
    async with attacked_call() as call:
        await call.attack(call.impostor.shows(call.bed.authority.leaf("api"), configure=only_tls12))
        await call.refused("tls_version", alarm=True)


@pytest.mark.parametrize("version", OLD.values(), ids=OLD)
async def test_an_old_client_hello(version: bytes) -> None:
    async with attacked_port() as port:
        with await connect(port.address) as sock:
            await sockets.send_all(sock, old_client_hello(version))
            answer = await sockets.receive(sock, 100)
        assert answer[:1] == bytes([ALERT])
        assert answer[5:] == b"\x02\x46"  # fatal, protocol_version
        await port.refused("tls_version")


@pytest.mark.parametrize("version", OLD.values(), ids=OLD)
async def test_an_old_server_hello(version: bytes) -> None:
    async with attacked_call() as call:
        await call.attack(call.impostor.says(old_server_hello(version)))
        await call.refused("tls_version", alarm=True)


async def test_a_fallback_that_says_so() -> None:
    """TLS_FALLBACK_SCSV (RFC 7507): a client that was pushed down is refused like any other of that version."""
    async with attacked_port() as port:
        with await connect(port.address) as sock:
            await sockets.send_all(sock, old_client_hello(b"\x03\x03", b"\xc0\x2f", b"\x56\x00"))
            assert (await sockets.receive(sock, 100))[:1] == bytes([ALERT])
        await port.refused("tls_version")


async def test_an_sslv2_hello() -> None:
    hello = b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10\x01\x00\x80" + bytes(34)
    async with attacked_port() as port:
        for one in (hello, hello[:1]):
            with await connect(port.address) as sock:
                await sockets.send_all(sock, one)
                with contextlib.suppress(OSError):
                    await sockets.receive(sock, 100)
            await port.refused("tls_version")


@pytest.mark.parametrize("count", [1, 3])
async def test_change_cipher_spec_within_the_handshake_is_ignored(count: int) -> None:
    """RFC 8446 5: one is expected of a client that thinks of old middleboxes; it means nothing."""
    async with mesh_bed() as bed:
        app = await bed.app()
        api = await bed.sidecar("api", inbound=[inbound("http", app.address)])
        tap, place = await tapped(bed, api.address("http"))
        web = await bed.sidecar("web", outbound=[outbound("api", "http", place)])
        tap.arm("caller", lambda number, record: [record, *[CCS] * count] if number == 0 else [record])
        with await connect(web.address("api:http", "outbound")) as client:
            await sockets.send_all(client, HONEST)
            assert await sockets.receive(client, 100) == HONEST


async def test_change_cipher_spec_before_the_hello() -> None:
    async with attacked_port() as port:
        with await connect(port.address) as sock:
            await sockets.send_all(sock, CCS + old_client_hello(b"\x03\x03"))
            with contextlib.suppress(OSError):
                await sockets.receive(sock, 100)
        await port.refused("handshake_failed")


async def test_a_flood_of_change_cipher_spec() -> None:
    async with attacked_port() as port:
        caller = await port.foreigner(port.bed.authority.leaf("web"))
        with caller.sock:
            with contextlib.suppress(SSL.WantReadError):
                caller.tls.do_handshake()
            await caller.flush()
            with contextlib.suppress(OSError):
                await sockets.send_all(caller.sock, CCS * 50_000)
                while await sockets.receive(caller.sock, 65536):
                    pass
        await port.refused("handshake_failed")


class Session:
    """An honest handshake with the sidecar, after which the attacker writes records of his own."""

    def __init__(self, peer: Foreigner, log: KeyLog, side: str) -> None:
        self.peer = peer
        self.writer = Writer(log.secrets[f"{side}_TRAFFIC_SECRET_0"])

    async def sends(self, *records: bytes) -> None:
        await sockets.send_all(self.peer.sock, b"".join(records))


async def caller_of(port: Any) -> Session:
    log = KeyLog()
    caller = await port.foreigner(port.bed.authority.leaf("web"), configure=log.configure)
    await caller.handshake()
    return Session(caller, log, "CLIENT")


LATE: dict[str, Callable[[Writer], bytes]] = {
    "renegotiation": lambda writer: writer.record(HANDSHAKE, old_client_hello(b"\x03\x03")[5:]),
    "a second hello in the clear": lambda _: old_client_hello(b"\x03\x03"),
    "change_cipher_spec": lambda _: CCS,
    "a session ticket from a client": lambda writer: writer.record(
        HANDSHAKE, message(NEW_SESSION_TICKET, bytes(8) + b"\x01\0\0\x01\0\0\0")
    ),
    "a certificate request from a client": lambda writer: writer.record(
        HANDSHAKE, message(CERTIFICATE_REQUEST, b"\0\0\0")
    ),
    "an unknown handshake message": lambda writer: writer.record(HANDSHAKE, message(99, b"")),
    "a record of no type": lambda writer: writer.record(0, b""),
    "an unknown record type": lambda writer: writer.record(99, b"data"),
    "plaintext in a record": lambda _: plain_record(DATA, STOLEN),
    "a record that is too long": lambda writer: plain_record(DATA, bytes(16 * 1024 + 257)),
    "plaintext": lambda _: STOLEN,
}


@pytest.mark.parametrize("what", LATE)
async def test_what_may_not_follow_the_handshake_at_a_port(what: str) -> None:
    """The caller is genuine and let in, and then sends something forbidden: the connection ends, the app sees no byte."""
    async with attacked_port() as port:
        session = await caller_of(port)
        with session.peer.sock:
            assert await session.peer.verdict() == "ok"
            await session.sends(session.writer.record(DATA, HONEST))
            assert await session.peer.receive() == HONEST
            await session.sends(LATE[what](session.writer), session.writer.record(DATA, STOLEN))
            with contextlib.suppress(SSL.Error, OSError, EOFError):
                while await session.peer.receive():
                    pass
        line = await port.sidecar.log.connection()
        assert (line["reason"], line["bytes_to_app"]) == ("truncated", len(HONEST))
        assert bytes(port.app.received) == HONEST


async def test_late_authentication_is_not_offered_to_servers() -> None:
    """A server may ask later only a client that said post_handshake_auth (RFC 8446 4.2.6)."""
    async with attacked_call() as call:

        async def answer(sock: Any) -> None:
            peer = Foreigner(sock, call.bed.authority.leaf("api"), server=True)
            await peer.handshake()
            asked.append(vars(SSL)["_lib"].SSL_verify_client_post_handshake(peer.tls._ssl))
            vars(SSL)["_lib"].ERR_clear_error()

        asked: list[int] = []
        await call.attack(answer)
        await call.refused("peer_refused", alarm=False)
        assert asked == [0]


@pytest.mark.parametrize("kind", [CERTIFICATE_REQUEST, CLIENT_HELLO, 0, 99])
async def test_what_may_not_follow_the_handshake_at_a_caller(kind: int) -> None:
    """Between the handshake and the verdict, and after it."""
    log = KeyLog()
    async with attacked_call() as call:
        for frame in (b"", b"\x02ok"):

            async def answer(sock: Any, frame: bytes = frame) -> None:
                peer = Foreigner(sock, call.bed.authority.leaf("api"), server=True, configure=log.configure)
                await peer.handshake()
                writer = Writer(log.secrets["SERVER_TRAFFIC_SECRET_0"], sent=TICKETS)
                if frame:
                    await sockets.send_all(sock, writer.record(DATA, frame))
                await sockets.send_all(sock, writer.record(HANDSHAKE, message(kind, b"\0\0\0")))
                await sockets.send_all(sock, writer.record(DATA, b"evil"))
                while await sockets.receive(sock, 100):
                    pass

            await call.attack(answer)
            if frame:
                call.lines += 1
                line = await call.sidecar.log.connection(call.lines)
                assert (line["reason"], line["bytes_to_app"]) == ("truncated", 0)
                await call.honest()
            else:
                await call.refused("truncated", alarm=False)
