"""A time limit. That nothing of it stays is shown where it matters: tests/integration/test_memory_of_handshakes.py."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from sidecar.host.deadline import Deadline


async def test_what_is_done_in_time_goes_on(autojump_clock: MockClock) -> None:
    with Deadline.after(2) as scope:
        await trio.sleep(1)
    assert not scope.cancelled_caught


async def test_what_is_not_is_ended(autojump_clock: MockClock) -> None:
    with pytest.raises(trio.TooSlowError), Deadline(trio.current_time() + 2):
        await trio.sleep(3)
    assert trio.current_time() == 2


async def test_another_fault_and_another_s_cancellation_pass(autojump_clock: MockClock) -> None:
    with pytest.raises(ValueError, match="mine"), Deadline.after(2):
        raise ValueError("mine")
    with trio.move_on_after(1) as outer, Deadline.after(2):
        await trio.sleep(3)
    assert outer.cancelled_caught
