"""Plain sockets: what a listener refuses and why, and that each way to close one says what it means to the other end."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from sidecar.identity.reasons import UsageError
from sidecar.transport import sockets
from tests.beds.mesh import receive_all
from tests.beds.patience import PATIENCE
from tests.beds.relay import fill, tcp_pair

# -- moving bytes ------------------------------------------------------------------------------------------------------


async def test_bytes_arrive_whole_though_the_kernel_takes_them_in_pieces() -> None:
    data = bytes(range(256)) * 65536
    with tcp_pair() as (here, there):

        async def send() -> None:
            await sockets.send_all(here, data)
            here.shutdown(socket.SHUT_WR)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            assert await receive_all(there) == data


async def test_receive_waits_for_bytes_and_ends_with_the_stream() -> None:
    with tcp_pair() as (here, there):
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sockets.send_all, there, b"late")
                assert await sockets.receive(here, 100) == b"late"
        there.close()
        assert await sockets.receive(here, 100) == b""


async def test_receive_lets_others_run_though_there_is_always_more() -> None:
    with tcp_pair() as (here, there), trio.CancelScope() as scope:
        there.send(b"more")
        scope.cancel()
        await sockets.receive(here, 1)
    assert scope.cancelled_caught


async def test_errors_of_a_socket_come_out() -> None:
    with tcp_pair() as (here, there):
        sockets.hard_close(there)
        with pytest.raises(ConnectionResetError):
            await sockets.receive(here, 100)
        with pytest.raises(BrokenPipeError):
            await sockets.send_all(here, b"x")


# -- connecting --------------------------------------------------------------------------------------------------------


def options(sock: socket.socket) -> tuple[bool, bool, bool]:
    """No delay of small writes, urgent bytes in the stream, keepalive by our times."""
    return (
        bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)),
        bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)),
        bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        and sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60,
    )


async def test_a_connection_is_ready_for_the_relay_and_so_is_what_is_accepted() -> None:
    with sockets.listen("here", "127.0.0.1", 0) as listener:
        with trio.fail_after(PATIENCE):
            sock = await sockets.connect(socket.AF_INET, listener.getsockname())
        accepted, _ = listener.accept()
        with sock, accepted:
            assert not sock.getblocking()
            assert options(sock) == (True, True, False)  # a host that is this one does not die alone
            assert options(accepted) == (True, True, True)


def test_to_another_host_keepalive_is_on() -> None:
    with socket.socket() as sock:
        sockets.prepare(sock)
        assert options(sock) == (True, True, True)
    assert [
        sockets.is_loopback((host, 1)) for host in ("127.0.0.1", "127.8.8.8", "::1", "10.0.0.1", "::ffff:127.0.0.1")
    ] == [
        True,
        True,
        True,
        False,
        False,
    ]


async def test_the_twin_nobody_listens_there() -> None:
    with socket.socket() as nobody, trio.fail_after(PATIENCE):
        nobody.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            await sockets.connect(socket.AF_INET, nobody.getsockname())


async def test_an_error_at_once_and_a_cancellation_leave_no_socket_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []

    class Noted(socket.socket):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    with sockets.listen("here", "127.0.0.1", 0) as listener:
        monkeypatch.setattr(socket, "socket", Noted)
        with pytest.raises(OSError, match=r".") as refused:
            await sockets.connect(socket.AF_INET, ("255.255.255.255", 1))
        assert refused.value.errno in (errno.EACCES, errno.ENETUNREACH)
        with trio.CancelScope() as scope:
            scope.cancel()
            await sockets.connect(socket.AF_INET, listener.getsockname())
        assert scope.cancelled_caught
    assert [one.fileno() for one in made] == [-1, -1]


# -- listening ---------------------------------------------------------------------------------------------------------


def test_a_listener_accepts() -> None:
    with sockets.listen("here", "127.0.0.1", 0) as listener:
        assert not listener.getblocking()
        with socket.create_connection(listener.getsockname()) as caller:
            accepted, address = listener.accept()
            accepted.close()
            assert address == caller.getsockname()


def test_a_port_that_is_taken() -> None:
    with sockets.listen("first", "127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UsageError) as refused:
            sockets.listen("sidecar.yaml: inbound[0].listen", "127.0.0.1", port)
    assert str(refused.value) == (
        f"sidecar.yaml: inbound[0].listen: cannot listen on 127.0.0.1:{port}: Address already in use; another process "
        "listens there: stop it, or choose another port"
    )


def test_a_port_whose_last_connections_are_still_dying_is_not_taken() -> None:
    with sockets.listen("first", "127.0.0.1", 0) as listener:
        address = listener.getsockname()
        with socket.create_connection(address) as caller:
            listener.accept()[0].close()  # closed first, so it stays in TIME_WAIT here
            assert caller.recv(1) == b""
    sockets.listen("again", *address).close()


@pytest.mark.parametrize(
    ("host", "shown", "says"),
    [
        (
            "192.0.2.1",
            "192.0.2.1:8443",
            "Cannot assign requested address; no interface of this machine has that address",
        ),
        ("2001:db8::1", "[2001:db8::1]:8443", "; no interface of this machine has that address"),
        ("no such host", "no such host:8443", ""),
    ],
)
def test_an_address_that_is_not_ours(host: str, shown: str, says: str) -> None:
    with pytest.raises(UsageError) as refused:
        sockets.listen("there", host, 8443)
    assert str(refused.value).startswith(f"there: cannot listen on {shown}: ")
    assert says in str(refused.value)


def test_a_privileged_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may be allowed to; so the kernel's answer is given for it."""

    class Denied(socket.socket):
        def bind(self, address: Any) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(socket, "socket", Denied)
    with pytest.raises(UsageError, match=r"Permission denied; ports below 1024 need a privilege: choose a higher one$"):
        sockets.listen("there", "127.0.0.1", 443)


