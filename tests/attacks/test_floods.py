"""Too much of everything: half-open handshakes, huge messages, records without data. Honest callers beside it are served."""

from __future__ import annotations

import contextlib
import resource
import socket
from collections.abc import Iterator

import pytest
import trio
from OpenSSL import SSL

from sidecar.documents.address import Address
from sidecar.host import process
from sidecar.observe.folding import LINES
from sidecar.relay.duplex import MAX_SILENT_CIPHERTEXT
from sidecar.transport import sockets
from tests.attacks.records import (
    CERTIFICATE,
    CLIENT_HELLO,
    DATA,
    ENCRYPTED_EXTENSIONS,
    HANDSHAKE,
    TICKETS,
    KeyLog,
    Writer,
    message,
    plain_record,
)
from tests.attacks.stage import HONEST, STOLEN, assert_reset, attacked_call, attacked_port
from tests.beds.certificates import Credential
from tests.beds.mesh import Foreigner, connect
from tests.beds.patience import PATIENCE

MIB = 1024 * 1024
FRAGMENT = 16 * 1024


async def pour(sock: socket.socket, pieces: list[bytes]) -> None:
    """Sends until the other side has had enough."""
    with contextlib.suppress(OSError), trio.fail_after(PATIENCE):
        for piece in pieces:
            await sockets.send_all(sock, piece)
        while await sockets.receive(sock, 65536):
            pass


@pytest.fixture
def enough_descriptors() -> Iterator[None]:
    """Both ends of every connection are in this process, and many systems give it 1,024 unless asked for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip(f"this system gives a process {hard} descriptors, too few for a thousand connections")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("enough_descriptors")
async def test_a_thousand_half_open_handshakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "MAX_STRANGERS", 512)
    async with attacked_port() as port:
        first = await port.foreigner(None)
        with first.sock, contextlib.suppress(SSL.WantReadError):
            first.tls.do_handshake()
        half = first.tls.bio_read(65536)[:-1]
        async with contextlib.AsyncExitStack() as held:
            for number in range(999):
                sock = held.enter_context(await connect(port.address))
                await sockets.send_all(sock, half)
                if number % 100 == 50:
                    await honest_beside(port.bed.authority.leaf("web"), port.address)
        ended = await port.sidecar.drained()
        assert (ended["probe"], ended["ok"]) == (1, 10)  # the first sent no hello
        # Not all of them fit at once: some were cut to make room, unless they had gone by then.
        assert 0 < ended["overloaded"] <= 999 - 512
        assert ended["handshake_failed"] + ended["overloaded"] == 999
        assert len(port.sidecar.log.connections) == 2 * LINES + 1 + 10
        assert port.sidecar.node.metrics.folded == 999 - 2 * LINES
        assert port.app.connections == 10


async def honest_beside(credential: Credential, address: Address) -> None:
    caller = Foreigner(await connect(address), credential)
    with caller.sock:
        await caller.handshake()
        assert await caller.verdict() == "ok"
        await caller.send(HONEST)
        assert await caller.receive() == HONEST
        await caller.close()
        assert await caller.receive() == b""


@pytest.mark.parametrize("claimed", [200_000, 2**24 - 1])
async def test_a_huge_client_hello(claimed: int) -> None:
    first = message(CLIENT_HELLO, b"\x03\x03" + bytes(FRAGMENT - 6), size=claimed)
    async with attacked_port() as port:
        with await connect(port.address) as sock:
            await pour(sock, [plain_record(HANDSHAKE, first), *[plain_record(HANDSHAKE, bytes(FRAGMENT))] * 1024])
        await port.refused("handshake_failed")


async def test_endless_empty_records_instead_of_a_hello() -> None:
    async with attacked_port() as port:
        with await connect(port.address) as sock:
            await pour(sock, [plain_record(HANDSHAKE, b"") * 1000] * 1000)
        await port.refused("handshake_failed")


async def test_a_certificate_message_of_16_mib_at_a_port() -> None:
    log = KeyLog()
    async with attacked_port() as port:
        caller = await port.foreigner(port.bed.authority.leaf("web"), configure=log.configure)
        with caller.sock:
            with contextlib.suppress(SSL.WantReadError):
                caller.tls.do_handshake()
            await caller.flush()
            caller.tls.bio_write(await sockets.receive(caller.sock, 65536))
            while "CLIENT_HANDSHAKE_TRAFFIC_SECRET" not in log.secrets or caller.tls.client_random() == b"":
                with contextlib.suppress(SSL.WantReadError):
                    caller.tls.do_handshake()
            await pour(caller.sock, huge_certificate(Writer(log.secrets["CLIENT_HANDSHAKE_TRAFFIC_SECRET"])))
        await port.refused("handshake_failed")


async def test_a_certificate_message_of_16_mib_in_the_place_of_a_service() -> None:
    log = KeyLog()
    async with attacked_call() as call:

        async def answer(sock: socket.socket) -> None:
            peer = Foreigner(sock, call.bed.authority.leaf("api"), server=True, configure=log.configure)
            with contextlib.suppress(SSL.WantReadError):
                peer.tls.do_handshake()
            while "SERVER_HANDSHAKE_TRAFFIC_SECRET" not in log.secrets:
                peer.tls.bio_write(await sockets.receive(sock, 65536))
                with contextlib.suppress(SSL.WantReadError):
                    peer.tls.do_handshake()
            flight = peer.tls.bio_read(65536)
            size = 5 + int.from_bytes(flight[3:5], "big")
            writer = Writer(log.secrets["SERVER_HANDSHAKE_TRAFFIC_SECRET"])
            extensions = writer.record(HANDSHAKE, message(ENCRYPTED_EXTENSIONS, b"\0\0"))
            await pour(sock, [flight[:size], extensions, *huge_certificate(writer)])

        await call.attack(answer)
        await call.refused("handshake_failed", alarm=False)


def huge_certificate(writer: Writer) -> list[bytes]:
    size = 16 * MIB - 1
    first = message(CERTIFICATE, b"\0" + (size - 4).to_bytes(3, "big") + bytes(1000), size=size)
    return [writer.record(HANDSHAKE, first), *(writer.record(HANDSHAKE, bytes(FRAGMENT)) for _ in range(64))]


# -- after the handshake -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wants_reply", [False, True])
async def test_a_flood_of_key_updates_at_a_port(wants_reply: bool) -> None:
    log = KeyLog()
    async with attacked_port() as port:
        caller = await port.foreigner(port.bed.authority.leaf("web"), configure=log.configure)
        with caller.sock:
            await caller.handshake()
            assert await caller.verdict() == "ok"
            writer = Writer(log.secrets["CLIENT_TRAFFIC_SECRET_0"])
            # The twin: some are everybody's right, and data goes on behind them.
            await sockets.send_all(caller.sock, b"".join(writer.key_update() for _ in range(50)))
            await sockets.send_all(caller.sock, writer.record(DATA, HONEST))
            assert await caller.receive() == HONEST
            flood = b"".join(writer.key_update(wants_reply=wants_reply) for _ in range(10_000))
            assert len(flood) > 4 * MAX_SILENT_CIPHERTEXT
            await pour(caller.sock, [flood, writer.record(DATA, STOLEN)])
        line = await port.sidecar.log.connection()
        assert (line["reason"], line["bytes_to_app"]) == ("truncated", len(HONEST))
        assert bytes(port.app.received) == HONEST
        await honest_beside(port.bed.authority.leaf("web"), port.address)


async def test_a_flood_of_key_updates_with_a_byte_of_data_now_and_then() -> None:
    """An honest neighbour's round trips took 558 ms instead of 0.5 before the relay bounded what it does at once."""
    log = KeyLog()
    async with attacked_port() as port:
        caller = await port.foreigner(port.bed.authority.leaf("web"), configure=log.configure)
        with caller.sock:
            await caller.handshake()
            assert await caller.verdict() == "ok"
            writer = Writer(log.secrets["CLIENT_TRAFFIC_SECRET_0"])
            some = [b"".join(writer.key_update() for _ in range(500)) + writer.record(DATA, b"!") for _ in range(20)]
            await pour(caller.sock, some)
        line = await port.sidecar.log.connection()
        assert line["reason"] == "truncated"
        assert "TLS records without data" in line["message"]
        assert 1 <= line["bytes_to_app"] <= 4
        await honest_beside(port.bed.authority.leaf("web"), port.address)


