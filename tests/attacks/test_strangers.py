"""Those who do not speak TLS at all, or do not finish: on a port, and in a service's place."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from OpenSSL import SSL
from trio.testing import MockClock, wait_all_tasks_blocked

from sidecar.config.sidecar_yaml import Limits, Timeouts
from sidecar.documents.address import Address
from sidecar.observe.folding import Folding
from sidecar.proxy.peer import SPREAD
from sidecar.transport import sockets
from sidecar.transport.lobby import Guest, Lobby
from sidecar.transport.strangers import SAFE_SECONDS
from tests.attacks.records import ALERT, HANDSHAKE, plain_record
from tests.attacks.stage import HONEST, STOLEN, WEB, Port, assert_reset, attacked_call, attacked_port
from tests.beds.mesh import Foreigner, RunningSidecar, connect, inbound, mesh_bed, outbound, receive_all

SECRET = "hunter2"
PLAIN = {
    "HTTP": b"POST /login HTTP/1.1\r\nHost: api\r\n\r\npassword=hunter2",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "PROXY": b"PROXY TCP4 10.0.0.1 10.0.0.2 1000 2000\r\n",
    "PROXY v2": b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12),
    "Redis": b"*2\r\n$4\r\nAUTH\r\n$7\r\nhunter2\r\n",
    "PostgreSQL": b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
    "SMTP": b"220 mail ESMTP\r\n",
    "a password": b"hunter2",
    "NULs": bytes(100),
    "control characters": b"\x1b[2J\x1b[1;1H\r\n",
    "application data": plain_record(0x17, bytes(100)),
    "one byte": b"\x00",
}
NEARLY_TLS = {
    "nothing": b"",
    "half a record header": b"\x16\x03",
    "half a hello": plain_record(HANDSHAKE, b"\x01\x00\x02\x00" + bytes(20)),
    "a record of garbage": plain_record(HANDSHAKE, bytes(range(256))),
    "a header that lies": b"\x16\x03\x01\xff\xff" + bytes(100),
    "an empty record": plain_record(HANDSHAKE, b""),
    "a handshake of no TLS version": b"\x16\x09\x09\x00\x04garb",
}


@pytest.mark.parametrize("said", PLAIN.values(), ids=PLAIN)
async def test_plaintext_at_a_port(said: bytes) -> None:
    async with attacked_port() as port:
        with await connect(port.address) as sock:
            await sockets.send_all(sock, said)
            with contextlib.suppress(OSError):
                assert await sockets.receive(sock, 1000) == b""
        line = await port.refused("plaintext_refused")
        # What was said may be a password: it is not quoted, and it drives no terminal.
        assert SECRET not in str(line)
        assert line["message"].isprintable()


@pytest.mark.parametrize("said", PLAIN.values(), ids=PLAIN)
async def test_plaintext_in_the_place_of_a_service(said: bytes) -> None:
    async with attacked_call() as call:
        await call.attack(call.impostor.says(said))
        line = await call.refused("plaintext_refused", alarm=True)
        assert SECRET not in str(line) + str(call.sidecar.log.alarms)


@pytest.mark.parametrize("said", NEARLY_TLS.values(), ids=NEARLY_TLS)
async def test_what_only_begins_like_tls(said: bytes) -> None:
    async with attacked_port() as port:
        with await connect(port.address) as sock:
            await sockets.send_all(sock, said)
            sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(OSError):
                while await sockets.receive(sock, 1000):
                    pass
        line = await port.sidecar.log.connection()
        assert line["reason"] in (("handshake_failed", "tls_version") if said else ("probe",))
        await port.refused(line["reason"])


async def test_an_alert_instead_of_a_hello() -> None:
    async with attacked_port() as port:
        with await connect(port.address) as sock:
            await sockets.send_all(sock, plain_record(ALERT, b"\x02\x28"))
            with contextlib.suppress(OSError):
                await sockets.receive(sock, 1000)
        await port.refused("handshake_failed")


async def test_a_service_that_hangs_up() -> None:
    async with attacked_call() as call:
        await call.attack(call.impostor.hang_up)
        await call.refused("handshake_failed", alarm=False)


@pytest.mark.parametrize("by_reset", [False, True], ids=["FIN", "RST"])
async def test_plaintext_right_before_a_close_is_never_taken_for_authenticated(by_reset: bool) -> None:
    """CPython's CVE-2023-40217: bytes that arrived before the handshake, read as if they had come through it."""
    async with attacked_port() as port:
        for said in (STOLEN, b"\x16\x03\x01" + STOLEN):
            with await connect(port.address) as sock:
                await sockets.send_all(sock, said)
                if by_reset:
                    sockets.hard_close(sock)
            port.lines += 1
            line = await port.sidecar.log.connection(port.lines)
            assert (line["decision"], line["bytes_to_app"]) == ("deny", 0)
            await port.honest()


