"""The old name of :mod:`tests.beds.certificates`, until every test imports that."""

from tests.beds.certificates import *  # noqa: F403
