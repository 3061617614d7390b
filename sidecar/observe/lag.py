"""How late the loop is: what a connection waits for beside its own work. I/O: a timer."""

from __future__ import annotations

import trio

from sidecar.observe.exposition import Histogram

SECONDS = 1.0


async def measure(lag: Histogram) -> None:
    """Adds how late a timer was, once a second, until cancelled."""
    while True:
        due = trio.current_time() + SECONDS
        await trio.sleep_until(due)
        lag.add(trio.current_time() - due)
