"""For all tests: hypothesis sets no time for examples, since a loaded machine is slow; and in which order they run."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

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
