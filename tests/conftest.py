"""For all tests: hypothesis sets no time for one example, since a loaded machine is slow."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
