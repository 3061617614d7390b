"""A relay between the two sidecars that meddles with records: no altered byte is delivered, no cut passes for an end."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import trio

from sidecar.documents.address import Address
from sidecar.host.clock import utc_now
from sidecar.observe.recurrence import FEW
from sidecar.transport import sockets
from tests.attacks.tap import Cut, Meddle, Side, Tap, tapped
from tests.beds.mesh import App, RunningSidecar, connect, inbound, mesh_bed, outbound
from tests.beds.patience import PATIENCE

CHANGE_CIPHER_SPEC = 0x14
FIRST, SECOND, THIRD = b"first: pay 100", b"second: pay 200", b"third: goodbye"


@dataclass
class Wire:
    """web calls api through a tap; api's app keeps what it gets, and whether it ended cleanly."""

    tap: Tap
    web: RunningSidecar
    api: RunningSidecar
    app: App
    entry: Address
    ends: list[str]
    replies: list[bytes]
    ended: trio.Event

    async def app_ended(self) -> None:
        """Until the app has seen the end of a connection."""
        with trio.fail_after(PATIENCE):
            await self.ended.wait()


@asynccontextmanager
async def wire() -> AsyncIterator[Wire]:
    ends: list[str] = []
    replies: list[bytes] = []
    ended = trio.Event()

    async def keep(sock: socket.socket, app: App) -> None:
        try:
            while data := await sockets.receive(sock, 65536):
                app.received += data
                await sockets.send_all(sock, replies.pop(0) if replies else b"got it")
        except ConnectionResetError:
            ends.append("reset")
            raise
        else:
            ends.append("clean")
        finally:
            ended.set()

    async with mesh_bed() as bed:
        app = await bed.app(keep)
        api = await bed.sidecar("api", inbound=[inbound("http", app.address)])
        tap, place = await tapped(bed, api.address("http"))
        web = await bed.sidecar("web", outbound=[outbound("api", "http", place)])
        yield Wire(tap, web, api, app, web.address("api:http", "outbound"), ends, replies, ended)


async def ask(client: socket.socket, question: bytes) -> bytes:
    with trio.fail_after(PATIENCE):
        await sockets.send_all(client, question)
        return await sockets.receive(client, 65536)


def flipped(number: int, record: bytes) -> list[bytes]:
    return [record[:-20] + bytes([record[-20] ^ 1]) + record[-19:]] if number == 0 else [record]


def header_flipped(number: int, record: bytes) -> list[bytes]:
    return [b"\x15" + record[1:]] if number == 0 else [record]


def dropped(number: int, record: bytes) -> list[bytes]:
    return [] if number == 0 else [record]


def repeated(number: int, record: bytes) -> list[bytes]:
    return [record, record]


def shortened(number: int, record: bytes) -> list[bytes]:
    return [record[:3] + (len(record) - 6).to_bytes(2, "big") + record[5:-1]]


def injected(number: int, record: bytes) -> list[bytes]:
    """Plaintext made to look like a record of data."""
    return [b"\x17\x03\x03\x00\x04evil", record]


class Reordered:
    """Holds one record back until the next has gone before it."""

    def __init__(self) -> None:
        self._held: bytes | None = None

    def __call__(self, number: int, record: bytes) -> list[bytes]:
        if self._held is None:
            self._held = record
            return []
        return [record, self._held]


MEDDLERS: dict[str, Callable[[], Meddle]] = {
    "flips a bit": lambda: flipped,
    "changes the record's type": lambda: header_flipped,
    "drops a record": lambda: dropped,
    "repeats a record": lambda: repeated,
    "swaps two records": Reordered,
    "shortens a record": lambda: shortened,
    "puts plaintext between": lambda: injected,
}
BY_MEDDLER = pytest.mark.parametrize("what", MEDDLERS)


@BY_MEDDLER
async def test_what_the_caller_says_is_meddled_with(what: str) -> None:
    async with wire() as on:
        with await connect(on.entry) as client:
            assert await ask(client, FIRST) == b"got it"
            on.tap.arm("caller", MEDDLERS[what]())
            await sockets.send_all(client, SECOND)
            await on.tap.until_heard("caller", 1)
            with contextlib.suppress(OSError):
                await sockets.send_all(client, THIRD)
            assert b"got it".startswith(await until_reset(client))
        await on.app_ended()
        assert on.ends == ["reset"]
        # A record that is repeated was genuine once: delivered, and not twice.
        assert bytes(on.app.received) == FIRST + (SECOND if what == "repeats a record" else b"")
        for sidecar in (on.api, on.web):
            line = await sidecar.log.connection()
            assert (line["reason"], line["decision"]) == ("truncated", "allow")
        await twin(on)


