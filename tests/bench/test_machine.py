"""Who else was at work while something was measured."""

from __future__ import annotations

import pytest

from tests.bench.machine import Taken, parse_taken

STAT = "cpu  100 20 30 4000 50 600 700 8 0 0\ncpu0 50 10 15 2000 25 300 350 4 0 0\nbtime 1\n"


def test_all_processes_and_what_the_host_took() -> None:
    assert parse_taken(STAT) == (100 + 20 + 30, 8)


@pytest.mark.parametrize(
    ("all_", "ours", "stolen", "part"),
    [
        (2.0, 2.0, 0.0, 0.0),  # all that was done, we did
        (3.0, 2.0, 0.0, 0.25),
        (2.0, 2.0, 1.0, 0.25),
        (3.0, 2.0, 1.0, 0.5),
        (2.0, 2.1, 0.0, 0.0),  # ticks are coarse
    ],
)
def test_a_part_of_the_machine_s_time(all_: float, ours: float, stolen: float, part: float) -> None:
    earlier = Taken(10.0, 5.0, 1.0, at=100.0, cpus=2)
    later = Taken(10.0 + all_, 5.0 + ours, 1.0 + stolen, at=102.0, cpus=2)
    assert later.disturbed_since(earlier) == pytest.approx(part)


def test_it_can_be_asked_here() -> None:
    now = Taken.now()
    assert now.all > 0
    assert now.ours > 0
    assert now.cpus >= 1
