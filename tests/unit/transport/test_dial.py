"""Places, their order and their standing aside; names looked up in the background; connections that must not be made."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from sidecar.documents.address import Address
from sidecar.identity.reasons import Reason, Refused
from sidecar.transport import dial, sockets
from sidecar.transport.dial import (
    BACKOFF_SECONDS,
    LOOKUP_SECONDS,
    REFRESH_SECONDS,
    Endpoint,
    Resolver,
    Upstream,
    is_own,
)


class Names(trio.abc.HostnameResolver):
    """A name service: what ``table`` holds is the answer, an error is raised, None never answers."""

    def __init__(self, **table: list[str] | OSError | None) -> None:
        self.table = {name.replace("_", "."): answer for name, answer in table.items()}
        self.asked: list[str] = []
        self.in_flight = self.most_in_flight = 0

    async def getaddrinfo(self, host: Any, port: Any, *_: int) -> Any:
        name = host.decode() if isinstance(host, bytes) else str(host)
        self.asked.append(name)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await trio.lowlevel.checkpoint()
            answer = self.table[name]
            if answer is None:
                await trio.sleep_forever()
            if isinstance(answer, OSError):
                raise answer
            return [
                (socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 0))
                for ip in answer or []
            ]
        finally:
            self.in_flight -= 1

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        raise NotImplementedError


@asynccontextmanager
async def looking_up(resolver: Resolver, names: Names | None = None) -> AsyncIterator[None]:
    if names is not None:
        trio.socket.set_custom_hostname_resolver(names)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(resolver.run)
        yield
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def upstream(*addresses: str, names: Names | None = None) -> AsyncIterator[Upstream]:
    resolver = Resolver()
    parsed = [Address(host, int(port)) for host, _, port in (address.rpartition(":") for address in addresses)]
    target = Upstream("db's sidecar", parsed, resolver, ())
    async with looking_up(resolver, names):
        yield target


async def order(target: Upstream) -> list[str]:
    return [str(endpoint) for endpoint in await target.endpoints()]


A, B, C = "10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"


# -- which one is next -------------------------------------------------------------------------------------------------


async def test_the_least_used_place_is_first() -> None:
    async with upstream(A, B) as target:
        first = (await target.endpoints())[0]
        with target.using(first):
            for _ in range(3):
                assert (await order(target))[0] != str(first)
            assert first.live == 1
        assert first.live == 0


async def test_places_that_are_used_alike_take_turns() -> None:
    async with upstream(A, B, C) as target:
        turns = [(await order(target))[0] for _ in range(6)]
    assert sorted(turns[:3]) == sorted(turns[3:]) == [A, B, C]


async def test_connections_that_come_in_one_moment_are_spread() -> None:
    """None of them is connected yet when the next one chooses."""
    async with upstream(A, B) as target:
        chosen = [(await order(target))[0] for _ in range(50)]
    assert chosen.count(A) == chosen.count(B) == 25


async def test_one_that_failed_stands_aside_but_is_the_last_resort(mock_clock: MockClock) -> None:
    async with upstream(A, B) as target:
        first, second = await target.endpoints()
        first.failed()
        for _ in range(3):
            assert await target.endpoints() == [second, first]
        second.failed()
        assert set(await target.endpoints()) == {first, second}  # better than nothing
        mock_clock.jump(BACKOFF_SECONDS[0])
        assert first.aside_until <= trio.current_time()
        assert len(await target.endpoints()) == 2


async def test_it_stands_aside_longer_each_time_and_not_for_ever(mock_clock: MockClock) -> None:
    endpoint = Endpoint(socket.AF_INET, ("10.0.0.1", 1))
    waits = []
    for _ in range(10):
        endpoint.failed()
        waits.append(endpoint.aside_until - trio.current_time())
        mock_clock.jump(waits[-1])
    assert waits[:4] == pytest.approx([0.5, 1, 2, 4])
    assert waits[-1] == pytest.approx(BACKOFF_SECONDS[1])
    endpoint.answered()
    endpoint.failed()
    assert endpoint.aside_until - trio.current_time() == pytest.approx(0.5)


async def test_fifty_failures_in_one_moment_are_one(mock_clock: MockClock) -> None:
    endpoint = Endpoint(socket.AF_INET, ("10.0.0.1", 1))
    for _ in range(50):
        endpoint.failed()
    assert endpoint.aside_until - trio.current_time() == pytest.approx(0.5)
    mock_clock.jump(0.5)
    endpoint.failed()
    assert endpoint.aside_until - trio.current_time() == pytest.approx(1)


# -- names -------------------------------------------------------------------------------------------------------------


async def test_a_name_with_several_addresses_is_several_places(mock_clock: MockClock) -> None:
    names = Names(db_mesh=["10.0.0.1", "10.0.0.2", "10.0.0.1", "fd00::1"])
    async with upstream("db.mesh:5432", names=names) as target:
        assert sorted(await order(target)) == ["10.0.0.1:5432", "10.0.0.2:5432", "[fd00::1]:5432"]


async def test_addresses_that_change_are_followed_and_live_ones_are_counted_on(mock_clock: MockClock) -> None:
    names = Names(db_mesh=["10.0.0.1", "10.0.0.2"])
    async with upstream("db.mesh:1", names=names) as target:
        stays = next(endpoint for endpoint in await target.endpoints() if str(endpoint) == B)
        with target.using(stays):
            names.table["db.mesh"] = ["10.0.0.2", "10.0.0.3"]
            assert sorted(await order(target)) == [A, B]
            await wait_all_tasks_blocked()
            mock_clock.jump(REFRESH_SECONDS)
            await wait_all_tasks_blocked()
            assert await order(target) == [C, B]
            assert stays in await target.endpoints()


async def test_the_last_good_answer_is_kept(mock_clock: MockClock) -> None:
    names = Names(db_mesh=["10.0.0.1"])
    async with upstream("db.mesh:1", names=names) as target:
        assert await order(target) == [A]
        names.table["db.mesh"] = socket.gaierror(socket.EAI_AGAIN, "try again")
        for _ in range(5):
            await wait_all_tasks_blocked()
            mock_clock.jump(REFRESH_SECONDS)
        await wait_all_tasks_blocked()
        assert len(names.asked) > 3
        assert await order(target) == [A]


async def test_a_name_that_does_not_resolve_is_a_refusal_and_is_asked_again_soon(mock_clock: MockClock) -> None:
    names = Names(db_mesh=socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    async with upstream("db.mesh:1", names=names) as target:
        with pytest.raises(Refused) as refused:
            await target.endpoints()
        assert refused.value.reason is Reason.CONNECT_FAILED
        for word in ("db's sidecar", "db.mesh:1", "Name or service not known"):
            assert word in refused.value.detail
        names.table["db.mesh"] = ["10.0.0.1"]
        await wait_all_tasks_blocked()
        mock_clock.jump(REFRESH_SECONDS / 5)
        await wait_all_tasks_blocked()
        assert await order(target) == [A]


async def test_one_name_that_does_not_resolve_leaves_the_other(mock_clock: MockClock) -> None:
    names = Names(gone_mesh=socket.gaierror(socket.EAI_NONAME, "unknown"), db_mesh=["10.0.0.1"])
    async with upstream("gone.mesh:1", "db.mesh:1", names=names) as target:
        assert await order(target) == [A]


async def test_one_lookup_in_flight_for_a_name_however_many_wait(mock_clock: MockClock) -> None:
    names = Names(db_mesh=["10.0.0.1"])
    resolver = Resolver()
    targets = [Upstream("db", [Address("db.mesh", port)], resolver, ()) for port in (1, 2)]
    async with looking_up(resolver, names), trio.open_nursery() as nursery:
        for _ in range(50):
            for target in targets:
                nursery.start_soon(target.endpoints)
    assert names.asked == ["db.mesh"]
    assert names.most_in_flight == 1


async def test_a_name_service_that_does_not_answer_is_given_up(mock_clock: MockClock) -> None:
    names = Names(db_mesh=None)
    async with upstream("db.mesh:1", names=names) as target:
        await wait_all_tasks_blocked()
        mock_clock.jump(LOOKUP_SECONDS)
        with pytest.raises(Refused, match="no answer within 10 s"):
            await target.endpoints()
        await wait_all_tasks_blocked()
        mock_clock.jump(REFRESH_SECONDS)
        await wait_all_tasks_blocked()
        assert (len(names.asked), names.most_in_flight) == (2, 1)


async def test_an_ip_address_is_asked_of_nobody(mock_clock: MockClock) -> None:
    names = Names()
    async with upstream(A, "::1:7", names=names) as target:
        assert sorted(await order(target)) == [A, "[::1]:7"]
    assert names.asked == []


# -- connecting --------------------------------------------------------------------------------------------------------


def listener() -> socket.socket:
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock


def place_of(sock: socket.socket) -> Endpoint:
    return Endpoint(socket.AF_INET, sock.getsockname())


async def test_a_place_that_answers() -> None:
    with listener() as app, await dial.connect(endpoint := place_of(app), "the app", 5, []) as sock:
        assert sock.getpeername() == app.getsockname()
        assert not sock.getblocking()
        assert endpoint.failures == 0


async def test_a_place_where_nobody_listens() -> None:
    with listener() as app:
        endpoint = place_of(app)
    with pytest.raises(Refused) as refused:
        await dial.connect(endpoint, "the app", 5, [])
    assert refused.value.reason is Reason.CONNECT_FAILED
    assert str(endpoint) in refused.value.detail
    assert "Connection refused" in refused.value.detail
    assert endpoint.failures == 1


async def test_a_place_that_does_not_answer(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(sockets, "connect", never)
    endpoint = Endpoint(socket.AF_INET, ("10.0.0.1", 1))
    with pytest.raises(Refused, match="no answer within 5 s") as refused:
        await dial.connect(endpoint, "the app", 5, [])
    assert refused.value.reason is Reason.CONNECT_FAILED
    assert trio.current_time() == pytest.approx(5, abs=0.1)
    assert endpoint.failures == 1


async def test_a_place_that_accepts_and_resets_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a port proxy does whose own app is down. The reset may come before anything was asked of the socket."""
    made: list[socket.socket] = []

    async def connect_to_a_reset(family: int, address: tuple[Any, ...]) -> socket.socket:
        sock = await real(family, address)
        sockets.hard_close(app.accept()[0])
        await trio.lowlevel.wait_readable(sock)
        with pytest.raises(OSError, match="not connected"):
            sock.getpeername()
        made.append(sock)
        return sock

    real = sockets.connect
    monkeypatch.setattr(sockets, "connect", connect_to_a_reset)
    with listener() as app:
        endpoint = place_of(app)
        with pytest.raises(Refused) as refused:
            await dial.connect(endpoint, "the app", 5, [])
    assert refused.value.reason is Reason.CONNECT_FAILED
    assert endpoint.failures == 1
    assert made[0].fileno() == -1  # nothing is left open


