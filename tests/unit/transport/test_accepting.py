"""The accept loop: what it waits for, what it ignores, and that it neither spins nor ends when nothing is left."""

from __future__ import annotations

import errno
import itertools
import socket
from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from sidecar.transport import accepting
from sidecar.transport.accepting import ACCEPT_PAUSE_SECONDS, ACCEPTS_A_TICK, Room, accept_all
from sidecar.transport.strangers import SAFE_SECONDS, Stranger
from tests.beds.patience import PATIENCE


class Listener(socket.socket):
    """Fails as it is told to, then accepts as it does."""

    def __init__(self) -> None:
        super().__init__(socket.AF_INET, socket.SOCK_STREAM)
        self.bind(("127.0.0.1", 0))
        self.listen(100)
        self.setblocking(False)
        self.failures: list[int] = []
        self.tries = 0

    def accept(self) -> tuple[socket.socket, object]:
        self.tries += 1
        if self.failures:
            raise OSError(self.failures.pop(0), "none left")
        return super().accept()


class Loop:
    """What a loop reported and accepted."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.reports: list[str | None] = []
        self.accepted: list[socket.socket] = []
        self.rooms = 0
        self.room_left = 0

    def make_room(self) -> bool:
        self.rooms += 1
        self.room_left -= 1
        return self.room_left >= 0

    async def run(self) -> None:
        await accept_all(self.listener, self.accepted.append, self.reports.append, self.make_room)

    def call(self) -> socket.socket:
        return socket.create_connection(self.listener.getsockname())


@pytest.fixture
def loop() -> Iterator[Loop]:
    with Listener() as listener:
        made = Loop(listener)
        yield made
        for sock in made.accepted:
            sock.close()


async def test_it_waits_for_callers(loop: Loop, nursery: trio.Nursery) -> None:
    nursery.start_soon(loop.run)
    for number in range(1, 4):
        await wait_all_tasks_blocked(0.01)
        with loop.call():
            with trio.fail_after(PATIENCE):
                while len(loop.accepted) < number:
                    await trio.lowlevel.checkpoint()
    assert loop.reports == [None] * 3
    assert loop.rooms == 0


@pytest.mark.parametrize(
    "code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EINVAL, errno.EBADF, errno.EIO]
)
async def test_when_nothing_is_left_it_pauses_and_goes_on(
    code: int, loop: Loop, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    """Also for a reason that nobody thought of: it must not spin."""
    loop.listener.failures = [code] * 3
    with loop.call():
        nursery.start_soon(loop.run)
        for expected in (1, 2, 3):
            await wait_all_tasks_blocked(0.01)
            assert (loop.listener.tries, loop.rooms) == (expected, expected)
            mock_clock.jump(ACCEPT_PAUSE_SECONDS)
        await wait_all_tasks_blocked(0.01)
    report = f"cannot accept connections: none left; {accepting._ADVICE}"
    assert "ulimit -n" in report
    assert loop.reports == [report] * 3 + [None]
    assert len(loop.accepted) == 1


async def test_if_room_can_be_made_it_does_not_pause(loop: Loop, nursery: trio.Nursery, mock_clock: MockClock) -> None:
    """This clock stands still. What was mended is not reported."""
    loop.listener.failures, loop.room_left = [errno.EMFILE] * 3, 3
    with loop.call():
        nursery.start_soon(loop.run)
        await wait_all_tasks_blocked(0.01)
    assert (loop.reports, loop.rooms, len(loop.accepted)) == ([None], 3, 1)


@pytest.mark.parametrize(
    "code",
    [
        errno.ECONNABORTED,
        errno.EPERM,
        errno.EPROTO,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
    ],
)
async def test_a_caller_that_gave_up_in_the_backlog_is_passed_over(
    code: int, loop: Loop, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    """Without a pause: this clock stands still."""
    loop.listener.failures = [code] * 3
    with loop.call():
        nursery.start_soon(loop.run)
        await wait_all_tasks_blocked(0.01)
    assert loop.reports == [None]
    assert (len(loop.accepted), loop.rooms) == (1, 0)


async def test_however_many_gave_up_others_have_their_turn(loop: Loop, nursery: trio.Nursery) -> None:
    loop.listener.failures = [errno.ECONNABORTED] * 1000
    nursery.start_soon(loop.run)
    await trio.lowlevel.checkpoint()
    await trio.lowlevel.checkpoint()
    assert loop.listener.tries < 10
    await wait_all_tasks_blocked(0.01)
    assert loop.listener.failures == []


async def test_a_crowd_is_accepted_in_portions(loop: Loop, nursery: trio.Nursery) -> None:
    callers = [loop.call() for _ in range(5 * ACCEPTS_A_TICK)]
    nursery.start_soon(loop.run)
    seen = [0]
    with trio.fail_after(PATIENCE):
        while seen[-1] < len(callers):
            await trio.lowlevel.checkpoint()
            seen.append(len(loop.accepted))
    # A tick runs its tasks in any order, so two portions may come between two looks.
    assert max(after - before for before, after in itertools.pairwise(seen)) <= 2 * ACCEPTS_A_TICK
    for caller in callers:
        caller.close()


# -- room for strangers ------------------------------------------------------------------------------------------------


class Guarded:
    """A loop with room for a few strangers, who stay until they are cut."""

    def __init__(self, listener: Listener, limit: int) -> None:
        self.listener = listener
        self.room = Room(limit)
        self.inside: list[Stranger] = []
        self.cut: list[int] = []

    def serve(self, sock: socket.socket) -> None:
        sock.close()
        number = len(self.inside)
        self.inside.append(self.room.enter(sock, lambda: self.cut.append(number)))

    async def run(self) -> None:
        await accept_all(self.listener, self.serve, lambda _: None, self.room.cut_one, self.room)


@pytest.fixture
def guarded(loop: Loop) -> Guarded:
    return Guarded(loop.listener, 2)


async def test_newcomers_wait_until_somebody_may_be_cut(
    guarded: Guarded, loop: Loop, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    nursery.start_soon(guarded.run)
    for _ in range(3):
        loop.call().close()
    await wait_all_tasks_blocked(0.01)
    mock_clock.jump(SAFE_SECONDS * 0.9)
    await wait_all_tasks_blocked(0.01)
    assert (len(guarded.inside), guarded.cut) == (2, [])
    mock_clock.jump(SAFE_SECONDS * 0.1)
    await wait_all_tasks_blocked(0.01)
    assert (len(guarded.inside), guarded.cut) == (3, [0])


async def test_a_crowd_before_a_full_room_comes_in_in_portions_not_one_by_one(
    loop: Loop, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    """At one a tick, a flood of newcomers is faster than that, and fills the backlog: who is honest waits in it, too."""
    size = 2 * ACCEPTS_A_TICK
    guarded = Guarded(loop.listener, size)

    def serve_and_leave(sock: socket.socket) -> None:
        sock.close()
        stranger = guarded.room.enter(sock, lambda: guarded.room.leave(stranger))
        guarded.inside.append(stranger)

    guarded.serve = serve_and_leave  # type: ignore[method-assign]
    nursery.start_soon(guarded.run)
    for _ in range(size):
        loop.call().close()
    await wait_all_tasks_blocked(0.01)
    assert len(guarded.inside) == size
    mock_clock.jump(SAFE_SECONDS)
    for _ in range(size):
        loop.call().close()
    ticks = 0
    with trio.fail_after(PATIENCE):
        while len(guarded.inside) < 2 * size:
            await trio.lowlevel.checkpoint()
            ticks += 1
    assert ticks <= size / ACCEPTS_A_TICK + 2


async def test_nobody_is_cut_before_a_caller_waits(
    guarded: Guarded, loop: Loop, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    nursery.start_soon(guarded.run)
    for _ in range(2):
        loop.call().close()
    await wait_all_tasks_blocked(0.01)
    mock_clock.jump(SAFE_SECONDS * 10)
    await wait_all_tasks_blocked(0.01)
    assert (len(guarded.inside), guarded.cut) == (2, [])


async def test_newcomers_come_in_when_somebody_has_left(
    guarded: Guarded, loop: Loop, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    """And the twin: who is known or busy stays counted."""
    nursery.start_soon(guarded.run)
    for _ in range(4):
        loop.call().close()
    await wait_all_tasks_blocked(0.01)
    guarded.room.known(guarded.inside[0])
    guarded.room.busy(guarded.inside[0])
    await wait_all_tasks_blocked(0.01)
    assert len(guarded.inside) == 2
    for number in range(2):
        guarded.room.leave(guarded.inside[number])
        await wait_all_tasks_blocked(0.01)
        assert len(guarded.inside) == 3 + number
    assert guarded.cut == []


async def test_two_loops_share_a_room(
    guarded: Guarded, loop: Loop, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    with Listener() as second:
        beside = Guarded(second, 1)
        beside.room = guarded.room
        nursery.start_soon(guarded.run)
        nursery.start_soon(beside.run)
        for _ in range(3):
            loop.call().close()
            socket.create_connection(second.getsockname()).close()
        await wait_all_tasks_blocked(0.01)
        assert len(guarded.inside) + len(beside.inside) == 2
        while waiting := 6 - len(guarded.inside) - len(beside.inside):
            for one in (*guarded.inside, *beside.inside):
                guarded.room.leave(one)
            await wait_all_tasks_blocked(0.01)
            assert 6 - len(guarded.inside) - len(beside.inside) < waiting
        nursery.cancel_scope.cancel()


async def test_without_descriptors_strangers_are_cut_though_there_is_room(
    guarded: Guarded, loop: Loop, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    nursery.start_soon(guarded.run)
    loop.call().close()
    await wait_all_tasks_blocked(0.01)
    mock_clock.jump(SAFE_SECONDS)
    loop.listener.failures = [errno.EMFILE]
    loop.call().close()
    await wait_all_tasks_blocked(0.01)
    assert (len(guarded.inside), guarded.cut) == (2, [0])


async def test_a_caller_without_an_address_is_counted() -> None:
    room = Room(1)
    left, right = socket.socketpair()
    with left, right:
        room.enter(left, lambda: None)
    assert room.strangers.full
