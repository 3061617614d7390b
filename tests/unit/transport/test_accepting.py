"""The accept loop: what it waits for, what it ignores, and that it neither spins nor ends when nothing is left."""

from __future__ import annotations

import errno
import itertools
import socket
from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from sidecar.transport.accepting import ACCEPT_PAUSE_SECONDS, ACCEPTS_A_TICK, accept_all
from tests.beds.mesh import PATIENCE


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

    def make_room(self) -> None:
        self.rooms += 1

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
    assert loop.reports == ["cannot accept connections: none left"] * 3 + [None]
    assert len(loop.accepted) == 1


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
