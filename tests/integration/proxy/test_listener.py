"""A listener that follows its network interface: heard again on the one that was made anew, and a fault meanwhile."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from sidecar.documents.address import Address
from sidecar.proxy.lines import Lines
from sidecar.proxy.listener import Listener
from sidecar.proxy.live import Live
from sidecar.proxy.server import LOOK_SECONDS
from sidecar.relay.strand import Steps
from sidecar.transport import sockets
from tests.beds import mesh as harness
from tests.beds.mesh import RunningSidecar, connect, mesh_bed
from tests.beds.patience import PATIENCE

WHERE = "s.yaml: outbound[0].listen"


class Deaf(socket.socket):
    """A socket whose interface was deleted: bound, heard by nobody, and ENODEV for its interface."""

    def getsockopt(self, level: int, option: int, *size: int) -> Any:
        if option == socket.SO_BINDTODEVICE:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return super().getsockopt(level, option, *size)


def deaf() -> Deaf:
    sock = Deaf()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    return sock


def listening(sock: socket.socket, device: str | None) -> Listener:
    def nothing(_sock: socket.socket, _lines: Lines, _live: Live) -> Steps[None]:
        raise NotImplementedError

    return Listener(WHERE, sock, device, "outbound", "http", "api:http", nothing)


@pytest.fixture
def lost() -> Iterator[Listener]:
    """A listener on an interface that was deleted."""
    listener = listening(deaf(), "lo")
    yield listener
    listener.sock.close()


def test_on_an_interface_that_was_made_anew_it_listens_anew(lost: Listener) -> None:
    old, address = lost.sock, lost.address
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    assert lost.look()
    assert (lost.address, lost.fault) == (address, None)
    assert old.fileno() == -1
    socket.create_connection(address).close()
    assert sockets.is_on_device(lost.sock, "lo")
    assert not lost.look()  # once


def test_the_twin_an_interface_that_stays_changes_nothing() -> None:
    with sockets.listen(WHERE, "127.0.0.1", 0, "lo") as sock:
        listener = listening(sock, "lo")
        assert not listener.look()
        assert (listener.sock, listener.fault) == (sock, None)


def test_a_listener_on_no_interface_of_its_own_is_not_examined() -> None:
    with deaf() as sock:
        listener = listening(sock, None)
        assert not listener.look()
        assert (listener.sock, listener.fault) == (sock, None)


@pytest.mark.parametrize(
    ("device", "says"),
    [
        ("nonesuch0", "No such device; there is no network interface 'nonesuch0'"),
        ("auto", "no interface of this machine has"),
    ],
)
def test_while_there_is_no_interface_it_says_so(device: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody_has(_: str) -> str:
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))

    with deaf() as sock:
        listener = listening(sock, device)
        with monkeypatch.context() as patch:
            patch.setattr(sockets, "device_of", nobody_has)
            assert not listener.look()
        assert listener.sock is sock
        assert listener.fault is not None
        assert listener.fault.startswith(f"nothing reaches this listener now: {WHERE}: cannot listen on 127.0.0.1:")
        assert says in listener.fault
        listener.device = "lo"
        assert listener.look()
        assert listener.fault is None
        listener.sock.close()


def test_auto_follows_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with sockets.listen(WHERE, "127.0.0.1", 0, "auto") as sock:
        assert not listening(sock, "auto").look()
        monkeypatch.setattr(sockets, "device_of", lambda _: "elsewhere0")
        assert not sockets.is_on_device(sock, "auto")
        assert sockets.is_on_device(sock, "lo")


@pytest.mark.skipif(
    shutil.which("ip") is None or subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode != 0,
    reason="needs a network namespace of its own",
)
@pytest.mark.parametrize("device", ["made0", "auto"])
def test_what_the_kernel_says_of_an_interface_that_is_deleted_and_made_anew(device: str) -> None:
    script = f"""
import subprocess
from sidecar.transport import sockets
from tests.integration.proxy.test_listener import WHERE, listening
def ip(words): subprocess.run(["ip", *words.split()], check=True)
def make():
    ip("link add made0 type veth peer name made1"); ip("addr add 10.9.9.1/24 dev made0"); ip("link set made0 up")
make()
listener = listening(sockets.listen(WHERE, "10.9.9.1", 0, {device!r}), {device!r})
assert not listener.look() and listener.fault is None
ip("link del made0")
assert not listener.look() and listener.fault is not None
make()
assert listener.look() and listener.fault is None
assert not listener.look()
"""
    done = subprocess.run(["unshare", "-rn", sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# -- in a sidecar ------------------------------------------------------------------------------------------------------


async def looked(clock: MockClock) -> None:
    await wait_all_tasks_blocked()
    clock.jump(LOOK_SECONDS)
    await wait_all_tasks_blocked()


async def calls(web: RunningSidecar) -> bytes:
    with await connect(web.address("api:http", "outbound")) as client:
        await sockets.send_all(client, b"ping")
        return await sockets.receive(client, 4)


async def test_a_sidecar_listens_anew_and_cuts_no_connection(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mesh_bed() as bed:
        api = await bed.sidecar("api", inbound=[harness.inbound("http", (await bed.app()).address)])
        web = await bed.sidecar("web", outbound=[harness.outbound("api", "http", api.address("http"), device="lo")])
        (listener,) = web.server.listeners
        with await connect(web.address("api:http", "outbound")) as open_before:
            await sockets.send_all(open_before, b"ping")
            assert await sockets.receive(open_before, 4) == b"ping"
            place = listener.address
            # The interface is deleted.
            listener.sock = Deaf(fileno=listener.sock.detach())
            listener.sock.shutdown(socket.SHUT_RD)  # nothing reaches it any more
            listener.device = "nonesuch0"
            for _ in range(3):
                await looked(mock_clock)
            assert web.server.faults == [listener.fault]
            (warning,) = web.log.events("deaf")
            assert warning["message"] == listener.fault
            # It is made anew.
            listener.device = "lo"
            for _ in range(3):
                await looked(mock_clock)
            assert web.server.faults == []
            assert listener.address == place
            (news,) = web.log.events("listening")
            assert f"listens on {sockets.text(place)} again" in news["message"]
            assert await calls(web) == b"ping"
            await sockets.send_all(open_before, b"pong")
            assert await sockets.receive(open_before, 4) == b"pong"


async def test_localhost_is_heard_on_every_loopback_address() -> None:
    async with mesh_bed() as bed:
        api = await bed.sidecar("api", inbound=[harness.inbound("http", (await bed.app()).address)])
        way = harness.outbound("api", "http", api.address("http"), listen=Address("localhost", 0))
        web = await bed.sidecar("web", outbound=[way])
        found = {one[4][0] for one in socket.getaddrinfo("localhost", None, type=socket.SOCK_STREAM)}
        assert {one.address[0] for one in web.server.listeners} == found
        assert len({one.address[1] for one in web.server.listeners}) == 1
        assert web.server.listening == [one.address for one in web.server.listeners]
        for one in web.server.listeners:
            family = socket.AF_INET6 if ":" in one.address[0] else socket.AF_INET
            with trio.fail_after(PATIENCE), await sockets.connect(family, one.address) as client:
                await sockets.send_all(client, b"ping")
                assert await sockets.receive(client, 4) == b"ping"
