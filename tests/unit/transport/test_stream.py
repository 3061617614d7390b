"""TLS over a socket as a plain stream: what was sent arrives, and every end but close_notify is a broken stream."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from sidecar.relay.duplex import MAX_DATALESS_RECORDS, MAX_SILENT_CIPHERTEXT
from sidecar.transport import sockets, stream
from sidecar.transport.stream import BrokenStreamError, CutStreamError, SecureStream, SilentStreamError, read_data
from sidecar.transport.tls import TlsChannel
from tests.attacks.records import DATA, KeyLog, Writer
from tests.beds.clock import moment
from tests.beds.mesh import secure_pair
from tests.beds.patience import PATIENCE


async def read_all(stream: SecureStream) -> bytes:
    data = bytearray()
    with trio.fail_after(PATIENCE):
        while more := await stream.receive_some():
            data += more
    return bytes(data)


async def test_both_directions() -> None:
    async with secure_pair() as (ca, caller):
        await caller.send_all(b"question")
        assert await ca.receive_some() == b"question"
        await ca.send_all(b"answer")
        assert await caller.receive_some() == b"answer"


async def test_more_than_any_buffer_holds() -> None:
    data = bytes(range(256)) * 40_000
    async with secure_pair() as (ca, caller):
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:

                async def say() -> None:
                    await caller.send_all(data)
                    await caller.close()

                nursery.start_soon(say)
                assert await read_all(ca) == data
                await ca.close()


async def test_what_is_not_read_is_not_encrypted_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of a megabyte for each of a thousand connections that do not read would be a gigabyte of ciphertext."""
    sizes: list[int] = []
    write = TlsChannel.write_bytes

    def note(channel: TlsChannel, data: bytes) -> None:
        sizes.append(len(data))
        write(channel, data)

    monkeypatch.setattr(TlsChannel, "write_bytes", note)
    async with secure_pair() as (ca, _caller), trio.open_nursery() as nursery:
        nursery.start_soon(ca.send_all, bytes(64 << 20))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert max(sizes) <= 64 * 1024
    assert 0 < sum(sizes) < 64 << 20


async def test_close_is_a_clean_end_after_all_that_was_said() -> None:
    async with secure_pair() as (ca, caller):
        await caller.send_all(b"last words")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller.close)
            assert await read_all(ca) == b"last words"
            await ca.close()
        assert caller._sock.fileno() == ca._sock.fileno() == -1


async def test_a_last_answer_arrives_though_the_question_was_not_read(autojump_clock: MockClock) -> None:
    """Closing at once would be a reset, which destroys it."""
    async with secure_pair() as (ca, caller):
        await caller.send_all(b"x" * 100_000)
        await ca.send_all(b"413")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ca.close)
            assert await read_all(caller) == b"413"
            await caller.close()


async def test_a_peer_that_never_closes_is_waited_for_a_second(mock_clock: MockClock) -> None:
    async with secure_pair() as (ca, _):
        mock_clock.autojump_threshold = moment(0.01)
        begin = trio.current_time()
        await ca.close()
        assert trio.current_time() - begin == pytest.approx(1, abs=0.1)


async def test_an_end_without_close_notify_is_no_end() -> None:
    async with secure_pair() as (ca, caller):
        await caller.send_all(b"half of")
        caller._sock.shutdown(socket.SHUT_WR)
        assert await ca.receive_some() == b"half of"
        with pytest.raises(BrokenStreamError, match="it ended without a TLS close_notify"):
            await ca.receive_some()


async def test_a_reset_is_a_broken_stream() -> None:
    async with secure_pair() as (ca, caller):
        sockets.hard_close(caller._sock)
        with pytest.raises(BrokenStreamError, match="the connection was cut"):
            await ca.receive_some()


async def test_whoever_is_gone_cannot_be_sent_to() -> None:
    async with secure_pair() as (ca, caller):
        sockets.hard_close(caller._sock)
        with pytest.raises(BrokenStreamError, match="the connection was cut"):
            await ca.send_all(b"x" * 10_000_000)
        await ca.close()  # and closing says nothing more
        await ca.close()


async def test_a_record_that_was_bent_on_its_way_is_a_broken_stream() -> None:
    async with secure_pair() as (ca, caller):
        caller.channel.write_bytes(b"pay 10 to bob")
        record = bytearray(caller.channel.take_all())
        record[-1] ^= 1
        await sockets.send_all(caller._sock, bytes(record))
        with pytest.raises(BrokenStreamError, match="the connection was cut: a TLS record was refused"):
            await ca.receive_some()


async def test_plaintext_in_it_is_a_broken_stream() -> None:
    async with secure_pair() as (ca, caller):
        await sockets.send_all(caller._sock, b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(BrokenStreamError, match="the connection was cut"):
            await ca.receive_some()


async def test_records_without_data_are_cut_and_a_few_of_them_are_not() -> None:
    log = KeyLog()
    async with secure_pair(log.configure) as (ca, caller):
        writer = Writer(log.secrets["CLIENT_TRAFFIC_SECRET_0"])
        few = b"".join(writer.key_update() for _ in range(50))
        await sockets.send_all(caller._sock, few + writer.record(DATA, b"question"))
        assert await ca.receive_some() == b"question"
        flood = b"".join(writer.key_update() for _ in range(5000))
        assert len(flood) > 1.5 * MAX_SILENT_CIPHERTEXT
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sockets.send_all, caller._sock, flood)
            with pytest.raises(BrokenStreamError, match="TLS records came without any data"):
                await ca.receive_some()
            nursery.cancel_scope.cancel()


async def test_as_many_bytes_without_data_as_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    log = KeyLog()
    async with secure_pair(log.configure) as (ca, caller):
        writer = Writer(log.secrets["CLIENT_TRAFFIC_SECRET_0"])
        for allowed in (True, False):
            sent = writer.key_update() + writer.record(DATA, b"question")
            monkeypatch.setattr(stream, "MAX_SILENT_CIPHERTEXT", len(sent) - (not allowed))
            await sockets.send_all(caller._sock, sent)
            if allowed:
                assert await ca.receive_some() == b"question"
            else:
                with pytest.raises(BrokenStreamError, match="without any data"):
                    await ca.receive_some()


@pytest.mark.parametrize(("records", "fault"), [(MAX_DATALESS_RECORDS, CutStreamError), (1001, SilentStreamError)])
async def test_as_many_records_without_data_as_are_allowed(records: int, fault: type[Exception]) -> None:
    class Silent:
        dataless, unread = records, False

        def read_some(self, _limit: int) -> bytes:
            return b""

    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.close()
        with pytest.raises(fault):
            await read_data(ours, Silent(), 100)  # type: ignore[arg-type]