async def test_plaintext_behind_a_genuine_hello() -> None:
    async with attacked_port() as port:
        caller = await port.foreigner(port.bed.authority.leaf("web"))
        with caller.sock:
            with contextlib.suppress(SSL.WantReadError):
                caller.tls.do_handshake()
            await sockets.send_all(caller.sock, caller.tls.bio_read(65536) + STOLEN)
            with contextlib.suppress(OSError):
                while await sockets.receive(caller.sock, 65536):
                    pass
        line = await port.sidecar.log.connection()
        assert line["reason"] in ("handshake_failed", "tls_version")
        await port.refused(line["reason"])


# -- those who take their time -----------------------------------------------------------------------------------------

SHORT = Timeouts(handshake=5, connect=5, drain=1)


async def test_silence_at_a_port(mock_clock: MockClock) -> None:
    async with attacked_port(timeouts=SHORT) as port:
        with await connect(port.address) as sock:
            await until_accepted(port.sidecar)
            mock_clock.jump(4.9)
            await wait_all_tasks_blocked(0.01)
            assert not port.sidecar.log.connections
            mock_clock.jump(0.2 + SHORT.handshake * SPREAD)
            await port.refused("handshake_timeout")
            assert await sockets.receive(sock, 10) == b""


async def test_a_hello_of_a_byte_a_second(mock_clock: MockClock) -> None:
    """The deadline is the whole handshake's: every byte does not buy another five seconds."""
    async with attacked_port(timeouts=SHORT) as port:
        caller = await port.foreigner(port.bed.authority.leaf("web"))
        with caller.sock:
            with contextlib.suppress(SSL.WantReadError):
                caller.tls.do_handshake()
            hello = caller.tls.bio_read(65536)
            await until_accepted(port.sidecar)
            for at in range(7):
                with contextlib.suppress(OSError):
                    await sockets.send_all(caller.sock, hello[at : at + 1])
                await wait_all_tasks_blocked(0.01)
                mock_clock.jump(1)
            await port.refused("handshake_timeout")


@pytest.mark.parametrize("stage", ["before the handshake", "before the verdict"])
async def test_silence_in_the_place_of_a_service(stage: str, mock_clock: MockClock) -> None:
    async with attacked_call(timeouts=SHORT) as call:
        waiting = trio.Event()
        forever = trio.Event()

        async def answer(sock: socket.socket) -> None:
            if stage == "before the verdict":
                await Foreigner(sock, call.bed.authority.leaf("api"), server=True).handshake()
            waiting.set()
            await forever.wait()

        call.impostor.answer = answer
        with await connect(call.entry) as client:
            await sockets.send_all(client, STOLEN)
            await waiting.wait()
            await wait_all_tasks_blocked(0.01)
            mock_clock.jump(4.9)
            await wait_all_tasks_blocked(0.01)
            assert not call.sidecar.log.connections
            mock_clock.jump(6)
            await assert_reset(client)
        await call.refused("handshake_timeout", alarm=False)


async def until_accepted(sidecar: RunningSidecar) -> None:
    """Until the sidecar waits for the stranger's first byte."""
    while not len(sidecar.node.room.strangers):
        await trio.lowlevel.checkpoint()
    await wait_all_tasks_blocked(0.01)


# -- those who are many ------------------------------------------------------------------------------------------------


async def begin(port: Port, source: str = "127.0.0.1") -> socket.socket:
    """A stranger of this address who says nothing."""
    sock = socket.socket()
    sock.bind((source, 0))
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        sock.connect((port.address.host, port.address.port))
    await trio.lowlevel.wait_writable(sock)
    return sock


async def greet(sock: socket.socket) -> None:
    """Sends a ClientHello, and waits for the answer to it."""
    foreigner = Foreigner(sock, None)
    with contextlib.suppress(SSL.WantReadError):
        foreigner.tls.do_handshake()
    await foreigner.flush()
    await trio.lowlevel.wait_readable(sock)


@asynccontextmanager
async def full_room(limit: int, mock_clock: MockClock, **options: Any) -> AsyncIterator[Port]:
    """A port with room for so few strangers, on a clock that stands still."""
    async with attacked_port(**options) as port:
        port.sidecar.node.room.strangers.limit = limit
        yield port


