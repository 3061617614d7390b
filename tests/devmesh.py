"""The old name of :mod:`tests.beds.dev_mesh`, until every test imports that."""

from tests.beds.dev_mesh import *  # noqa: F403
