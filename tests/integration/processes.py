"""The old name of :mod:`tests.beds.processes`, until every test imports that."""

from tests.beds.processes import *  # noqa: F403