async def test_idle_strangers_take_no_place_of_peers_and_of_own_calls() -> None:
    """As many as all places together: the sidecar's peers and its own app do not notice."""
    async with mesh_bed() as bed:
        app = await bed.app()
        db = await bed.sidecar("db", inbound=[inbound("5432", app.address)])
        api = await bed.sidecar(
            "api",
            inbound=[inbound("http", app.address)],
            outbound=[outbound("db", "5432", db.address("5432"))],
            limits=Limits(connections=70),
        )
        web = await bed.sidecar("web", outbound=[outbound("api", "http", api.address("http"))])
        with contextlib.ExitStack() as held:
            for _ in range(70):
                held.enter_context(await connect(api.address("http")))
            while len(api.node.room.strangers) < 70:
                await trio.lowlevel.checkpoint()
            for entry in (api.address("db:5432", "outbound"), web.address("api:http", "outbound")):
                for _ in range(3):
                    await answered(entry)
            assert api.node.registry.places == api.node.registry.idle
        await api.log.connection(6)


async def answered(entry: Address) -> None:
    with await connect(entry) as client:
        await sockets.send_all(client, HONEST)
        client.shutdown(socket.SHUT_WR)
        assert await receive_all(client) == HONEST


async def test_a_stranger_makes_room_by_a_bare_reset_and_is_logged_as_overloaded(mock_clock: MockClock) -> None:
    async with full_room(2, mock_clock) as port:
        with await begin(port) as first, await begin(port) as second:
            await until_held(port, 2)
            mock_clock.jump(SAFE_SECONDS)
            port.lines += 1
            await port.honest()
            await assert_reset(first)
            (line,) = [one for one in port.sidecar.log.connections if one["reason"] == "overloaded"]
            assert (line["decision"], line["peer_id"], line["peer_address"]) == (
                "deny",
                None,
                sockets.text(address_of(first)),
            )
            assert second.fileno() > 0
            assert len(port.sidecar.node.room.strangers) == 1


async def test_the_twin_before_a_second_has_passed_a_newcomer_waits(mock_clock: MockClock) -> None:
    async with full_room(2, mock_clock) as port:
        with await begin(port), await begin(port), await begin(port) as third:
            await until_held(port, 2)
            mock_clock.jump(SAFE_SECONDS * 0.99)
            await wait_all_tasks_blocked(0.01)
            assert not port.sidecar.log.connections
            await sockets.send_all(third, b"GET / HTTP/1.1")
            await wait_all_tasks_blocked(0.01)
            assert not port.sidecar.log.connections
            mock_clock.jump(SAFE_SECONDS)
            await port.sidecar.log.connection(2)
            assert {one["reason"] for one in port.sidecar.log.connections} == {"overloaded", "plaintext_refused"}


async def test_an_address_that_floods_displaces_itself(mock_clock: MockClock) -> None:
    """A caller of another address keeps its place, though it is older and as silent."""
    async with full_room(4, mock_clock) as port:
        with await begin(port, "127.0.0.2") as other, contextlib.ExitStack() as held:
            await until_held(port, 1)
            mock_clock.jump(SAFE_SECONDS)
            flood = [held.enter_context(await begin(port)) for _ in range(3)]
            await until_held(port, 4)
            mock_clock.jump(SAFE_SECONDS)
            held.enter_context(await begin(port))
            await assert_reset(flood[0])
            caller = Foreigner(other, port.bed.authority.leaf("web"))
            await caller.handshake()
            assert await caller.verdict() == "ok"


async def test_those_without_a_complete_hello_go_first(mock_clock: MockClock) -> None:
    async with full_room(3, mock_clock) as port:
        with await begin(port) as greeted, await begin(port) as silent, await begin(port) as half:
            await greet(greeted)
            await sockets.send_all(half, b"\x16\x03\x01\x02")
            await until_held(port, 3)
            mock_clock.jump(SAFE_SECONDS)
            with await begin(port), await begin(port):
                await assert_reset(silent)
                await assert_reset(half)
                await wait_all_tasks_blocked(0.01)
                assert {line["reason"] for line in port.sidecar.log.connections} == {"overloaded"}
                assert len(port.sidecar.log.connections) == 2
                mock_clock.jump(SAFE_SECONDS)
                assert greeted.fileno() > 0


async def test_who_was_judged_is_never_displaced(mock_clock: MockClock) -> None:
    async with full_room(1, mock_clock) as port:
        callers = []
        with contextlib.ExitStack() as held:
            for _ in range(3):
                caller = await port.foreigner(port.bed.authority.leaf("web"))
                held.enter_context(caller.sock)
                await caller.handshake()
                assert await caller.verdict() == "ok"
                callers.append(caller)
            for _ in range(3):
                held.enter_context(await begin(port))
                await wait_all_tasks_blocked(0.01)
                mock_clock.jump(SAFE_SECONDS)
            await port.sidecar.log.connection(2)
            for caller in callers:
                await caller.send(HONEST)
                assert await caller.receive() == HONEST
            assert {line["reason"] for line in port.sidecar.log.connections} == {"overloaded"}


