"""Medians over the rounds, ratios within them."""

from __future__ import annotations

import pytest

from tests.bench.figures import Reading, rotated, summarise
from tests.bench.outputs import Done


def reading(
    contestant: str, number: int, cpu: float, units: float = 100, load: str = "keepalive", group: str = "X25519"
) -> Reading:
    return Reading(load, contestant, group, number, cpu / 4, cpu * 3 / 4, Done(units, 2.0, 0.001 * (number + 1), 0.01))


def test_cost_is_of_both_proxies_for_one_unit() -> None:
    one = reading("ours", 0, cpu=3.0, units=1000)
    assert one.cost == pytest.approx(0.003)
    assert one.rate == pytest.approx(500)


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    # In the third round the machine was three times as slow, for both: the ratio does not see it.
    readings = [reading("ours", number, cpu) for number, cpu in enumerate((2.0, 2.4, 6.6))]
    readings += [reading("peer", number, cpu) for number, cpu in enumerate((1.0, 1.0, 3.0))]
    ours, peer = summarise(readings, "keepalive", "X25519", "peer")
    assert (ours.contestant, peer.contestant) == ("ours", "peer")
    assert ours.ratio == pytest.approx(2.2)
    assert peer.ratio == pytest.approx(1.0)
    assert [ours.cheapest, ours.cost, ours.dearest] == pytest.approx([0.02, 0.024, 0.066])
    assert ours.p50 == pytest.approx(0.002)


def test_without_the_first_peer_there_is_no_ratio() -> None:
    assert summarise([reading("ours", 0, 1.0)], "keepalive", "X25519", "peer")[0].ratio is None


def test_other_loads_and_groups_are_not_mixed_in() -> None:
    readings = [
        reading("ours", 0, 1.0),
        reading("ours", 0, 50.0, load="connections"),
        reading("ours", 0, 70.0, group="X25519MLKEM768"),
    ]
    assert [row.cost for row in summarise(readings, "keepalive", "X25519", "ours")] == pytest.approx([0.01])
    assert summarise(readings, "upload", "X25519", "ours") == []


def test_bulk_has_no_latency() -> None:
    bulk = Reading("upload", "ours", "X25519", 0, 1.0, 1.0, Done(1.0, 2.0))
    assert summarise([bulk], "upload", "X25519", "ours")[0].p99 is None


def test_each_round_begins_with_another() -> None:
    assert [rotated("abc", number) for number in range(4)] == [[*"abc"], [*"bca"], [*"cab"], [*"abc"]]
    assert rotated("", 3) == []
