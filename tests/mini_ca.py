"""The old name of :mod:`tests.beds.store`, until every test imports that."""

from tests.beds import clock
from tests.beds.certificates import *  # noqa: F403
from tests.beds.clock import NOW as NOW
from tests.beds.store import *  # noqa: F403


class Clock(clock.Clock):
    def __call__(self) -> int:  # type: ignore[override]
        return self.seconds()
