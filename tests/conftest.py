"""For all tests: hypothesis sets no time for examples, since a loaded machine is slow; in which order they run, and how many
at once."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it puts in the background so, and every program that a test starts would ignore the signal too.
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("no deadline", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no deadline")

LONG = ("integration", "protocols", "attacks")
"""Directories with files that take long. Files are what ``make test`` gives to its processes: one that begins last would
be waited for."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        found = [number for number, name in enumerate(LONG) if f"tests/{name}/" in item.nodeid]
        return found[0] if found else len(LONG)

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two for each core: those that drive programs wait most of their time."""
    return 2 * (os.cpu_count() or 1)
