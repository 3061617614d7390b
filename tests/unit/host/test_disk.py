"""Work on files that may never end: the loop goes on, one thread at most hangs, and what works again is used again."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from sidecar.host import disk
from sidecar.host.disk import PATIENCE, Disk, StalledError


class Hanging:
    """Work that goes on until it is released."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        self.released.wait()
        return "done"

    async def release(self) -> None:
        self.released.set()
        while disk.threads().borrowed_tokens:
            await trio.lowlevel.checkpoint()


async def gives_up(one: Disk, work: Hanging, clock: MockClock) -> float:
    """Work is given up; returns after how many seconds. Not by autojump, which would pass while other threads work."""
    began = trio.current_time()

    async def run() -> None:
        with pytest.raises(StalledError, match="does not answer"):
            await one.run(work)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked(0.05)
        clock.jump(min(60.0, trio.lowlevel.current_statistics().seconds_to_next_deadline))
    return trio.current_time() - began


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    one = Hanging()
    yield one
    one.released.set()


async def test_work_returns_or_raises() -> None:
    one = Disk()

    def fails() -> None:
        raise ZeroDivisionError

    assert await one.run(lambda: 1) == 1
    with pytest.raises(ZeroDivisionError):
        await one.run(fails)
    assert await one.run(threading.get_ident) != threading.get_ident()
    assert not one.busy


async def test_work_that_hangs_is_given_up_and_no_thread_is_sent_after_it(
    hanging: Hanging, mock_clock: MockClock
) -> None:
    one = Disk()
    assert await gives_up(one, hanging, mock_clock) == pytest.approx(PATIENCE)
    for _ in range(3):
        with pytest.raises(StalledError, match="does not answer"):
            await one.run(hanging)  # at once: the clock stands still
    assert hanging.calls == 1
    assert await Disk().run(lambda: 1) == 1, "another disk's"
    await hanging.release()
    assert await one.run(lambda: 1) == 1


async def test_a_shorter_patience(hanging: Hanging, mock_clock: MockClock) -> None:
    assert await gives_up(Disk(0.5), hanging, mock_clock) == pytest.approx(0.5)


async def test_without_a_thread_it_is_stalled_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    one = Disk()
    with monkeypatch.context() as patch:
        patch.setattr(trio.to_thread, "run_sync", fails)
        with pytest.raises(StalledError, match="can't start new thread"):
            await one.run(lambda: 1)
    assert await one.run(lambda: 1) == 1


async def test_a_bug_is_no_stall() -> None:
    def fails() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        await Disk().run(fails)


async def test_cancelled_before_it_began_it_is_not_busy(hanging: Hanging) -> None:
    one = Disk()
    with trio.CancelScope() as scope:
        scope.cancel()
        await one.run(hanging)
    assert (one.busy, hanging.calls) == (False, 0)
