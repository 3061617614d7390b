"""Places, their order and their standing aside; names looked up in the background; connections that must not be made."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from sidecar.documents.address import Address
from sidecar.identity.reasons import Reason, Refused
from sidecar.relay.strand import Steps, run
from sidecar.transport import dial, sockets
from sidecar.transport.dial import (
    AGAIN_SECONDS,
    BACKOFF_SECONDS,
    LOOKUP_SECONDS,
    MAX_ADDRESSES,
    MAX_ATTEMPTS,
    REFRESH_SECONDS,
    RESOLUTION_DELAY_SECONDS,
    Endpoint,
    Resolver,
    Upstream,
    is_own,
)
from tests.beds.patience import PATIENCE


class Names:
    """A name service: what ``table`` holds is the answer, an error is raised, None never answers."""

    def __init__(self, **table: list[str] | Exception | None) -> None:
        self.table = {name.replace("_", "."): answer for name, answer in table.items()}
        self.asked: list[str] = []
        self.in_flight = self.most_in_flight = 0
        self._news = trio.lowlevel.ParkingLot()

    async def look_up(self, name: str, _threads: object = None) -> list[tuple[int, str]]:
        self.asked.append(name)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await trio.lowlevel.checkpoint()
            while (answer := self.table[name]) is None:
                await self._news.park()
            if isinstance(answer, Exception):
                raise answer
            return [(socket.AF_INET6 if ":" in ip else socket.AF_INET, ip) for ip in dict.fromkeys(answer)]
        finally:
            self.in_flight -= 1

    def says(self, name: str, answer: list[str] | Exception) -> None:
        """From now on, also to those who wait."""
        self.table[name] = answer
        self._news.unpark_all()


@asynccontextmanager
async def looking_up(resolver: Resolver, names: Names | None = None) -> AsyncIterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if names is not None:
            patch.setattr(dial, "look_up", names.look_up)
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


async def later(clock: MockClock, seconds: float) -> None:
    await wait_all_tasks_blocked()
    clock.jump(seconds)
    await wait_all_tasks_blocked()


async def test_a_name_service_that_does_not_answer_is_given_up_but_its_late_answer_counts(
    mock_clock: MockClock,
) -> None:
    names = Names(db_mesh=None)
    async with upstream("db.mesh:1", names=names) as target:
        await later(mock_clock, RESOLUTION_DELAY_SECONDS)
        with trio.move_on_after(0) as waits:
            await target.endpoints()
        assert waits.cancelled_caught
        await later(mock_clock, LOOKUP_SECONDS)
        with pytest.raises(Refused, match="no answer within 10 s"):
            await target.endpoints()
        for _ in range(5):
            await later(mock_clock, 3 * LOOKUP_SECONDS)
        assert (len(names.asked), names.in_flight) == (5, 5), "each is a thread that waits"
        names.says("db.mesh", ["10.0.0.1"])
        await wait_all_tasks_blocked()
        assert await order(target) == [A]
        await later(mock_clock, REFRESH_SECONDS)
        assert (len(names.asked), names.in_flight) == (6, 0)


async def test_a_look_up_that_hangs_does_not_hide_that_the_name_is_known_by_now(mock_clock: MockClock) -> None:
    """As that of a container that has not started yet, where the server outside, which is asked for it, never answers."""
    names = Names(db_mesh=None)
    async with upstream("db.mesh:1", names=names) as target:
        await later(mock_clock, AGAIN_SECONDS[0])
        await later(mock_clock, AGAIN_SECONDS[1] - 0.1)
        names.table["db.mesh"] = ["10.0.0.1"]  # look-ups that hang do not hear of it
        await wait_all_tasks_blocked()
        assert len(names.asked) == 2
        await later(mock_clock, 0.1)
        assert await order(target) == [A]
        assert (len(names.asked), names.in_flight) == (3, 0)


async def test_look_ups_that_hang_are_few_however_often_one_of_them_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is given up has its thread until it ends."""
    answer, fifth, asked = threading.Event(), threading.Event(), []

    def getaddrinfo(host: str, *_: object, **__: object) -> list[Any]:
        asked.append(host)
        if len(asked) == 5:
            fifth.set()
        if len(asked) % 2:
            answer.wait(PATIENCE)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(dial, "AGAIN_SECONDS", (0.01, 0.01))
    monkeypatch.setattr(dial, "MOST_LOOKUPS", 3)
    monkeypatch.setattr(dial, "REFRESH_SECONDS", 0.05)
    resolver = Resolver()
    resolver.name("db.mesh")
    try:
        async with looking_up(resolver):
            assert await trio.to_thread.run_sync(fifth.wait, PATIENCE), "the first, third and fifth hang"
            await trio.sleep(0.2)
            assert len(asked) == 5
    finally:
        answer.set()


