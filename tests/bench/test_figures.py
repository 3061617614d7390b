"""Medians over the rounds, ratios within them."""

from __future__ import annotations

import pytest

from tests.bench.figures import MOST_DISTURBED, Reading, noise, rotated, summarise
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
    ours, peer = summarise(readings, "keepalive", "peer")
    assert (ours.contestant, peer.contestant) == ("ours", "peer")
    assert ours.ratio == pytest.approx(2.2)
    assert peer.ratio == pytest.approx(1.0)
    assert [ours.cheapest, ours.cost, ours.dearest] == pytest.approx([0.02, 0.024, 0.066])
    assert ours.p50 == pytest.approx(0.002)


def test_without_the_first_peer_there_is_no_ratio() -> None:
    assert summarise([reading("ours", 0, 1.0)], "keepalive", "peer")[0].ratio is None


def test_another_group_is_not_compared_with() -> None:
    readings = [reading("peer", 0, 1.0, group="X25519MLKEM768"), reading("ours", 0, 2.0, group="X25519")]
    assert [(row.group, row.ratio) for row in summarise(readings, "keepalive", "peer")] == [
        ("X25519MLKEM768", 1.0),
        ("X25519", None),
    ]


def test_other_loads_are_not_mixed_in() -> None:
    readings = [reading("ours", 0, 1.0), reading("ours", 0, 50.0, load="connections")]
    assert [row.cost for row in summarise(readings, "keepalive", "ours")] == pytest.approx([0.01])
    assert summarise(readings, "upload", "ours") == []


def test_bulk_has_no_latency() -> None:
    bulk = Reading("upload", "ours", "X25519", 0, 1.0, 1.0, Done(1.0, 2.0))
    assert summarise([bulk], "upload", "ours")[0].p99 is None


def test_each_round_begins_with_another() -> None:
    assert [rotated("abc", number) for number in range(4)] == [[*"abc"], [*"bca"], [*"cab"], [*"abc"]]
    assert rotated("", 3) == []


def test_latency_is_compared_round_by_round_too() -> None:
    def late(contestant: str, number: int, p99: float) -> Reading:
        return Reading("latency-1000", contestant, "X25519", number, 1.0, 1.0, Done(100, 2.0, 0.001, p99))

    readings = [late("peer", number, p99) for number, p99 in enumerate((0.004, 0.004, 0.012))]
    readings += [late("ours", number, p99) for number, p99 in enumerate((0.005, 0.005, 0.015))]
    _, ours = summarise(readings, "latency-1000", "peer")
    assert ours.p99_ratio == pytest.approx(1.25)
    assert (ours.p99_noise, ours.noise) == (None, None)


# -- what does not count -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "disturbed", "fault"),
    [
        ([1.0, 1.0], 0.0, "fewer than 3 rounds"),
        ([], 0.0, "fewer than 3 rounds"),
        ([1.0, 1.0, 1.0], MOST_DISTURBED + 0.01, "others took 6%"),
        ([0.5, 1.0, 1.5], 0.0, "spread over 50%"),
        ([1.0, 1.0, 1.5], 0.0, "spread over 25%"),
    ],
)
def test_a_noisy_figure_says_why_it_does_not_count(values: list[float], disturbed: float, fault: str) -> None:
    assert fault in (noise(values, disturbed) or "")


@pytest.mark.parametrize(
    ("values", "disturbed"),
    [
        ([1.0, 1.0, 1.0], MOST_DISTURBED),
        ([1.0, 1.1, 1.2], 0.0),
        ([1.0, 1.0, 1.0, 1.0, 9.0], 0.0),  # one round in five may be anything
    ],
)
def test_a_quiet_figure_counts(values: list[float], disturbed: float) -> None:
    assert noise(values, disturbed) is None


def test_a_slow_machine_is_no_noise_in_a_ratio_but_in_the_peer_s_own_figure() -> None:
    slow = (1.0, 2.0, 3.0)
    readings = [reading("peer", number, cpu) for number, cpu in enumerate(slow)]
    readings += [reading("ours", number, 2 * cpu) for number, cpu in enumerate(slow)]
    peer, ours = summarise(readings, "keepalive", "peer")
    assert peer.noise is not None
    assert ours.noise is None
