"""Several addresses, tried one after the other but not one behind the other: the first that works wins, and nothing is left
open."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from sidecar.transport import sockets
from sidecar.transport.staggered import DELAY_SECONDS, AllFailedError, first, interleaved
from tests.beds.patience import PATIENCE

NEVER = 3600.0


class Net:
    """Addresses by name: each answers after its seconds, or fails after them."""

    def __init__(self, **answers: float | tuple[float, Exception]) -> None:
        self._answers = answers
        self.tried: list[tuple[str, float]] = []
        self.open: set[str] = set()
        self.cancelled: set[str] = set()

    async def connect(self, name: str) -> str:
        self.tried.append((name, trio.current_time()))
        answer = self._answers[name]
        seconds, fault = (answer, None) if isinstance(answer, float) else answer
        try:
            await trio.sleep(seconds)
        except trio.Cancelled:
            self.cancelled.add(name)
            raise
        if fault is not None:
            raise fault
        self.open.add(name)
        return name

    def close(self, name: str) -> None:
        self.open.remove(name)

    async def first(self) -> str:
        return await first(self._answers, self.connect, self.close)

    def starts(self) -> dict[str, float]:
        return {name: at - self.tried[0][1] for name, at in self.tried}


async def test_the_first_alone_is_tried_where_it_works(autojump_clock: MockClock) -> None:
    net = Net(a=0.2, b=0.0)
    assert await net.first() == "a"
    assert net.starts() == {"a": 0}
    assert net.open == {"a"}


async def test_a_silent_address_holds_nobody_up(autojump_clock: MockClock) -> None:
    net = Net(silent=NEVER, good=0.1)
    begin = trio.current_time()
    assert await net.first() == "good"
    assert trio.current_time() - begin == pytest.approx(DELAY_SECONDS + 0.1)
    assert (net.open, net.cancelled) == ({"good"}, {"silent"})


async def test_after_a_failure_the_next_is_tried_at_once(autojump_clock: MockClock) -> None:
    net = Net(refused=(0.0, OSError("refused")), soon=(0.01, OSError("unreachable")), good=0.0)
    assert await net.first() == "good"
    assert net.starts() == {"refused": 0, "soon": 0, "good": pytest.approx(0.01)}


async def test_a_slow_address_wins_if_the_later_ones_are_slower(autojump_clock: MockClock) -> None:
    net = Net(slow=0.6, slower=0.6, slowest=0.6)
    assert await net.first() == "slow"
    assert net.starts() == {"slow": 0, "slower": DELAY_SECONDS, "slowest": 2 * DELAY_SECONDS}
    assert net.cancelled == {"slower", "slowest"}


async def test_all_fail(autojump_clock: MockClock) -> None:
    net = Net(a=(0.4, OSError("late")), b=(0.0, OSError("soon")))
    with pytest.raises(AllFailedError, match=r"^soon; late$") as failed:
        await net.first()
    assert [str(one) for one in failed.value.faults] == ["soon", "late"]


async def test_there_is_nothing_to_try() -> None:
    with pytest.raises(AllFailedError, match="nothing to try") as failed:
        await Net().first()
    assert failed.value.faults == ()


async def test_of_two_at_the_same_moment_one_is_closed(autojump_clock: MockClock) -> None:
    net = Net(a=0.5, b=0.25)
    assert await net.first() in ("a", "b")
    assert len(net.open) == 1


async def test_one_that_succeeds_though_it_was_cancelled_is_closed(autojump_clock: MockClock) -> None:
    """An attempt that ends in C code, or shields its last step, comes back with a result all the same."""
    net = Net(a=0.5, b=0.1)

    async def stubborn(name: str) -> str:
        with trio.CancelScope(shield=name == "a"):
            await net.connect(name)
        return name

    assert await first("ab", stubborn, net.close) == "b"
    assert net.open == {"b"}


async def test_a_deadline_of_the_caller_s_leaves_nothing_open(autojump_clock: MockClock) -> None:
    net = Net(a=NEVER, b=NEVER)
    with pytest.raises(trio.TooSlowError), trio.fail_after(1):
        await net.first()
    assert (net.open, net.cancelled) == (set(), {"a", "b"})


async def test_a_result_at_the_moment_of_a_cancellation_is_the_caller_s(autojump_clock: MockClock) -> None:
    """It is returned, not lost: the caller closes it, as it closes what it got a moment before."""
    net, got = Net(a=0.5), ""
    with trio.CancelScope() as scope:

        async def connect(name: str) -> str:
            with trio.CancelScope(shield=True):
                await net.connect(name)
            scope.cancel()
            return name

        got = await first("a", connect, net.close)
        await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert (got, net.open) == ("a", {"a"})


async def test_a_bug_is_raised_as_it_is_and_leaves_nothing_open(autojump_clock: MockClock) -> None:
    net = Net(bug=(0.3, ValueError("a bug")), silent=NEVER)
    with pytest.raises(ValueError, match="a bug"):
        await net.first()
    assert net.cancelled == {"silent"}


async def test_a_bug_at_the_moment_of_success_leaves_nothing_open(autojump_clock: MockClock) -> None:
    net = Net(good=0.5, bug=(0.5, ValueError("a bug")))

    async def stubborn(name: str) -> str:
        with trio.CancelScope(shield=name == "bug"):
            await net.connect(name)
        return name

    with pytest.raises(ValueError, match="a bug"):
        await first(("good", "bug"), stubborn, net.close)
    assert net.open == set()


async def test_what_counts_as_a_fault_is_the_caller_s_choice(autojump_clock: MockClock) -> None:
    net = Net(odd=(0.0, ValueError("not today")), good=0.0)
    assert await first(("odd", "good"), net.connect, net.close, faults=(ValueError,)) == "good"


async def test_with_real_sockets() -> None:
    """A closed port, then one that listens; every socket but the winner is closed."""
    made: list[socket.socket] = []

    def connect(address: tuple[str, int]) -> Awaitable[socket.socket]:
        return _noting(made, lambda: sockets.connect(socket.AF_INET, address))

    with socket.socket() as nobody, sockets.listen("test", "127.0.0.1", 0) as listener:
        nobody.bind(("127.0.0.1", 0))
        with trio.fail_after(PATIENCE):
            sock = await first((nobody.getsockname(), listener.getsockname()), connect, sockets.hard_close)
        with sock:
            assert sock.getpeername() == listener.getsockname()
    assert made == [sock]


async def _noting(made: list[socket.socket], connect: Callable[[], Awaitable[socket.socket]]) -> socket.socket:
    sock = await connect()
    made.append(sock)
    return sock


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", ""),
        ("6a", "6a"),
        ("6a 6b 6c 4a", "6a 4a 6b 6c"),
        ("4a 4b 6a 6b", "4a 6a 4b 6b"),
        ("4a 6a 4a", "4a 6a"),
    ],
)
def test_the_families_take_turns(given: str, expected: str) -> None:
    assert interleaved(given.split(), lambda address: address[0]) == expected.split()
