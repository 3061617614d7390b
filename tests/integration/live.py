"""The old name of :mod:`tests.beds.live`, until every test imports that."""

from tests.beds.live import *  # noqa: F403
