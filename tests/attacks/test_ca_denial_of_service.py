"""Strangers who want the CA to be busy: half a handshake, half a request, nothing at all, hundreds of times; with honest
renewals beside them."""

from __future__ import annotations

import gc
import resource
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from OpenSSL import SSL
from trio.testing import MockClock

from certs.service import listener
from certs.service.listener import ANONYMOUS_SECONDS, HANDSHAKE_SECONDS
from sidecar.transport import sockets
from sidecar.transport.gate import Gate
from sidecar.transport.http1 import IDLE_SECONDS, REQUEST_SECONDS
from sidecar.transport.lobby import Guest, Lobby
from sidecar.transport.strangers import Stranger
from sidecar.transport.tls import KeyPair, TlsChannel
from tests.attacks.records import KeyLog, Writer
from tests.beds.asking import Desk, ca_desk, drop, until
from tests.beds.ca_processes import CALLS_API, CaSite, member_process
from tests.beds.mesh import TIMEOUT, Foreigner, connect
from tests.beds.patience import PATIENCE

HALF_OPEN = 500
IDLE = 500
BLINK = 0.05
"""Seconds of real time for what needs the kernel, while the virtual clock stands."""


@pytest.fixture(autouse=True)
def _many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4 * IDLE:
        pytest.skip(f"needs {4 * IDLE} descriptors, and the system allows {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def hello() -> bytes:
    """A valid ClientHello: the CA has to compute for it."""
    client = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
    client.set_connect_state()
    client.set_alpn_protos([b"http/1.1"])
    with pytest.raises(SSL.WantReadError):
        client.do_handshake()
    return client.bio_read(65536)


async def renews(desk: Desk, keys: KeyPair) -> float:
    """An honest renewal over a new connection; returns how many seconds it took."""
    before = trio.current_time()
    assert (await desk.renew(keys)).status == 200
    return trio.current_time() - before


@pytest.mark.parametrize("beginning", ["nothing", "half a hello", "a hello"])
async def test_half_open_handshakes_hold_no_renewal_up(
    beginning: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for deadline in ("HANDSHAKE_SECONDS", "ANONYMOUS_SECONDS"):
        monkeypatch.setattr(listener, deadline, 1000.0)  # so that they stay, however slow this machine
    whole = hello()
    sent = {"nothing": b"", "half a hello": whole[: len(whole) // 2], "a hello": whole}[beginning]
    async with ca_desk(tmp_path) as desk:
        keys = [desk.keys("web") for _ in range(5)]
        with ExitStack() as stack:
            for _ in range(HALF_OPEN):
                stranger = stack.enter_context(await connect(desk.address))
                if sent:
                    await sockets.send_all(stranger, sent)
            slowest = max([await renews(desk, one) for one in keys])
        assert slowest < TIMEOUT
        print(f"{HALF_OPEN} half-open ({beginning}): slowest renewal {slowest * 1000:.0f} ms")
        await desk.honest()


async def test_hundreds_of_idle_connections_hold_no_renewal_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "ANONYMOUS_SECONDS", 1000.0)  # so that they stay, however slow this machine
    async with ca_desk(tmp_path) as desk:
        keys = [desk.keys("web") for _ in range(5)]
        async with trio.open_nursery() as nursery:
            streams = []

            async def opens(number: int) -> None:
                for _ in range(number):
                    streams.append(await desk.stream())

            async with trio.open_nursery() as opening:
                for _ in range(20):
                    opening.start_soon(opens, IDLE // 20)
            slowest = max([await renews(desk, one) for one in keys])
            assert slowest < TIMEOUT
            print(f"{len(streams)} idle: slowest renewal {slowest * 1000:.0f} ms")
            assert desk.strangers == IDLE
            for stream in streams:
                drop(stream)
            nursery.cancel_scope.cancel()
        await desk.honest()


async def test_when_all_places_are_taken_the_oldest_stranger_makes_room_and_no_member_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "MAX_CONNECTIONS", 20)
    async with ca_desk(tmp_path) as desk:
        keys = desk.keys("web")
        agent = await desk.stream(keys)
        await until(lambda: not desk.strangers)
        strangers = [await desk.stream() for _ in range(60)]
        await renews(desk, keys)
        await desk.honest()
        await agent.send_all(b"GET /healthz HTTP/1.1\r\nHost: ca\r\n\r\n")
        assert (await agent.receive_some()).startswith(b"HTTP/1.1 200 ")
        assert desk.strangers <= 21
        metrics = (await desk.ask("GET", "/metrics")).body
        assert b'mesh_ca_handshakes_refused_total{reason="overloaded"}' in metrics
        for stream in [*strangers, agent]:
            drop(stream)


async def test_with_members_only_a_stranger_is_turned_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "MAX_CONNECTIONS", 5)
    async with ca_desk(tmp_path) as desk:
        keys = desk.keys("web")
        members = [await desk.stream(keys) for _ in range(6)]
        await until(lambda: not desk.strangers)
        with await connect(desk.address) as stranger, suppress(ConnectionResetError):
            await sockets.send_all(stranger, hello())
            with trio.fail_after(PATIENCE):
                assert await sockets.receive(stranger, 1) == b""
        for one in members:
            drop(one)
        await trio.testing.wait_all_tasks_blocked(BLINK)
        await desk.honest()


# -- slowly ------------------------------------------------------------------------------------------------------------


async def drip(mock_clock: MockClock, slow: Slow, data: bytes, seconds: float) -> float:
    """A byte at a time, one each tenth of the time that is allowed; returns after how much of it the CA had enough."""
    begun = trio.current_time()
    closed = trio.Event()

    async def read() -> None:
        await slow.listen()
        closed.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        for at in range(len(data)):
            with suppress(Exception):
                await slow.send(data[at : at + 1])
            await trio.testing.wait_all_tasks_blocked(BLINK)
            if closed.is_set():
                break
            mock_clock.jump(seconds / 10)
        nursery.cancel_scope.cancel()
    return trio.current_time() - begun


class Slow:
    """A connection over which bytes go one by one: through TLS, or before it."""

    def __init__(self, sock: socket.socket, foreigner: Foreigner | None) -> None:
        self.sock, self.foreigner = sock, foreigner
        self.heard = b""

    async def send(self, data: bytes) -> None:
        if self.foreigner is None:
            await sockets.send_all(self.sock, data)
        else:
            self.foreigner.tls.sendall(data)
            await self.foreigner.flush()

    async def listen(self) -> None:
        with suppress(OSError):
            while data := await sockets.receive(self.sock, 65536):
                self.heard += data


BODY = b"POST /v1/enrol HTTP/1.1\r\nHost: ca\r\nContent-Length: 60000\r\n\r\n" + b" " * 50


@pytest.mark.parametrize(
    ("sent", "seconds"),
    [
        (None, HANDSHAKE_SECONDS),
        (b"GET /healthz HTTP/1.1\r\nHost: ca\r\nX: " + b"a" * 30, REQUEST_SECONDS),
        (b" " * 30, REQUEST_SECONDS),
        (b"\r\n" * 15, REQUEST_SECONDS),
    ],
    ids=["handshake", "head", "spaces", "newlines"],
)
async def test_a_byte_at_a_time_gets_the_time_of_one_request_and_no_more(
    sent: bytes | None, seconds: float, tmp_path: Path, mock_clock: MockClock
) -> None:
    mock_clock.rate = 1
    async with ca_desk(tmp_path) as desk:
        with await connect(desk.address) as sock:
            foreigner = None
            if sent is not None:
                foreigner = Foreigner(sock, None, alpn=[b"http/1.1"])
                await foreigner.handshake()
            took = await drip(mock_clock, Slow(sock, foreigner), sent or hello()[:40], seconds)
            assert took < 1.5 * seconds + TIMEOUT / 2
        await desk.honest()


async def test_a_body_a_byte_at_a_time(tmp_path: Path, mock_clock: MockClock) -> None:
    mock_clock.rate = 1
    async with ca_desk(tmp_path) as desk:
        with await connect(desk.address) as sock:
            foreigner = Foreigner(sock, None, alpn=[b"http/1.1"])
            await foreigner.handshake()
            slow = Slow(sock, foreigner)
            await slow.send(BODY)
            took = await drip(mock_clock, slow, b" " * 40, REQUEST_SECONDS)
            assert took < 1.5 * REQUEST_SECONDS + TIMEOUT / 2
        await desk.honest()


@pytest.mark.parametrize("is_member", [True, False])
async def test_a_connection_that_asks_nothing_is_closed_in_time_and_one_that_asks_is_kept(
    is_member: bool, tmp_path: Path, mock_clock: MockClock
) -> None:
    """A member's after a minute, a stranger's after ten seconds."""
    mock_clock.rate = 1
    seconds = IDLE_SECONDS if is_member else ANONYMOUS_SECONDS
    async with ca_desk(tmp_path) as desk:
        keys = desk.keys("web") if is_member else None
        silent, busy = await desk.stream(keys), await desk.stream(keys)
        for _ in range(4):
            await busy.send_all(b"GET /healthz HTTP/1.1\r\nHost: ca\r\n\r\n")
            assert (await busy.receive_some()).startswith(b"HTTP/1.1 200 ")
            mock_clock.jump(seconds / 3)
            await trio.testing.wait_all_tasks_blocked(BLINK)
        with trio.fail_after(PATIENCE):
            assert await silent.receive_some() == b""
        for one in (silent, busy):
            drop(one)
        await desk.honest()


async def test_a_caller_that_never_reads_is_cut(tmp_path: Path, mock_clock: MockClock) -> None:
    """It asks and asks; its answers fill the kernel's buffers, and then nothing is done for it any more."""
    mock_clock.rate = 1
    async with ca_desk(tmp_path) as desk:
        stream = await desk.stream()
        stream._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        question = b"GET /metrics HTTP/1.1\r\nHost: ca\r\n\r\n" * 50
        with trio.move_on_after(10 * REQUEST_SECONDS), suppress(Exception):
            while True:
                with trio.move_on_after(1) as full:
                    await stream.send_all(question)
                if full.cancelled_caught:
                    mock_clock.jump(REQUEST_SECONDS + 1)
        await trio.testing.wait_all_tasks_blocked(BLINK)
        assert not desk.strangers
        drop(stream)
        await desk.honest()


async def test_a_flood_of_key_updates_is_cut(tmp_path: Path) -> None:
    async with ca_desk(tmp_path) as desk:
        log = KeyLog()
        with await connect(desk.address) as sock:
            caller = Foreigner(sock, None, alpn=[b"http/1.1"], configure=log.configure)
            await caller.handshake()
            writer = Writer(log.secrets["CLIENT_TRAFFIC_SECRET_0"])
            with suppress(OSError):
                for _ in range(10):
                    await sockets.send_all(sock, b"".join(writer.key_update() for _ in range(500)))
            with suppress(OSError, EOFError, SSL.Error), trio.fail_after(PATIENCE):
                while await caller.receive():
                    pass
        assert not desk.log.events("internal_error")
        await desk.honest()


# -- no descriptor left ------------------------------------------------------------------------------------------------


async def test_a_ca_with_few_descriptors_keeps_some_for_its_members(tmp_path: Path) -> None:
    limited = ("sh", "-c", 'ulimit -n 60; exec "$@"', "sh")
    site = CaSite.make(tmp_path, CALLS_API)
    async with site.serves(before=limited) as ca:
        with ExitStack() as stack:
            for _ in range(70):
                stack.enter_context(await connect(site.address))
            await enrols(site)
        assert ca.errors == ""
        assert not ca.events("internal_error")
        assert not ca.events("warning"), "it does not come to its limit"


async def enrols(site: CaSite) -> None:
    """An honest sidecar, a real one, gets its certificate."""
    file = site.agent("api", 'inbound: [{port: http, listen: "127.0.0.1:0", app: "127.0.0.1:9"}]\n')
    async with member_process(file):
        pass


async def test_who_comes_from_where_a_peer_proved_its_identity_is_looked_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = list[bool]()
    enter = Lobby.enter

    def noting(lobby: Lobby, *arguments: Any, goes_first: bool = False, **more: Any) -> Guest:
        order.append(goes_first)
        return enter(lobby, *arguments, goes_first=goes_first, **more)

    monkeypatch.setattr(Lobby, "enter", noting)
    async with ca_desk(tmp_path) as desk:
        for _ in range(2):
            await renews(desk, desk.keys("web"))
    assert order == [False, True]


async def test_anonymous_connections_that_end_at_once_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two turns are for the handshake; a third is for the end."""
    turns = Counter[str | None]()
    turn = Gate.turn

    async def noting(gate: Gate, address: str | None = None) -> None:
        turns[address] += 1
        await turn(gate, address)

    monkeypatch.setattr(Gate, "turn", noting)
    async with ca_desk(tmp_path) as desk:
        stream = await desk.stream()
        await trio.testing.wait_all_tasks_blocked(0.01)
        before = turns["127.0.0.1"]
        drop(stream)
        await until(lambda: not desk.strangers)
        assert turns["127.0.0.1"] - before >= 1


async def test_a_connection_that_ended_leaves_nothing_for_the_collector(tmp_path: Path) -> None:
    """Thousands that do would stop the loop while it works them off."""
    async with ca_desk(tmp_path) as desk:
        await desk.honest()
        await until(lambda: not desk.strangers)
        gc.collect()
        gc.disable()
        try:
            for sent in (b"", hello()[:50], hello(), b"GET / HTTP/1.1\r\n\r\n"):
                with await connect(desk.address) as sock:
                    if sent:
                        await sockets.send_all(sock, sent)
                    await until(lambda: desk.strangers == 1)
                await until(lambda: not desk.strangers)
            await trio.testing.wait_all_tasks_blocked(0.01)
            left = [type(one).__name__ for one in gc.get_objects() if isinstance(one, Guest | Stranger | TlsChannel)]
        finally:
            gc.enable()
        assert not left
