"""How late the loop is is measured once a second."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from sidecar.observe import lag
from sidecar.observe.exposition import Histogram


async def test_a_loop_that_was_held_up_is_late(mock_clock: MockClock) -> None:
    found = Histogram()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lag.measure, found)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(1.0)
        await trio.testing.wait_all_tasks_blocked()
        assert (sum(found.counts), found.sum) == (1, 0)
        mock_clock.jump(1.2)  # as if something computed for so long
        await trio.testing.wait_all_tasks_blocked()
        assert sum(found.counts) == 2
        assert 0.19 < found.sum < 0.21
        nursery.cancel_scope.cancel()