V4, V6 = (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")
HAS_V6 = socket.has_ipv6 and Path("/proc/net/if_inet6").exists()


def resolves_to(monkeypatch: pytest.MonkeyPatch, *found: tuple[int, str]) -> None:
    """What this machine's resolver answers for every name."""

    def getaddrinfo(host: str, port: int, *_: int, **__: int) -> list[tuple[int, int, int, str, tuple[str | int, ...]]]:
        more: dict[int, tuple[int, ...]] = {socket.AF_INET: (), socket.AF_INET6: (0, 0)}
        return [(family, socket.SOCK_STREAM, 6, "", (ip, port, *more[family])) for family, ip in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def places(opened: list[socket.socket]) -> list[str]:
    return [one.getsockname()[0] for one in opened]


@pytest.fixture
def closing() -> Iterator[Callable[[list[socket.socket]], list[socket.socket]]]:
    """Closes sockets at the end of the test."""
    with ExitStack() as stack:

        def close_later(opened: list[socket.socket]) -> list[socket.socket]:
            for sock in opened:
                stack.enter_context(sock)
            return opened

        yield close_later


@pytest.mark.skipif(not HAS_V6, reason="this machine has no IPv6 loopback")
def test_localhost_is_every_loopback_address_on_one_port(monkeypatch: pytest.MonkeyPatch, closing: Any) -> None:
    resolves_to(monkeypatch, V6, V4, V6)
    opened = closing(sockets.listen_all("here", "localhost", 0))
    assert places(opened) == ["::1", "127.0.0.1"]
    assert len({one.getsockname()[1] for one in opened}) == 1


@pytest.mark.parametrize("absent", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def test_a_machine_without_one_family_listens_on_the_other(
    absent: int, monkeypatch: pytest.MonkeyPatch, closing: Any
) -> None:
    real = sockets._listening

    def without_v6(family: int, *rest: Any, **options: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(absent, os.strerror(absent))
        return real(family, *rest, **options)

    monkeypatch.setattr(sockets, "_listening", without_v6)
    resolves_to(monkeypatch, V6, V4)
    assert places(closing(sockets.listen_all("here", "localhost", 0))) == ["127.0.0.1"]
    resolves_to(monkeypatch, V6)
    with pytest.raises(UsageError, match=f"here: cannot listen on localhost:80: {os.strerror(absent)}"):
        sockets.listen_all("here", "localhost", 80)


@pytest.mark.skipif(not HAS_V6, reason="this machine has no IPv6 loopback")
def test_a_port_that_is_taken_on_one_of_two_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """An app that connects to the other address would reach another program."""
    resolves_to(monkeypatch, V6, V4)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"cannot listen on localhost:{port}: Address already in use; another"):
            sockets.listen_all("here", "localhost", port)
    for family, ip in (V6, V4):
        with socket.create_server((ip, port), family=family):
            pass  # neither is left open


def test_a_closed_one_has_its_address_and_refuses_until_it_starts_listening(closing: Any) -> None:
    (sock,) = closing(sockets.listen_all("here", "127.0.0.1", 0, closed=True))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(sock.getsockname())
    sockets.start_listening("here", sock)
    socket.create_connection(sock.getsockname()).close()


def test_the_twin_one_whose_address_was_taken_meanwhile_says_so(closing: Any) -> None:
    (sock,) = closing(sockets.listen_all("here", "127.0.0.1", 0, closed=True))
    with (
        sockets.listen("there", *sock.getsockname()),
        pytest.raises(UsageError, match=r"here: cannot listen on .* stop it"),
    ):
        sockets.start_listening("here", sock)


def test_a_port_of_the_system_s_choice_that_is_taken_on_the_second_is_chosen_again(
    monkeypatch: pytest.MonkeyPatch, closing: Any
) -> None:
    real, asked = sockets._listening, []

    def taken_at_first(family: int, address: tuple[Any, ...], *rest: Any, **options: Any) -> socket.socket:
        asked.append(address[1])
        if len(asked) % 2 == 0 and len(asked) < tries:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        return real(family, address, *rest, **options)

    monkeypatch.setattr(sockets, "_listening", taken_at_first)
    resolves_to(monkeypatch, V4, (socket.AF_INET, "127.0.0.2"))
    tries = 6
    opened = closing(sockets.listen_all("here", "localhost", 0))
    assert [port == 0 for port in asked] == [True, False] * 3
    assert len(opened) == 2
    asked.clear()
    tries = 1000
    with pytest.raises(UsageError, match="Address already in use"):
        sockets.listen_all("here", "localhost", 0)
    assert len(asked) == 2 * sockets._PORT_TRIES
    asked.clear()
    with pytest.raises(UsageError, match="Address already in use"):
        sockets.listen_all("here", "localhost", free_port())  # one that was asked for is not tried twice
    assert len(asked) == 2


@pytest.mark.parametrize("first", [[], [V6]])
def test_localhost_is_never_an_address_for_others(
    first: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a resolver says: the plaintext listener would be open to the network."""
    port = free_port()
    resolves_to(monkeypatch, *first, (socket.AF_INET, "0.0.0.0"))
    with pytest.raises(UsageError) as refused:
        sockets.listen_all("s.yaml: outbound[0].listen", "LocalHost", port)
    assert str(refused.value) == (
        f"s.yaml: outbound[0].listen: does not listen on LocalHost:{port}: this machine resolves localhost to 0.0.0.0, to "
        "which others can connect; correct /etc/hosts, or write 127.0.0.1"
    )
    with socket.create_server(("127.0.0.1", port)):
        pass  # nothing is left open


def test_the_twin_an_address_for_others_under_its_own_name(monkeypatch: pytest.MonkeyPatch, closing: Any) -> None:
    resolves_to(monkeypatch, (socket.AF_INET, "0.0.0.0"))
    assert places(closing(sockets.listen_all("here", "mesh-ca", 0))) == ["0.0.0.0"]


def test_a_name_of_which_this_machine_has_one_address(monkeypatch: pytest.MonkeyPatch, closing: Any) -> None:
    resolves_to(monkeypatch, (socket.AF_INET, "192.0.2.1"), V4)
    assert places(closing(sockets.listen_all("here", "api.internal", 0))) == ["127.0.0.1"]


def test_a_name_that_nobody_knows() -> None:
    with pytest.raises(UsageError, match=r"^there: cannot listen on no such host:8443: "):
        sockets.listen_all("there", "no such host", 8443)


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(UsageError, match=r"; there is no network interface 'nonesuch0'$"):
        sockets.listen("there", "127.0.0.1", 0, "nonesuch0")


def test_the_twin_one_that_is() -> None:
    with sockets.listen("here", "127.0.0.1", 0, "lo") as listener:
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0") == b"lo"
        socket.create_connection(listener.getsockname()).close()


def test_auto_is_the_device_that_has_the_address() -> None:
    assert sockets.device_of("127.0.0.1") == "lo"
    with sockets.listen("here", "127.0.0.1", 0, "auto") as listener:
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0") == b"lo"


def test_the_twin_an_address_that_no_device_has_is_listened_on_nowhere() -> None:
    with pytest.raises(UsageError, match=r"; no interface of this machine has that address$"):
        sockets.listen("there", "192.0.2.1", 0, "auto")


def test_a_system_without_devices_refuses_rather_than_accepting_from_everywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(socket, "SO_BINDTODEVICE")
    with pytest.raises(UsageError, match="binding to a device works on Linux only"):
        sockets.listen("there", "127.0.0.1", 0, "lo")


def test_the_wildcard_of_v6_takes_v4_too_and_an_address_of_v6_does_not() -> None:
    with sockets.listen("here", "::", 0) as listener:
        assert not listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        with socket.create_connection(("127.0.0.1", listener.getsockname()[1])):
            accepted, address = listener.accept()
            accepted.close()
            assert sockets.text(address) == f"127.0.0.1:{address[1]}"
    with sockets.listen("here", "::1", 0) as listener:
        assert listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


# -- addresses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("10.0.0.1", 80), "10.0.0.1:80"),
        (("::ffff:10.0.0.1", 80, 0, 0), "10.0.0.1:80"),
        (("::1", 80, 0, 0), "[::1]:80"),
        (("fe80::1%eth0", 80, 0, 2), "[fe80::1]:80"),
    ],
)
def test_addresses_as_text(address: tuple[str | int, ...], text: str) -> None:
    assert sockets.text(address) == text


def test_a_v4_address_that_came_in_by_a_v6_socket_is_a_v4_address() -> None:
    assert sockets.plain_ip("::ffff:10.0.0.1") == sockets.plain_ip("10.0.0.1")
    assert sockets.plain_ip("::1") != sockets.plain_ip("127.0.0.1")


# -- closing -----------------------------------------------------------------------------------------------------------


async def test_linger_delivers_the_last_bytes_though_others_lie_unread() -> None:
    with tcp_pair() as (here, there):
        there.send(b"unread " * 1000)
        here.send(b"last words")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sockets.linger, here)
            await trio.testing.wait_all_tasks_blocked()
            there.send(b"and more")
            assert await receive_all(there) == b"last words"
            there.close()
        assert here.fileno() < 0


async def test_the_control_a_plain_close_destroys_the_clean_end() -> None:
    with tcp_pair() as (here, there):
        there.send(b"unread " * 1000)
        here.send(b"last words")
        here.close()
        with pytest.raises(ConnectionResetError):
            await receive_all(there)


async def test_linger_gives_a_silent_peer_a_second(autojump_clock: trio.testing.MockClock) -> None:
    for longest in (sockets.LINGER_SECONDS, 30.0):
        with tcp_pair() as (here, _):
            began = trio.current_time()
            await sockets.linger(here, longest)
            assert trio.current_time() - began == pytest.approx(sockets.LINGER_SECONDS)
            assert here.fileno() < 0


async def test_linger_gives_one_that_goes_on_sending_so_long_and_no_longer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with tcp_pair() as (here, there):

        async def trickle() -> None:
            while True:
                await trio.sleep(sockets.LINGER_SECONDS / 2)
                there.send(b"more")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trickle)
            began = trio.current_time()
            with trio.move_on_after(100):
                await sockets.linger(here, 5.0)
            assert trio.current_time() - began == pytest.approx(5.0)
            nursery.cancel_scope.cancel()


async def test_linger_ends_in_time_though_the_peer_never_lets_it_wait(mock_clock: trio.testing.MockClock) -> None:
    class Flood:
        """A socket that always has more; each read takes 10 ms."""

        reads = 0
        closed = False

        def shutdown(self, how: int) -> None: ...

        def recv(self, limit: int) -> bytes:
            self.reads += 1
            assert self.reads < 1000, "it outran its deadline"
            mock_clock.jump(0.01)
            return b"x" * limit

        def close(self) -> None:
            self.closed = True

    flood = Flood()
    await sockets.linger(cast(socket.socket, flood), 3.0)
    assert 290 < flood.reads < 310
    assert flood.closed


async def test_linger_on_a_connection_that_is_gone() -> None:
    with tcp_pair() as (here, there):
        sockets.hard_close(there)
        await sockets.linger(here)
        assert here.fileno() < 0


async def test_reset_waits_until_what_was_said_has_arrived_and_then_resets(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with tcp_pair() as (here, there):
        sent = fill(here)

        async def read() -> int:
            await trio.testing.wait_all_tasks_blocked(0.001)
            size = 0
            while size < sent:
                size += len(await sockets.receive(there, 65536))
            return size

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sockets.reset, here)
            assert await read() == sent
        assert here.fileno() < 0
        with pytest.raises(ConnectionResetError):
            await sockets.receive(there, 1)


async def test_reset_waits_no_longer_than_a_second_for_somebody_who_does_not_read(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with tcp_pair() as (here, there):
        fill(here)
        began = trio.current_time()
        await sockets.reset(here)
        assert trio.current_time() - began == pytest.approx(sockets.LINGER_SECONDS)
        with pytest.raises(ConnectionResetError):
            await receive_all(there)


async def test_reset_closes_also_when_cancelled() -> None:
    with tcp_pair() as (here, there):
        fill(here)
        with trio.CancelScope() as scope:
            scope.cancel()
            await sockets.reset(here)
        assert here.fileno() < 0
        with pytest.raises(ConnectionResetError):
            await receive_all(there)


def test_a_hard_close_is_a_reset_and_a_second_one_nothing() -> None:
    with tcp_pair() as (here, there):
        sockets.hard_close(here)
        sockets.hard_close(here)
        assert here.fileno() < 0
        with pytest.raises(ConnectionResetError):
            there.recv(1)


def test_a_hard_close_of_what_the_peer_has_reset() -> None:
    with tcp_pair() as (here, there):
        sockets.hard_close(there)
        sockets.hard_close(here)
        assert here.fileno() < 0


def test_a_hard_close_closes_also_where_the_kernel_wants_no_options_any_more() -> None:
    class Stubborn(socket.socket):
        def setsockopt(self, *args: Any) -> None:
            raise OSError(errno.EINVAL, "it is gone")

    sock = Stubborn()
    sockets.hard_close(sock)
    assert sock.fileno() < 0


def test_the_control_a_plain_close_is_a_clean_end() -> None:
    with tcp_pair() as (here, there):
        here.close()
        assert there.recv(1) == b""


def test_where_the_system_cannot_tell_what_is_unsent_nothing_is_waited_for(tmp_path: Path) -> None:
    with (tmp_path / "no socket").open("w") as file:
        assert sockets._unsent(cast(socket.socket, file)) == 0


def test_a_connection_that_failed_is_told_at_its_end() -> None:
    class Failed:
        def getsockopt(self, _level: int, option: int) -> int:
            assert option == socket.SO_ERROR
            return errno.EHOSTUNREACH

    failed: Any = Failed()
    with pytest.raises(OSError, match="No route to host"):
        sockets.end_to_connect(failed)