async def test_a_connection_to_ourselves_is_not_made() -> None:
    with listener() as own:
        endpoint = place_of(own)
        with pytest.raises(Refused, match="this sidecar itself"):
            await dial.connect(endpoint, "the app", 5, [own.getsockname()])
        assert endpoint.failures == 1
        with own.accept()[0] as accepted:
            assert accepted.recv(1) == b""


async def test_no_descriptor_left(monkeypatch: pytest.MonkeyPatch) -> None:
    async def exhausted(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(sockets, "connect", exhausted)
    with pytest.raises(Refused, match="Too many open files"):
        await dial.connect(Endpoint(socket.AF_INET, ("10.0.0.1", 1)), "the app", 5, [])


LOOPBACK, OTHER = ("127.0.0.1", 40000), ("127.0.0.1", 8080)


@pytest.mark.parametrize(
    ("local", "remote", "listening", "own"),
    [
        (LOOPBACK, OTHER, [], False),
        (LOOPBACK, OTHER, [("127.0.0.1", 8080)], True),
        (LOOPBACK, OTHER, [("127.0.0.1", 8081)], False),
        (LOOPBACK, OTHER, [("127.0.0.2", 8080)], False),
        (LOOPBACK, LOOPBACK, [], True),  # TCP's simultaneous open with itself
        (LOOPBACK, OTHER, [("0.0.0.0", 8080)], True),
        (("10.0.0.5", 40000), ("10.0.0.5", 8080), [("0.0.0.0", 8080)], True),
        (("10.0.0.5", 40000), ("10.0.0.6", 8080), [("0.0.0.0", 8080)], False),  # another host, the same port
        (("::1", 40000, 0, 0), ("::1", 8080, 0, 0), [("::1", 8080)], True),
        (("::1", 40000, 0, 0), ("::1", 8080, 0, 0), [("::", 8080)], True),
        (("127.0.0.1", 40000), ("127.0.0.1", 8080), [("::ffff:127.0.0.1", 8080)], True),
    ],
)
def test_what_is_a_connection_to_ourselves(local: Any, remote: Any, listening: Any, own: bool) -> None:
    assert is_own(local, remote, listening) is own
