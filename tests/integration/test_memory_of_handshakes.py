"""Whatever became of a handshake, its memory is given back at once, without the help of Python's collector, which is off."""

from __future__ import annotations

import contextlib
import gc
import socket
from collections.abc import Awaitable, Callable, Iterator

import pytest
import trio
from OpenSSL import SSL
from trio.testing import MockClock, wait_all_tasks_blocked

from sidecar.config.sidecar_yaml import Timeouts
from sidecar.documents.address import Address
from sidecar.identity.reasons import Refused
from sidecar.observe.record import ConnectionRecord
from sidecar.proxy.live import Live
from sidecar.proxy.peer import SPREAD
from sidecar.transport import sockets
from sidecar.transport.lobby import Guest
from sidecar.transport.strangers import SAFE_SECONDS, Stranger
from sidecar.transport.tls import TlsChannel
from tests.attacks.stage import Call, Port, attacked_call, attacked_port
from tests.beds.certificates import Authority
from tests.beds.mesh import Foreigner, connect, inbound, mesh_bed

TIMES = 5
SHORT = Timeouts(handshake=5, connect=5, drain=1)


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def left() -> dict[str, int]:
    """How many objects of TLS, of refusals, whose tracebacks hold frames, and of connections there are."""
    kinds = (TlsChannel, SSL.Connection, Refused, Guest, Live, Stranger, ConnectionRecord)
    found = [type(one).__name__ for one in gc.get_objects() if isinstance(one, kinds)]
    return {kind.__name__: found.count(kind.__name__) for kind in kinds}


async def hello(sock: socket.socket) -> None:
    caller = Foreigner(sock, None)
    with contextlib.suppress(SSL.WantReadError):
        caller.tls.do_handshake()
    await caller.flush()


async def silent(port: Port) -> None:
    (await connect(port.address)).close()


async def garbage(port: Port) -> None:
    with await connect(port.address) as sock:
        await sockets.send_all(sock, b"GET / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(OSError):
            await sockets.receive(sock, 10)


async def leaves_after_its_hello(port: Port) -> None:
    with await connect(port.address) as sock:
        await hello(sock)
        await sockets.receive(sock, 10)


async def no_certificate(port: Port) -> None:
    await port.attack(None)


async def unknown(port: Port) -> None:
    await port.attack(Authority().leaf("web"))


async def denied(port: Port) -> None:
    await port.attack(port.bed.authority.leaf("reporting"))


async def let_in(port: Port) -> None:
    await port.honest()
    port.lines -= 1


@pytest.mark.parametrize("ending", [silent, garbage, leaves_after_its_hello, no_certificate, unknown, denied, let_in])
async def test_at_a_port(ending: Callable[[Port], Awaitable[None]]) -> None:
    async with attacked_port() as port:
        for number in range(TIMES):
            await ending(port)
            port.lines = number + 1
            await port.sidecar.log.connection(port.lines)
        await until_closed(port)
        assert left() == dict.fromkeys(left(), 0)


async def test_at_a_port_whose_app_is_not_there() -> None:
    async with mesh_bed() as bed:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            app = await bed.app()
            api = await bed.sidecar("api", inbound=[inbound("http", Address(*nobody.getsockname()))])
            port = Port(bed, api, app)
            for number in range(TIMES):
                caller = Foreigner(await connect(port.address), bed.authority.leaf("web"))
                with caller.sock:
                    await caller.handshake()
                    assert await caller.verdict() == "connect_failed"
                del caller
                await api.log.connection(number + 1)
            await until_closed(port)
            assert left() == dict.fromkeys(left(), 0)


async def until_closed(port: Port) -> None:
    while len(port.sidecar.node.registry) or len(port.sidecar.node.room.strangers):
        await trio.lowlevel.checkpoint()
    await wait_all_tasks_blocked(0.01)


@pytest.mark.parametrize("greets", [False, True])
async def test_at_a_port_when_the_time_is_over(greets: bool, mock_clock: MockClock) -> None:
    async with attacked_port(timeouts=SHORT) as port:
        with await connect(port.address) as sock:
            if greets:
                await hello(sock)
            while not len(port.sidecar.node.room.strangers):
                await trio.lowlevel.checkpoint()
            await wait_all_tasks_blocked(0.01)
            mock_clock.jump(SHORT.handshake * (1 + SPREAD))
            line = await port.sidecar.log.connection()
            assert line["reason"] == "handshake_timeout"
            await wait_all_tasks_blocked(0.01)
            mock_clock.jump(2)
            await wait_all_tasks_blocked(0.01)
        assert left() == dict.fromkeys(left(), 0)


@pytest.mark.parametrize("greets", [False, True])
async def test_at_a_port_when_it_makes_room(greets: bool, mock_clock: MockClock) -> None:
    async with attacked_port() as port:
        port.sidecar.node.room.strangers.limit = 1
        with await connect(port.address) as sock:
            if greets:
                await hello(sock)
            await wait_all_tasks_blocked(0.01)
            mock_clock.jump(SAFE_SECONDS)
            with await connect(port.address):
                assert (await port.sidecar.log.connection())["reason"] == "overloaded"
            await port.sidecar.log.connection(2)
            mock_clock.jump(2)
            await wait_all_tasks_blocked(0.01)
        assert left() == dict.fromkeys(left(), 0)


async def hangs_up(call: Call) -> None:
    await call.attack(call.impostor.hang_up)


async def says_garbage(call: Call) -> None:
    await call.attack(call.impostor.says(b"HTTP/1.1 200 OK\r\n\r\n"))


async def is_another(call: Call) -> None:
    await call.attack(call.impostor.shows(call.bed.authority.leaf("db")))


async def refuses(call: Call) -> None:
    await call.attack(call.impostor.shows(call.bed.authority.leaf("api"), frame=b"\x0dpolicy_denied"))


async def is_honest(call: Call) -> None:
    await call.honest()
    call.lines -= 1


@pytest.mark.parametrize("ending", [hangs_up, says_garbage, is_another, refuses, is_honest])
async def test_at_a_callee(ending: Callable[[Call], Awaitable[None]]) -> None:
    async with attacked_call() as call:
        for number in range(TIMES):
            await ending(call)
            call.lines = number + 1
            await call.sidecar.log.connection(call.lines)
        while len(call.sidecar.node.registry):
            await trio.lowlevel.checkpoint()
        await wait_all_tasks_blocked(0.01)
        assert left() == dict.fromkeys(left(), 0)


async def test_at_a_callee_that_says_nothing(mock_clock: MockClock) -> None:
    async with attacked_call(timeouts=SHORT) as call:
        waiting = trio.Event()

        async def answer(_: socket.socket) -> None:
            waiting.set()
            await trio.sleep_forever()

        call.impostor.answer = answer
        with await connect(call.entry) as client:
            await waiting.wait()
            await wait_all_tasks_blocked(0.01)
            mock_clock.jump(SHORT.handshake)
            line = await call.sidecar.log.connection()
            assert line["reason"] == "handshake_timeout"
            client.close()
            await wait_all_tasks_blocked(0.01)
        assert left()["TlsChannel"] == left()["Refused"] == 0
