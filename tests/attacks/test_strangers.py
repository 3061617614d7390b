"""Those who do not speak TLS at all, or do not finish: on a port, and in a service's place."""

from __future__ import annotations

import contextlib
import socket

import pytest
import trio
from OpenSSL import SSL
from trio.testing import MockClock, wait_all_tasks_blocked

from sidecar.config.sidecar_yaml import Timeouts
from sidecar.proxy.peer import SPREAD
from sidecar.transport import sockets
from tests.attacks.records import ALERT, HANDSHAKE, plain_record
from tests.attacks.stage import STOLEN, assert_reset, attacked_call, attacked_port
from tests.beds.mesh import Foreigner, RunningSidecar, connect

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
    while not len(sidecar.node.registry):
        await trio.lowlevel.checkpoint()
    await wait_all_tasks_blocked(0.01)