async def test_the_twin_a_flood_of_one_byte_records_is_delivered() -> None:
    log = KeyLog()
    async with attacked_port() as port:
        caller = await port.foreigner(port.bed.authority.leaf("web"), configure=log.configure)
        with caller.sock:
            await caller.handshake()
            assert await caller.verdict() == "ok"
            writer = Writer(log.secrets["CLIENT_TRAFFIC_SECRET_0"])
            await sockets.send_all(caller.sock, b"".join(writer.record(DATA, b"!") for _ in range(20_000)))
            received = 0
            while received < 20_000:
                received += len(await caller.receive())


@pytest.mark.parametrize("empty", ["key updates", "records of no data"])
@pytest.mark.parametrize("frame", [b"", b"\x02ok"], ids=["before the verdict", "after it"])
async def test_a_flood_without_data_in_the_place_of_a_service(frame: bytes, empty: str) -> None:
    """The callee is genuine, and compromised: it must not keep its callers' sidecars busy."""
    log = KeyLog()
    async with attacked_call() as call:

        async def answer(sock: socket.socket) -> None:
            peer = Foreigner(sock, call.bed.authority.leaf("api"), server=True, configure=log.configure)
            await peer.handshake()
            writer = Writer(log.secrets["SERVER_TRAFFIC_SECRET_0"], sent=TICKETS)
            if frame:
                await sockets.send_all(sock, writer.record(DATA, frame))
            await pour(
                sock,
                [
                    b"".join(
                        writer.key_update() if empty == "key updates" else writer.record(DATA, b"") for _ in range(1000)
                    )
                    for _ in range(10)
                ],
            )

        call.impostor.answer = answer
        with await connect(call.entry) as client:
            await assert_reset(client)
        line = await call.sidecar.log.connection()
        assert line["reason"] == ("peer_refused" if empty == "key updates" and not frame else "truncated")
        call.lines += 1
        await call.honest()