async def test_a_refused_peer_stays_a_stranger_until_its_socket_is_closed(mock_clock: MockClock) -> None:
    """So sockets of refused callers do not pile up: there is no more room for them than for others."""
    async with full_room(1, mock_clock) as port:
        with await begin(port) as first:
            await sockets.send_all(first, b"GET / HTTP/1.1")
            await port.sidecar.log.connection()
            assert len(port.sidecar.node.room.strangers) == 1
            with await begin(port) as second:
                await sockets.send_all(second, b"GET / HTTP/1.1")
                await wait_all_tasks_blocked(0.01)
                assert len(port.sidecar.log.connections) == 1
                mock_clock.jump(SAFE_SECONDS)
                await port.sidecar.log.connection(2)


async def test_a_judged_peer_hears_overloaded_and_its_sidecar_says_so() -> None:
    """And asks another of the service's sidecars, which has a place."""
    async with mesh_bed() as bed:
        app = await bed.app()
        full, free = [
            await bed.sidecar("api", inbound=[inbound("http", app.address)], limits=Limits(connections=places))
            for places in (1, 10)
        ]
        alone = await bed.sidecar("web", outbound=[outbound("api", "http", full.address("http"))])
        web = await bed.sidecar("web", outbound=[outbound("api", "http", full.address("http"), free.address("http"))])
        with await connect(alone.address("api:http", "outbound")) as client:
            await sockets.send_all(client, HONEST)
            assert await sockets.receive(client, 65536) == HONEST
            with await connect(alone.address("api:http", "outbound")) as second:
                await assert_reset(second)
            line = await alone.log.connection()
            assert (line["reason"], line["peer_reason"]) == ("peer_refused", "overloaded")
            line = await full.log.connection()
            assert (line["reason"], line["decision"], line["peer_id"]) == ("overloaded", "deny", WEB)
            for _ in range(4):
                await answered(web.address("api:http", "outbound"))
        await web.log.connection(4)
        assert [line["reason"] for line in web.log.connections] == ["ok"] * 4
        await full.log.until(lambda: "ok" in [line["reason"] for line in full.log.connections])
        assert full.node.registry.places == full.node.registry.idle


def address_of(sock: socket.socket) -> tuple[str, int]:
    host, port = sock.getsockname()
    return host, port


async def until_held(port: Port, number: int) -> None:
    """Until so many strangers are held, and their tasks wait."""
    while len(port.sidecar.node.room.strangers) < number:
        await trio.lowlevel.checkpoint()
    await wait_all_tasks_blocked(0.01)


async def test_only_a_peer_that_proved_its_identity_has_turns_beside_the_strangers() -> None:
    async with attacked_port() as port:
        gate = port.sidecar.node.gate
        await port.attack(None)
        await port.sidecar.log.connection(1)
        assert not gate._proved
        await port.refused("no_certificate")  # and its twin is let in
        assert list(gate._proved) == ["127.0.0.1"]


@pytest.mark.parametrize(
    "first", [b"", b"\x16", b"GET / HTTP/1.1\r\n\r\n"], ids=["unused", "half a hello", "plaintext"]
)
async def test_a_bug_in_one_report_ends_nothing_else(monkeypatch: pytest.MonkeyPatch, first: bytes) -> None:
    def broken(_folding: Folding, *_arguments: object) -> bool:
        raise ValueError("a bug")

    async with attacked_port() as port:
        with monkeypatch.context() as patch:
            patch.setattr(Folding, "fold", broken)
            with await connect(port.address) as sock:
                await sockets.send_all(sock, first)
            await port.sidecar.log.until(lambda: bool(port.sidecar.log.events("internal_error")))
        caller = await port.foreigner(port.bed.authority.leaf("web"))  # the twin: it is still served
        with caller.sock:
            await caller.handshake()


async def test_who_comes_from_where_a_peer_proved_its_identity_is_looked_at_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order = list[bool]()
    enter = Lobby.enter

    def noting(lobby: Lobby, *arguments: Any, goes_first: bool = False, **more: Any) -> Guest:
        order.append(goes_first)
        return enter(lobby, *arguments, goes_first=goes_first, **more)

    monkeypatch.setattr(Lobby, "enter", noting)
    async with attacked_port() as port:
        for _ in range(2):
            await port.honest()
        assert order == [False, True]
