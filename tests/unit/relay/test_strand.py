"""A generator that is run without a task: every wait, every way to end it, and what it gives back."""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing
from trio.testing import MockClock

from sidecar.relay.duplex import Buffer, Duplex, Ending, How
from sidecar.relay.poller import READABLE, WRITABLE
from sidecar.relay.relay import Relay
from sidecar.relay.strand import Called, Carry, Ready, Steps, Stopped, Strand, run
from tests.beds.patience import PATIENCE
from tests.beds.relay import fill, tcp_pair
from tests.beds.simulation import FakeChannel, record, records

CLOSE_NOTIFY = record(ord("c"))


class Runner:
    """Strands on one relay, and what came of them."""

    def __init__(self, nursery: trio.Nursery, stack: ExitStack) -> None:
        self.relay = Relay(lambda size: Buffer(bytearray(size)))
        self.nursery, self.stack = nursery, stack
        self.said: list[Any] = []
        self.bugs: list[Exception | None] = []
        self.ended: list[str] = []

    def start(self, steps: Callable[[], Steps[None]]) -> Strand:
        def whole() -> Steps[None]:
            try:
                yield from steps()
            except BaseException as error:
                self.said.append(type(error).__name__)
                raise
            finally:
                self.said.append("given back")

        strand = Strand(self.relay, self.nursery, whole(), self.bugs.append)
        strand.start()
        return strand

    def pair(self) -> tuple[socket.socket, socket.socket]:
        return self.stack.enter_context(tcp_pair())

    async def settle(self) -> None:
        with trio.fail_after(PATIENCE):
            await trio.testing.wait_all_tasks_blocked(0.001)


@pytest.fixture
async def runner() -> AsyncIterator[Runner]:
    async with running() as one:
        yield one


@asynccontextmanager
async def running() -> AsyncIterator[Runner]:
    with ExitStack() as stack:
        async with trio.open_nursery() as nursery:
            one = Runner(nursery, stack)
            nursery.start_soon(one.relay.run)
            yield one
            nursery.cancel_scope.cancel()


async def test_one_that_waits_for_nothing_is_over_at_once(runner: Runner) -> None:
    def steps() -> Steps[None]:
        runner.said.append("here")
        return
        yield

    runner.start(steps)
    assert runner.said == ["here", "given back"]
    assert runner.bugs == [None]


async def test_it_waits_for_a_socket(runner: Runner) -> None:
    near, far = runner.pair()

    def steps() -> Steps[None]:
        for _ in range(2):
            assert (yield Ready(near))
            runner.said.append(near.recv(10))

    runner.start(steps)
    await runner.settle()
    assert runner.said == []
    far.send(b"one")
    await runner.settle()
    far.send(b"two")
    await runner.settle()
    assert runner.said == [b"one", b"two", "given back"]
    assert not runner.relay._links


async def test_it_waits_for_room(runner: Runner) -> None:
    near, far = runner.pair()
    fill(near)

    def steps() -> Steps[None]:
        assert (yield Ready(near, WRITABLE))
        runner.said.append("room")

    runner.start(steps)
    await runner.settle()
    assert runner.said == []
    with trio.fail_after(PATIENCE):
        while "room" not in runner.said:
            far.recv(1 << 20)
            await trio.sleep(0.01)


async def test_the_end_of_a_wait_is_noticed_within_a_second(autojump_clock: MockClock) -> None:
    async with running() as runner:
        near, _ = runner.pair()

        def steps() -> Steps[None]:
            runner.said.append((yield Ready(near, READABLE, trio.current_time() + 5)))

        runner.start(steps)
        await trio.sleep(4.9)
        assert runner.said == []
        await trio.sleep(1.2)
        assert runner.said == [False, "given back"]


async def test_it_is_resumed_by_whoever_calls_back(runner: Runner) -> None:
    calls: list[Callable[[bool], object]] = []

    def begin(call: Callable[[bool], object]) -> Callable[[], object]:
        calls.append(call)
        return lambda: runner.ended.append("forgone")

    def steps() -> Steps[None]:
        runner.said.append((yield Called(begin)))
        runner.said.append((yield Called(begin)))

    strand = runner.start(steps)
    calls.pop()(True)
    assert runner.said == [True]
    calls.pop()(False)
    assert runner.said == [True, False, "given back"]
    strand.stop()
    assert runner.ended == [], "nobody waits any more"


async def test_what_takes_time_is_run_by_a_task_for_so_long(runner: Runner) -> None:
    async def answer() -> str:
        await trio.lowlevel.checkpoint()
        return "answer"

    async def fault() -> None:
        raise OSError("a fault")

    def steps() -> Steps[None]:
        runner.said.append((yield answer))
        try:
            yield fault
        except OSError as error:
            runner.said.append(str(error))
        runner.said.append((yield answer))

    runner.start(steps)
    await runner.settle()
    assert runner.said == ["answer", "a fault", "answer", "given back"]
    assert runner.bugs == [None]


async def test_it_is_carried_to_its_end(runner: Runner) -> None:
    (net, far_net), (app, far_app) = runner.pair(), runner.pair()
    far_net.send(records(b"hello") + CLOSE_NOTIFY)
    far_app.shutdown(socket.SHUT_WR)

    def steps() -> Steps[None]:
        duplex = Duplex(FakeChannel(), runner.relay.buffers)
        runner.said.append((yield Carry(duplex, net, app, None, None)))

    runner.start(steps)
    await runner.settle()
    assert runner.said == [Ending(How.OK), "given back"]
    assert far_app.recv(100) == b"hello"