@BY_MEDDLER
async def test_what_the_callee_says_is_meddled_with(what: str) -> None:
    async with wire() as on:
        with await connect(on.entry) as client:
            assert await ask(client, FIRST) == b"got it"
            on.tap.arm("callee", MEDDLERS[what]())
            await sockets.send_all(client, SECOND)
            await on.tap.until_heard("callee", 1)
            with contextlib.suppress(OSError):
                await sockets.send_all(client, THIRD)
            assert await until_reset(client) == (b"got it" if what == "repeats a record" else b"")
        for sidecar in (on.api, on.web):
            line = await sidecar.log.connection()
            assert (line["reason"], line["decision"]) == ("truncated", "allow")
        await twin(on)


def suspicions(sidecar: RunningSidecar) -> list[dict[str, Any]]:
    return sidecar.log.events("tampering_suspected")


@pytest.mark.parametrize("what", ["flips a bit", "puts plaintext between", "drops a record"])
@pytest.mark.parametrize("side", ["caller", "callee"])
async def test_whoever_meddles_again_and_again_is_an_alarm_at_both_ends(side: Side, what: str) -> None:
    async with wire() as on:
        for number in range(1, FEW + 2):
            on.tap.disarm()
            with await connect(on.entry) as client:
                assert await ask(client, FIRST) == b"got it"
                on.tap.arm(side, MEDDLERS[what]())
                await sockets.send_all(client, SECOND)
                await on.tap.until_heard(side, 1)
                with contextlib.suppress(OSError):
                    await sockets.send_all(client, THIRD)
                await until_reset(client)
            for sidecar in (on.api, on.web):
                await sidecar.log.connection(number)
                assert len(suspicions(sidecar)) == (number >= FEW)
        (met,) = suspicions(on.web)
        assert (met["level"], met["upstream"], met["reason"]) == ("error", "api:http", "truncated")
        assert met["peer_address"] == "127.0.0.1"
        assert suspicions(on.api)[0]["upstream"] == "api:http"
        assert on.web.node.alarm_log.alarms.current()[-1]["count"] == 2
        assert on.web.log.alarms == []


async def test_cuts_and_peers_that_break_off_are_no_alarm() -> None:
    """A crash looks like this, however often it happens."""
    async with wire() as on:
        for number in range(1, FEW + 3):
            on.tap.disarm()
            with await connect(on.entry) as client:
                assert await ask(client, FIRST) == b"got it"
                on.tap.arm("callee", cut(by_reset=number % 2 == 0))
                await sockets.send_all(client, SECOND)
                await until_reset(client)
            for sidecar in (on.api, on.web):
                await sidecar.log.connection(number)
        assert not suspicions(on.web)
        assert not suspicions(on.api)


async def test_no_stranger_raises_an_alarm_by_breaking_his_own_handshake() -> None:
    async with wire() as on:
        for number in range(1, FEW + 3):
            hello = on.web.node.current.context.client(["mesh/2/http"], on.api.node.current.id, utc_now)
            hello.step(b"")
            with await connect(on.api.address("http")) as stranger:
                await sockets.send_all(stranger, hello.take_all())
                assert await sockets.receive(stranger, 65536)
                await sockets.send_all(stranger, b"\x17\x03\x03\x00\x20" + bytes(32))
                with contextlib.suppress(OSError):
                    while await sockets.receive(stranger, 65536):
                        pass
            hello.free()
            line = await on.api.log.connection(number)
            assert line["reason"] == "handshake_failed"
        assert not suspicions(on.api)


@pytest.mark.parametrize("record", [0, 2, 4])
async def test_whoever_meddles_with_handshakes_again_and_again_is_an_alarm_at_the_caller(record: int) -> None:
    async with wire() as on:
        on.tap.arm("callee", lambda number, one: flipped(0, one) if number % 6 == record else [one])
        for number in range(1, FEW + 1):
            on.tap.arm("callee", on.tap.meddle["callee"])
            with await connect(on.entry) as client:
                with contextlib.suppress(OSError):
                    await sockets.send_all(client, FIRST)
                if await first_answer(client):
                    pytest.skip("no record of the handshake was touched")
            await on.web.log.connection(number)
        assert len(suspicions(on.web)) == 1


async def test_of_a_long_stream_only_a_genuine_beginning_arrives() -> None:
    stream = bytes(range(256)) * 8192
    async with wire() as on:
        on.replies.append(stream)
        on.tap.arm("callee", lambda number, record: flipped(0, record) if number == 40 else [record])
        with await connect(on.entry) as client:
            await sockets.send_all(client, FIRST)
            heard = await until_reset(client)
            assert len(heard) < len(stream)
            assert stream.startswith(heard)
        assert (await on.web.log.connection())["reason"] == "truncated"
        await twin(on)


