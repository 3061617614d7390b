"""The handshake over a socket, its alerts and the verdict: whatever a peer does wrong comes out as a refusal."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from sidecar.host.clock import utc_now
from sidecar.identity.judge import VerifyParams
from sidecar.identity.reasons import Reason, Refused
from sidecar.identity.spiffe import SpiffeId
from sidecar.relay.strand import run
from sidecar.transport import handshake, sockets, stream, tls
from sidecar.transport.gate import Gate
from tests.beds.certificates import Authority, Credential

MESH = Authority()
API = SpiffeId("shop.internal", ("api",))


def context(credential: Credential) -> tls.Context:
    assert isinstance(credential.key, tls.PrivateKey)
    return tls.Context(tls.KeyPair(credential.chain, credential.key, MESH.roots), VerifyParams("shop.internal"))


def callee(credential: Credential | None = None) -> tls.TlsChannel:
    return context(credential or MESH.leaf("api")).server(["mesh/1/http"], utc_now)


def caller() -> tls.TlsChannel:
    return context(MESH.leaf("web")).client(["mesh/1/http"], API, utc_now)


@contextmanager
def wire() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)
        right.setblocking(False)
        yield left, right


@asynccontextmanager
async def gate() -> AsyncIterator[Gate]:
    async with trio.open_nursery() as nursery:
        it = Gate()
        nursery.start_soon(it.run)
        yield it
        nursery.cancel_scope.cancel()


async def both(
    left: socket.socket, here: tls.TlsChannel, right: socket.socket, there: tls.TlsChannel
) -> list[Refused | None]:
    """Runs the handshake of a callee and a caller to its end; how each ended."""
    ends: dict[tls.TlsChannel, Refused | None] = {}

    async def one(sock: socket.socket, channel: tls.TlsChannel, at: Gate) -> None:
        try:
            await run(handshake.shake_hands(sock, channel, at))
        except Refused as refusal:
            ends[channel] = refusal
        else:
            ends[channel] = None

    async with gate() as at, trio.open_nursery() as nursery:
        nursery.start_soon(one, left, here, at)
        nursery.start_soon(one, right, there, at)
    return [ends[here], ends[there]]


async def test_two_of_ours() -> None:
    here, there = callee(), caller()
    with wire() as (left, right):
        assert await both(left, here, right, there) == [None, None]
    assert here.svid is not None
    assert there.svid is not None


async def test_two_of_ours_without_a_gate() -> None:
    """A client of the CA makes one handshake at a time: there is nobody to hold up."""
    here, there = callee(), caller()
    with wire() as (left, right):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, handshake.shake_hands(left, here))
            nursery.start_soon(run, handshake.shake_hands(right, there))
    assert here.svid is not None
    assert there.svid is not None


async def test_without_a_gate_a_refusal_is_the_same() -> None:
    with wire() as (left, right):
        right.send(b"GET / HTTP/1.1\r\n")
        with pytest.raises(Refused) as refused:
            await run(handshake.shake_hands(left, callee()))
    assert refused.value.reason is Reason.PLAINTEXT_REFUSED


async def test_a_refusal_is_told_to_the_peer() -> None:
    here, there = callee(MESH.leaf("db")), caller()
    with wire() as (left, right):
        told, refused = await both(left, here, right, there)
    assert refused is not None
    assert refused.reason is Reason.UNEXPECTED_PEER
    assert told is not None
    assert (told.reason, told.peer_reason) == (Reason.PEER_REFUSED, "bad_certificate")


async def test_a_peer_that_leaves() -> None:
    with wire() as (left, right):
        async with gate() as at:
            right.close()
            with pytest.raises(Refused) as refused:
                await run(handshake.shake_hands(left, callee(), at))
    assert refused.value.reason is Reason.PROBE


@pytest.mark.parametrize("said", [b"\x16", b"\x15\x03\x03\x00\x02\x02", b"\x16\x03\x01\x02\x00" + bytes(100)])
async def test_a_peer_that_leaves_after_a_byte_was_no_probe(said: bytes) -> None:
    with wire() as (left, right):
        async with gate() as at:
            right.send(said)
            right.close()
            with pytest.raises(Refused) as refused:
                await run(handshake.shake_hands(left, callee(), at))
    assert refused.value.reason is Reason.HANDSHAKE_FAILED


async def test_a_callee_that_leaves_our_call_was_no_probe() -> None:
    """We called it, and it has our hello."""
    with wire() as (left, right):
        right.shutdown(socket.SHUT_WR)
        with pytest.raises(Refused) as refused:
            await run(handshake.shake_hands(left, caller()))
    assert refused.value.reason is Reason.HANDSHAKE_FAILED


@pytest.mark.parametrize(("said", "reason"), [(b"", Reason.PROBE), (b"\x16", Reason.HANDSHAKE_FAILED)])
async def test_a_connection_that_breaks(said: bytes, reason: Reason) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        there = socket.create_connection(listener.getsockname())
        here, _ = listener.accept()
    with here, there:
        here.setblocking(False)
        there.send(said)
        sockets.hard_close(there)
        async with gate() as at:
            with pytest.raises(Refused) as refused:
                await run(handshake.shake_hands(here, callee(), at))
    assert refused.value.reason is reason
    assert isinstance(refused.value.__cause__, OSError)


async def test_a_refusal_stands_when_the_peer_cannot_be_told() -> None:
    class Deaf(socket.socket):
        def send(self, data: object, flags: int = 0) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    with wire() as (left, right), Deaf(fileno=left.detach()) as deaf:
        deaf.setblocking(False)
        right.send(b"GET / HTTP/1.1\r\n")
        async with gate() as at:
            with pytest.raises(Refused) as refused:
                await run(handshake.shake_hands(deaf, callee(), at))
    assert refused.value.reason is Reason.PLAINTEXT_REFUSED


async def test_a_silent_peer_is_the_callers_deadline_to_end(autojump_clock: MockClock) -> None:
    with wire() as (left, _right):
        async with gate() as at:
            with pytest.raises(trio.TooSlowError), trio.fail_after(5):
                await run(handshake.shake_hands(left, callee(), at))


async def test_its_own_deadline_ends_a_silent_peer(autojump_clock: MockClock) -> None:
    with wire() as (left, _right):
        with pytest.raises(trio.TooSlowError):
            await run(handshake.shake_hands(left, callee(), until=trio.current_time() + 5))
        assert trio.current_time() == pytest.approx(5)


async def test_its_own_deadline_ends_a_peer_that_always_has_more(
    monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock
) -> None:
    monkeypatch.setattr(tls, "_READ_BYTES", 10)
    with wire() as (left, right):
        right.send(b"\x16\x03\x01\x10\x00" + bytes(200))
        with pytest.raises(trio.TooSlowError):
            await run(handshake.shake_hands(left, callee(), until=trio.current_time()))
        assert len(left.recv(1000)) == 205 - 20, "it has read no more than that"


async def test_who_waits_at_the_gate_for_too_long_is_late() -> None:
    class Closed(Gate):
        def passes(self, address: str | None = None) -> bool:
            return False

        def wait(self, address: str | None, until: float, done: Callable[[bool], object]) -> Callable[[], object]:
            asked.append((address, until))
            trio.lowlevel.current_trio_token().run_sync_soon(done, False)
            return lambda: None

    asked: list[tuple[str | None, float]] = []
    with wire() as (left, right):
        right.send(b"\x16")
        with pytest.raises(trio.TooSlowError):
            await run(handshake.shake_hands(left, callee(), Closed(), "10.0.0.1", until=1e9))
    assert asked == [("10.0.0.1", 1e9)]


# -- the verdict -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[socket.socket, tls.TlsChannel, socket.socket, tls.TlsChannel]]:
    """The callee's end of a wire and the caller's, the handshake done, and nothing under way."""
    here, there = callee(), caller()
    with wire() as (left, right):
        assert await both(left, here, right, there) == [None, None]
        there.feed_bytes(right.recv(65536))  # tickets, which nobody will use
        assert there.read_some(1) == b""
        yield left, here, right, there


async def test_told_and_heard() -> None:
    async with connected() as (left, here, right, there):
        await handshake.send_verdict(left, here, Reason.OK, 5)
        await handshake.receive_verdict(right, there)
        here.write_bytes(b"data")
        there.feed_bytes(here.take_all())
        assert there.read_some(10) == b"data"


@pytest.mark.parametrize("reason", [Reason.POLICY_DENIED, Reason.CONNECT_FAILED, Reason.OVERLOADED])
async def test_a_no_is_heard_and_ends_the_callees_direction(reason: Reason) -> None:
    async with connected() as (left, here, right, there):
        await handshake.send_verdict(left, here, reason, 5)
        with pytest.raises(Refused) as refused:
            await handshake.receive_verdict(right, there)
        assert (refused.value.reason, refused.value.peer_reason) == (Reason.PEER_REFUSED, reason.value)
        assert there.read_some(10) is None  # close_notify


async def test_without_alpn_nothing_is_told_nor_awaited() -> None:
    async with connected() as (left, here, right, there):
        for channel in (here, there):
            channel._protocols = (b"something else",)  # as if none had been agreed on
        await handshake.send_verdict(left, here, Reason.POLICY_DENIED, 5)
        await handshake.receive_verdict(right, there)
        with pytest.raises(BlockingIOError):
            right.recv(1)


async def test_a_verdict_a_byte_at_a_time() -> None:
    async with connected() as (left, here, right, there):
        here.write_bytes(b"\x02ok")
        frame = here.take_all()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handshake.receive_verdict, right, there)
            for at in range(len(frame)):
                await wait_all_tasks_blocked()
                left.send(frame[at : at + 1])


@pytest.mark.parametrize("how", ["FIN", "close_notify", "garbage", "too much", "a flipped bit"])
async def test_no_verdict_comes(how: str) -> None:
    """Whoever is refused, is refused by the peer; whoever hears nonsense has somebody in between."""
    async with connected() as (left, here, right, there):
        if how == "close_notify":
            here.close()
            left.send(here.take_all())
        elif how == "garbage":
            left.send(b"\x17\x03\x03\x00\x20" + bytes(32))
        elif how == "too much":
            for _ in range(5):
                left.send(b"\x17\x03\x03\x40\x00" + bytes(16 * 1024))
        elif how == "a flipped bit":
            here.write_bytes(b"\x02ok")
            record = here.take_all()
            left.send(record[:-1] + bytes([record[-1] ^ 1]))
        left.shutdown(socket.SHUT_WR)
        with pytest.raises(Refused) as refused:
            await handshake.receive_verdict(right, there)
    altered = how in ("garbage", "too much", "a flipped bit")
    assert refused.value.reason is (Reason.TRUNCATED if altered else Reason.PEER_REFUSED)


@pytest.mark.parametrize("spare", [0, -1])
async def test_as_many_silent_bytes_before_the_verdict_as_are_allowed(
    spare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected() as (left, here, right, there):
        here.write_bytes(b"\x02ok")
        frame = here.take_all()
        monkeypatch.setattr(stream, "MAX_SILENT_CIPHERTEXT", len(frame) + spare)
        left.send(frame)
        if not spare:
            await handshake.receive_verdict(right, there)
        else:
            with pytest.raises(Refused, match="no verdict"):
                await handshake.receive_verdict(right, there)


@pytest.mark.parametrize("foreign", [False, True], ids=["that ends well", "that is refused"])
async def test_the_time_of_each_step_is_counted(monkeypatch: pytest.MonkeyPatch, foreign: bool) -> None:
    counted: list[str | None] = []
    monkeypatch.setattr(
        Gate, "count", lambda _gate, address, seconds: counted.append(address if seconds > 0 else "free")
    )
    there = context(Authority().leaf("web")).client(["mesh/1/http"], API, utc_now) if foreign else caller()
    with wire() as (left, right):
        async with gate() as at, trio.open_nursery() as nursery:

            async def call() -> None:
                with contextlib.suppress(Refused):
                    await run(handshake.shake_hands(right, there))

            nursery.start_soon(call)
            try:
                await run(handshake.shake_hands(left, callee(), at, "192.0.2.1"))
            except Refused:
                assert foreign
            nursery.cancel_scope.cancel()
    assert counted == ["192.0.2.1"] * 2