async def test_a_thousand_answers_at_once_are_no_recursion(runner: Runner) -> None:
    def steps() -> Steps[None]:
        for _ in range(2000):
            with tcp_pair() as (net, far_net), tcp_pair() as (app, far_app):
                far_net.send(CLOSE_NOTIFY)
                far_app.shutdown(socket.SHUT_WR)
                yield Carry(Duplex(FakeChannel(), runner.relay.buffers), net, app, None, None)
        runner.said.append("done")

    runner.start(steps)
    await runner.settle()
    assert runner.said == ["done", "given back"]


def waiting_ways(runner: Runner) -> dict[str, Callable[[], Steps[None]]]:
    (net, _), (app, _) = runner.pair(), runner.pair()

    def ready() -> Steps[None]:
        yield Ready(net)

    def carried() -> Steps[None]:
        yield Carry(Duplex(FakeChannel(), runner.relay.buffers), net, app, None, None)

    def called() -> Steps[None]:
        yield Called(lambda _: lambda: runner.ended.append("forgone"))

    def task() -> Steps[None]:
        yield trio.sleep_forever

    return {"ready": ready, "carried": carried, "called": called, "task": task}


@pytest.mark.parametrize("way", ["ready", "carried", "called", "task"])
async def test_it_is_stopped_wherever_it_waits(runner: Runner, way: str) -> None:
    strand = runner.start(waiting_ways(runner)[way])
    await runner.settle()
    assert runner.said == []
    strand.stop()
    strand.stop()
    await runner.settle()
    assert runner.said == ["Stopped", "given back"]
    assert runner.bugs == [None]
    assert not runner.relay._links
    assert runner.ended == ["forgone"] * (way == "called")


@pytest.mark.parametrize("way", ["ready", "carried", "called"])
async def test_where_no_task_waits_it_is_over_when_stop_returns(runner: Runner, way: str) -> None:
    strand = runner.start(waiting_ways(runner)[way])
    strand.stop()
    assert runner.said == ["Stopped", "given back"]


async def test_an_answer_that_has_come_is_handed_over_before_it_is_stopped(runner: Runner) -> None:
    """Otherwise the socket that a task has just connected would be lost."""
    strand: Strand

    async def connected() -> str:
        strand.stop()
        return "a socket"

    def steps() -> Steps[None]:
        runner.said.append((yield connected))
        yield trio.sleep_forever

    strand = runner.start(steps)
    await runner.settle()
    assert runner.said == ["a socket", "Stopped", "given back"]


async def test_one_that_stops_itself_goes_on_until_it_waits(runner: Runner) -> None:
    strand: Strand | None = None

    def steps() -> Steps[None]:
        yield trio.lowlevel.checkpoint
        assert strand is not None
        strand.stop()
        runner.said.append("goes on")
        yield trio.sleep_forever

    strand = runner.start(steps)
    await runner.settle()
    assert runner.said == ["goes on", "Stopped", "given back"]


async def test_a_bug_ends_it_alone(runner: Runner) -> None:
    near, far = runner.pair()

    def bad() -> Steps[None]:
        yield Ready(near)
        raise RuntimeError("a bug")

    runner.start(bad)
    far.send(b"x")
    await runner.settle()
    (bug,) = runner.bugs
    assert str(bug) == "a bug"
    assert runner.said == ["RuntimeError", "given back"]


async def test_when_everything_ends_it_is_stopped_too() -> None:
    with ExitStack() as stack:
        async with trio.open_nursery() as nursery:
            one = Runner(nursery, stack)
            one.start(waiting_ways(one)["task"])
            await one.settle()
            nursery.cancel_scope.cancel()
    assert one.said == ["Stopped", "given back"]


# -- in a task ---------------------------------------------------------------------------------------------------------


async def test_the_same_generator_runs_in_a_task(autojump_clock: MockClock) -> None:
    said: list[str] = []

    def called_soon(call: Callable[[bool], object]) -> Callable[[], object]:
        trio.lowlevel.current_trio_token().run_sync_soon(call, True)
        return lambda: said.append("forgone")

    with tcp_pair() as (near, far):

        def steps() -> Steps[str]:
            assert (yield Ready(near, WRITABLE))
            assert not (yield Ready(near, READABLE, trio.current_time() + 1))
            far.send(b"x")
            assert (yield Ready(near, READABLE, math.inf))
            yield trio.lowlevel.checkpoint
            assert (yield Called(called_soon)) is True
            assert said == ["forgone"]
            return "done"

        assert await run(steps()) == "done"


async def test_a_task_that_is_cancelled_ends_it() -> None:
    said: list[str] = []
    with tcp_pair() as (near, _):

        def steps() -> Steps[None]:
            try:
                yield Ready(near)
            except trio.Cancelled:
                said.append("cancelled")
                raise

        with trio.move_on_after(0.01) as limit:
            await run(steps())
    assert limit.cancelled_caught
    assert said == ["cancelled"]


def test_who_is_stopped_is_no_fault() -> None:
    assert not issubclass(Stopped, Exception)