@pytest.mark.parametrize("record", range(6))
@pytest.mark.parametrize("side", ["caller", "callee"])
async def test_a_bit_of_the_handshake_is_flipped(side: Side, record: int) -> None:
    """From the hello to the verdict frame: no session comes of it, or one that never delivers an altered byte."""
    async with wire() as on:
        touched = []

        def meddle(number: int, one: bytes) -> list[bytes]:
            if number == record and one[0] != CHANGE_CIPHER_SPEC:
                touched.append(number)
                return flipped(0, one)
            return [one]

        on.tap.arm(side, meddle)
        with await connect(on.entry) as client:
            with contextlib.suppress(OSError):
                await sockets.send_all(client, FIRST)
            if answer := await first_answer(client):
                assert answer == b"got it"
                assert not touched
        if touched:
            assert on.app.received in (b"", FIRST)
            line = await on.web.log.connection()
            assert line["reason"] in ("handshake_failed", "peer_refused", "truncated", "tls_version")
            assert line["bytes_to_app"] == 0
            on.app.received.clear()
            await twin(on)


CUTS = [pytest.param(False, id="FIN"), pytest.param(True, id="RST")]


@pytest.mark.parametrize("by_reset", CUTS)
async def test_a_cut_between_two_records_is_no_end(by_reset: bool) -> None:
    async with wire() as on:
        with await connect(on.entry) as client:
            assert await ask(client, FIRST) == b"got it"
            on.tap.arm("caller", cut(by_reset=by_reset))
            await sockets.send_all(client, SECOND)
            assert await until_reset(client) == b""
        await on.app_ended()
        assert (on.ends, bytes(on.app.received)) == (["reset"], FIRST)
        for sidecar in (on.api, on.web):
            assert (await sidecar.log.connection())["reason"] == "truncated"
        await twin(on)


@pytest.mark.parametrize("by_reset", CUTS)
async def test_a_cut_inside_of_a_record_is_no_end(by_reset: bool) -> None:
    async with wire() as on:
        on.replies += [b"first answer", b"an answer that is cut"]
        with await connect(on.entry) as client:
            assert await ask(client, FIRST) == b"first answer"
            on.tap.arm("callee", cut(by_reset=by_reset, after=12))
            await sockets.send_all(client, SECOND)
            assert await until_reset(client) == b""
        await on.app_ended()
        assert on.ends == ["reset"]
        assert (await on.web.log.connection())["reason"] == "truncated"
        await twin(on)


@pytest.mark.parametrize("by_reset", CUTS)
async def test_close_notify_itself_is_taken_away(by_reset: bool) -> None:
    """The caller has said all, and its end is cut out: the app must not take what it has for the whole."""
    async with wire() as on:
        with await connect(on.entry) as client:
            assert await ask(client, FIRST) == b"got it"
            on.tap.arm("caller", cut(by_reset=by_reset))
            client.shutdown(socket.SHUT_WR)
            assert await until_reset(client) == b""
        await on.app_ended()
        assert on.ends == ["reset"]
        assert (await on.api.log.connection())["reason"] == "truncated"
        await twin(on)


@pytest.mark.parametrize("by_reset", CUTS)
@pytest.mark.parametrize("record", range(5))
@pytest.mark.parametrize("side", ["caller", "callee"])
async def test_a_cut_in_the_handshake_reaches_no_app(side: Side, record: int, by_reset: bool) -> None:
    async with wire() as on:
        on.tap.arm(side, cut(by_reset=by_reset, at=record))
        with await connect(on.entry) as client:
            with contextlib.suppress(OSError):
                await sockets.send_all(client, FIRST)
            answer = await first_answer(client)
        if answer is not None and len(on.tap.heard[side]) <= record:
            assert answer == b"got it"  # the cut would have come later
            return
        assert not answer
        line = await on.web.log.connection()
        assert line["reason"] in ("handshake_failed", "peer_refused", "truncated")
        assert line["bytes_to_app"] == 0
        on.app.received.clear()
        await twin(on)


def cut(*, by_reset: bool, at: int = 0, after: int = 0) -> Meddle:
    """Cuts at a record, behind its first ``after`` bytes."""

    def meddle(number: int, record: bytes) -> list[bytes]:
        if number < at:
            return [record]
        raise Cut(by_reset=by_reset, last=record[:after])

    return meddle


async def until_reset(client: socket.socket) -> bytes:
    """What arrives before the reset; a clean end fails."""
    heard = bytearray()
    with trio.fail_after(PATIENCE), contextlib.suppress(ConnectionResetError):
        while data := await sockets.receive(client, 65536):
            heard += data
        pytest.fail("the stream ended cleanly")
    return bytes(heard)


async def first_answer(client: socket.socket) -> bytes | None:
    """The first bytes; None for a reset. A clean end fails."""
    with trio.fail_after(PATIENCE):
        try:
            data = await sockets.receive(client, 65536)
        except ConnectionResetError:
            return None
    assert data, "the stream ended cleanly"
    return data


async def twin(on: Wire) -> None:
    """The same wire, left alone."""
    on.tap.disarm()
    with await connect(on.entry) as client:
        assert await ask(client, FIRST) == b"got it"
        client.shutdown(socket.SHUT_WR)
        assert await sockets.receive(client, 1) == b""
    lines = await on.web.log.connection(2)
    assert lines["reason"] == "ok"
    assert len(on.web.log.connections) == 2
    assert bytes(on.app.received).endswith(FIRST)
