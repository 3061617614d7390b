"""The old name of :mod:`tests.beds.mesh`, until every test imports that."""

from tests.beds.mesh import *  # noqa: F403