@pytest.mark.parametrize("known", ["db.mesh:1", "10.0.0.1:1"])
async def test_a_silent_name_does_not_hold_up_one_that_is_resolved(known: str, autojump_clock: MockClock) -> None:
    names = Names(slow_mesh=None, db_mesh=["10.0.0.1"])
    async with upstream(known, "slow.mesh:1", names=names) as target:
        assert await order(target) == [A]
        assert trio.current_time() == pytest.approx(RESOLUTION_DELAY_SECONDS)
        assert await order(target) == [A]  # and only once
        assert trio.current_time() == pytest.approx(RESOLUTION_DELAY_SECONDS)


async def test_names_that_answer_at_the_same_time_are_all_used(mock_clock: MockClock) -> None:
    """The first answer is not all there is."""
    names = Names(db_mesh=["10.0.0.1"], other_mesh=None)
    async with upstream("db.mesh:1", "other.mesh:1", names=names) as target, trio.open_nursery() as nursery:
        got: list[list[str]] = []

        async def ask() -> None:
            got.append(await order(target))

        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        assert got == []
        names.says("other.mesh", ["10.0.0.2"])
        await wait_all_tasks_blocked()
        assert got == [[A, B]]


async def test_whoever_has_tried_all_there_is_waits_for_a_name_that_is_late(mock_clock: MockClock) -> None:
    names = Names(slow_mesh=None)
    async with upstream(A, "slow.mesh:1", names=names) as target, trio.open_nursery() as nursery:
        await later(mock_clock, RESOLUTION_DELAY_SECONDS)
        tried = await target.endpoints()
        got: list[list[str]] = []

        async def ask() -> None:
            got.append([str(endpoint) for endpoint in await target.endpoints(tried)])

        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        assert got == []
        names.says("slow.mesh", ["10.0.0.2"])
        await wait_all_tasks_blocked()
        assert got == [[B]]
        await ask()
        assert got[1:] == [[B]]
        assert await target.endpoints(await target.endpoints()) == []


async def test_whoever_has_tried_enough_waits_for_nothing(mock_clock: MockClock) -> None:
    addresses = [f"10.0.0.{number}:1" for number in range(MAX_ATTEMPTS)]
    async with upstream(*addresses, "slow.mesh:1", names=Names(slow_mesh=None)) as target:
        await later(mock_clock, RESOLUTION_DELAY_SECONDS)
        tried = await target.endpoints()
        assert len(tried) == MAX_ATTEMPTS
        with trio.move_on_after(0) as waits:
            assert await target.endpoints(tried) == []
        assert not waits.cancelled_caught


async def test_no_thread_is_left_for_a_look_up(mock_clock: MockClock) -> None:
    names = Names(db_mesh=RuntimeError("can't start new thread"))
    async with upstream("db.mesh:1", names=names) as target:
        with pytest.raises(Refused, match="can't start new thread"):
            await target.endpoints()


async def test_forty_look_ups_that_hang_leave_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that is in getaddrinfo cannot be cancelled, and trio's common limit is 40 of them."""
    answer = threading.Event()

    def getaddrinfo(host: str, *_: object, **__: object) -> list[Any]:
        if host.startswith("silent"):
            answer.wait(PATIENCE)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    resolver, later_one = Resolver(), Resolver()
    for number in range(45):
        resolver.name(f"silent{number}.mesh")
    target = Upstream("db", [Address("db.mesh", 1)], later_one, ())
    try:
        async with looking_up(resolver):
            await wait_all_tasks_blocked()
            async with looking_up(later_one):
                with trio.fail_after(PATIENCE / 2):
                    assert await order(target) == [A]
    finally:
        answer.set()


async def test_a_name_with_hundreds_of_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their number is bounded, and so many of one family do not hide the other."""
    many = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", (f"fd00::{number:x}", 0, 0, 0)) for number in range(300)]
    last = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [*many, *many, last])
    found = await dial.look_up("db.mesh")
    assert found[:3] == [(socket.AF_INET6, "fd00::0"), (socket.AF_INET, "10.0.0.1"), (socket.AF_INET6, "fd00::1")]
    assert len(found) == MAX_ADDRESSES


async def test_a_connection_tries_so_many_and_the_families_in_turn(mock_clock: MockClock) -> None:
    names = Names(db_mesh=[*(f"fd00::{number:x}" for number in range(40)), "10.0.0.1", "10.0.0.2"])
    async with upstream("db.mesh:1", names=names) as target:
        first = await target.endpoints()
        assert [str(one) for one in first[:5]] == ["[fd00::]:1", A, "[fd00::1]:1", B, "[fd00::2]:1"]
        assert len(first) == MAX_ATTEMPTS
        assert len(await target.endpoints(first[:10])) == MAX_ATTEMPTS - 10
        assert await target.endpoints(first) == []
        # Those that failed come last, whatever their family is.
        for one in first:
            if one.family == socket.AF_INET:
                one.failed()
        assert {one.family for one in await target.endpoints()} == {socket.AF_INET6}


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
    with listener() as app, await dial.connect(endpoint := place_of(app), "the app", []) as sock:
        assert sock.getpeername() == app.getsockname()
        assert not sock.getblocking()
        assert endpoint.failures == 0


async def test_a_place_where_nobody_listens() -> None:
    with listener() as app:
        endpoint = place_of(app)
    with pytest.raises(Refused) as refused:
        await dial.connect(endpoint, "the app", [])
    assert refused.value.reason is Reason.CONNECT_FAILED
    assert str(endpoint) in refused.value.detail
    assert "Connection refused" in refused.value.detail
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
            await dial.connect(endpoint, "the app", [])
    assert refused.value.reason is Reason.CONNECT_FAILED
    assert endpoint.failures == 1
    assert made[0].fileno() == -1  # nothing is left open


async def test_a_connection_to_ourselves_is_not_made() -> None:
    with listener() as own:
        endpoint = place_of(own)
        with pytest.raises(Refused, match="this sidecar itself"):
            await dial.connect(endpoint, "the app", [own.getsockname()])
        assert endpoint.failures == 1
        with own.accept()[0] as accepted, pytest.raises(ConnectionResetError):  # a clean end would be a call's
            accepted.recv(1)


async def test_no_descriptor_left(monkeypatch: pytest.MonkeyPatch) -> None:
    async def exhausted(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(sockets, "connect", exhausted)
    with pytest.raises(Refused, match="Too many open files"):
        await dial.connect(Endpoint(socket.AF_INET, ("10.0.0.1", 1)), "the app", [])


class Net:
    """Addresses that answer after so many seconds, never, or with an error."""

    def __init__(self, **after: float | OSError | None) -> None:
        self._after = {name.replace("_", "."): seconds for name, seconds in after.items()}
        self.tried: list[tuple[str, float]] = []
        self.open: list[socket.socket] = []
        self._ends: list[socket.socket] = []

    async def connect(self, family: int, address: tuple[Any, ...]) -> socket.socket:
        ip = address[0]
        self.tried.append((ip, round(trio.current_time(), 3)))
        after = self._after[f"ip{ip.rpartition('.')[2]}"]
        if isinstance(after, OSError):
            await trio.lowlevel.checkpoint()
            raise after
        if after is None:
            await trio.sleep_forever()
        with trio.CancelScope(shield=True):  # as when it has answered already
            await trio.sleep(after)
        with socket.create_server(("127.0.0.1", 0)) as app:
            sock = socket.create_connection(app.getsockname())
            self._ends.append(app.accept()[0])
            self.open.append(sock)
            return sock

    def close(self) -> None:
        for sock in (*self._ends, *self.open):
            sock.close()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Net]]:
    """Makes a :class:`Net` all there is to connect to."""
    made: list[Net] = []

    def make(**after: float | OSError | None) -> Net:
        made.append(net := Net(**after))
        monkeypatch.setattr(sockets, "connect", net.connect)
        return net

    yield make
    for net in made:
        net.close()


DOWN = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")


async def test_a_place_that_does_not_answer(autojump_clock: MockClock, world: Callable[..., Net]) -> None:
    world(ip1=None)
    failures: dict[Endpoint, Refused] = {}
    async with upstream(A) as target:
        assert await target.reach(5, failures) is None
    [(endpoint, refusal)] = failures.items()
    assert (refusal.reason, refusal.detail) == (
        Reason.CONNECT_FAILED,
        "cannot reach db's sidecar at 10.0.0.1:1: no answer within 5 s",
    )
    assert trio.current_time() == pytest.approx(5, abs=0.1)
    assert endpoint.failures == 1


async def test_a_silent_place_is_overtaken_and_comes_last_next_time(
    autojump_clock: MockClock, world: Callable[..., Net]
) -> None:
    net = world(ip1=None, ip2=0.1, ip3=0.1)
    failures: dict[Endpoint, Refused] = {}
    async with upstream(A, B, C) as target:
        found = await target.reach(5, failures)
        assert found is not None
        sock, endpoint = found
        assert (str(endpoint), sock) == (B, net.open[0])
        assert net.tried == [("10.0.0.1", 0.0), ("10.0.0.2", 0.25)]
        # Another connection may try it again, if this one needs it still; but it begins with another one.
        assert failures == {}
        assert await order(target) == [B, C, A]


async def test_one_that_is_merely_second_is_not_held_back(autojump_clock: MockClock, world: Callable[..., Net]) -> None:
    """The first one is slow and answers just after the second was begun."""
    net = world(ip1=0.3, ip2=0.3)
    async with upstream(A, B) as target:
        found = await target.reach(5, {})
        assert found is not None
        assert str(found[1]) == A
        assert len(net.tried) == 2
        assert [endpoint.failures for endpoint in await target.endpoints()] == [0, 0]


async def test_places_that_refuse_cost_no_time_and_all_are_told_of(
    autojump_clock: MockClock, world: Callable[..., Net]
) -> None:
    net = world(ip1=DOWN, ip2=None, ip3=DOWN)
    failures: dict[Endpoint, Refused] = {}
    async with upstream(A, B, C) as target:
        assert await target.reach(5, failures) is None
        assert [at for _, at in net.tried] == [0, 0, 0.25]
        assert [str(endpoint) for endpoint in failures] == [A, C, B]
        assert trio.current_time() == pytest.approx(5, abs=0.1)
        assert await target.reach(5, failures) is None  # none is left
        assert len(net.tried) == 3


async def test_sixteen_silent_places_cost_one_deadline(autojump_clock: MockClock, world: Callable[..., Net]) -> None:
    net = world(**{f"ip{number}": None for number in range(40)})
    async with upstream(*(f"10.0.0.{number}:1" for number in range(40))) as target:
        failures: dict[Endpoint, Refused] = {}
        assert await target.reach(5, failures) is None
        assert trio.current_time() == pytest.approx(5, abs=0.1)
        assert len(net.tried) == len(failures) == MAX_ATTEMPTS


async def test_nothing_is_found_in_time(autojump_clock: MockClock) -> None:
    async with upstream("db.mesh:1", names=Names(db_mesh=None)) as target:
        with pytest.raises(Refused, match=r"cannot find db's sidecar: db.mesh:1: no answer within 5 s") as refused:
            await target.reach(5, {})
    assert refused.value.reason is Reason.CONNECT_FAILED


async def test_two_that_answer_at_one_moment_leave_one_socket_open(
    autojump_clock: MockClock, world: Callable[..., Net]
) -> None:
    net = world(ip1=0.5, ip2=0.25)
    async with upstream(A, B) as target:
        found = await target.reach(5, {})
        assert found is not None
        assert len(net.open) == 2
        assert [sock for sock in net.open if sock.fileno() >= 0] == [found[0]]


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


# -- the one to use now, without a task --------------------------------------------------------------------------------


def waits_for_nothing() -> Steps[None]:
    raise AssertionError("it waits")
    yield


async def at_once(target: Upstream, failures: dict[dial.Endpoint, Refused] | None = None) -> bool:
    """Whether it is connected to its only endpoint."""
    found = await run(
        target.reach_only(trio.current_time() + 5, {} if failures is None else failures, waits_for_nothing)
    )
    if found is not None:
        found[0].close()
    return found is not None


async def test_the_best_follows_changes_failures_and_use(mock_clock: MockClock) -> None:
    names = Names(db=["10.0.0.1"])
    async with upstream("db:1", names=names) as target:
        assert target.best() is None, "nothing is known yet"
        (first,) = await target.endpoints()
        assert target.best() is first
        assert target.best() is first
        assert not target.has_another(first)
        first.failed()
        assert target.best() is None
        first.answered()
        names.says("db", ["10.0.0.2"])
        await later(mock_clock, REFRESH_SECONDS)
        assert str(target.best()) == "10.0.0.2:1"
        assert first.gone
        names.says("db", ["10.0.0.2", "10.0.0.3"])
        await later(mock_clock, REFRESH_SECONDS)
        second = target.best()
        assert second is not None
        assert target.has_another(second)
        with target.using(second):
            assert target.best() not in (None, second)


async def test_two_names_are_both_followed(mock_clock: MockClock) -> None:
    names = Names(spare=OSError(1, "none"))
    async with upstream("10.0.0.1:1", "spare:1", names=names) as target:
        await target.endpoints()
        first = target.best()
        assert first is not None
        names.says("spare", ["10.0.0.9"])
        await later(mock_clock, REFRESH_SECONDS)
        with target.using(first):
            assert str(target.best()) == "10.0.0.9:1"


async def test_a_single_endpoint_is_reached_at_once_and_several_are_not_tried_one_by_one() -> None:
    with sockets.listen("test", "127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        async with upstream(f"127.0.0.1:{port}") as target:
            assert await at_once(target)
        async with upstream(f"127.0.0.1:{port}", f"127.0.0.2:{port}") as target:
            assert not await at_once(target)


async def test_a_single_endpoint_that_fails_or_is_silent_is_in_failures(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    failures: dict[dial.Endpoint, Refused] = {}
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        async with upstream(f"127.0.0.1:{nobody.getsockname()[1]}") as target:
            assert not await at_once(target, failures)
    (refusal,) = failures.values()
    assert "Connection refused" in refusal.detail

    def silent(_family: int, _address: Any) -> tuple[socket.socket, bool]:
        sock, other = socket.socketpair()
        sock.setblocking(False)
        kept.append(other)
        while True:
            try:
                sock.send(b"x" * 65536)
            except BlockingIOError:
                return sock, False

    def nothing_to_say() -> Steps[None]:
        return
        yield

    kept: list[socket.socket] = []
    monkeypatch.setattr(sockets, "begin_to_connect", silent)
    async with upstream("127.0.0.1:1") as target:
        failures.clear()
        assert await run(target.reach_only(trio.current_time() + 5, failures, nothing_to_say)) is None
    (refusal,) = failures.values()
    assert "no answer in time" in refusal.detail
    for other in kept:
        other.close()


async def test_what_is_not_known_yet_is_not_reached_at_once(mock_clock: MockClock) -> None:
    async with upstream("db:1", names=Names(db=["10.0.0.1"])) as target:
        assert not await at_once(target)


# -- an address that a name has lost -----------------------------------------------------------------------------------


async def test_an_address_that_the_name_has_lost_is_forgotten_at_once() -> None:
    names = Names(db_mesh=["10.0.0.1"])
    async with upstream("db.mesh:1", names=names) as target:
        (endpoint,) = await target.endpoints()
        assert not await target.has_lost(endpoint)
        names.says("db.mesh", ["10.0.0.2"])
        assert await target.has_lost(endpoint)
        assert await order(target) == [B]
        assert endpoint.gone


async def test_a_name_that_has_no_address_any_more_loses_that_one_alone() -> None:
    names = Names(db_mesh=["10.0.0.1", "10.0.0.2"])
    async with upstream("db.mesh:1", names=names) as target:
        first, second = await target.endpoints()
        names.says("db.mesh", socket.gaierror(socket.EAI_NONAME, "unknown"))
        assert await target.has_lost(first)
        assert await order(target) == [str(second)]


@pytest.mark.parametrize(
    "answer", [socket.gaierror(socket.EAI_AGAIN, "later"), OSError(5, "broken"), RuntimeError("no thread")]
)
async def test_a_resolver_that_cannot_tell_loses_nothing(answer: Exception) -> None:
    names = Names(db_mesh=["10.0.0.1"])
    async with upstream("db.mesh:1", names=names) as target:
        (endpoint,) = await target.endpoints()
        names.says("db.mesh", answer)
        assert not await target.has_lost(endpoint)
        assert await order(target) == [A]


async def test_whether_an_address_is_lost_is_asked_past_look_ups_that_hang_but_not_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer, hanging, asked = threading.Event(), threading.Semaphore(0), []
    speaks = False

    def getaddrinfo(host: str, *_: object, **__: object) -> list[Any]:
        asked.append(host)
        if not speaks and len(asked) > 1:
            hanging.release()
            answer.wait(PATIENCE)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 0))]

    async def hang(count: int) -> None:
        for _ in range(count):
            assert await trio.to_thread.run_sync(lambda: hanging.acquire(timeout=PATIENCE))

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(dial, "AGAIN_SECONDS", (0.01,))
    monkeypatch.setattr(dial, "MOST_LOOKUPS", 2)
    monkeypatch.setattr(dial, "REFRESH_SECONDS", 0.05)
    resolver = Resolver()
    target = Upstream("db", [Address("db.mesh", 1)], resolver, ())
    try:
        async with looking_up(resolver):
            (endpoint,) = await target.endpoints()
            await hang(2)
            speaks = True
            with trio.fail_after(PATIENCE / 2):
                assert not await target.has_lost(endpoint)
                assert len(asked) == 1 + 2 + 1
            speaks = False
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(target.has_lost, endpoint)
                await hang(2)
                await trio.sleep(0.2)
                assert len(asked) == 1 + 2 + 1 + 2
                nursery.cancel_scope.cancel()
    finally:
        answer.set()


async def test_an_address_that_is_written_down_is_never_lost() -> None:
    async with upstream(A) as target:
        (endpoint,) = await target.endpoints()
        assert not await target.has_lost(endpoint)


async def test_of_two_names_both_must_have_lost_it() -> None:
    names = Names(db_mesh=["10.0.0.1"], db_too=["10.0.0.1"])
    async with upstream("db.mesh:1", "db.too:1", names=names) as target:
        (endpoint,) = await target.endpoints()
        names.says("db.mesh", ["10.0.0.2"])
        assert not await target.has_lost(endpoint)
        names.says("db.too", ["10.0.0.2"])
        assert await target.has_lost(endpoint)
