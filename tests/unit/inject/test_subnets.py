"""Where the networks are, and that they stay there."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.identity.reasons import UsageError
from sidecar.inject.subnets import (
    DEFAULT_RANGE,
    Taken,
    containers,
    dynamic_half,
    first_fixed,
    fixed_addresses,
    gateway,
    parse_range,
    place,
    prefix_for,
)

NETS = {"a": (28, 28), "b": (28, 28), "c": (26, 26)}


def test_the_same_names_the_same_places_and_others_do_not_move_them() -> None:
    before = place("shop", NETS, DEFAULT_RANGE, [], None, [], {})
    after = place("shop", {**NETS, "new": (28, 28)}, DEFAULT_RANGE, [], None, [], {})
    assert before.block == after.block
    assert {name: after.subnets[name] for name in NETS} == before.subnets
    assert place("other", NETS, DEFAULT_RANGE, [], None, [], {}).block != before.block


@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=4), st.integers(24, 28).map(lambda it: (it, it)), max_size=30)
)
def test_nothing_overlaps_and_all_is_in_the_block(prefixes: dict[str, tuple[int, int]]) -> None:
    placement = place("shop", prefixes, DEFAULT_RANGE, [], None, [], {})
    subnets = list(placement.subnets.values())
    assert all(subnet.subnet_of(placement.block) for subnet in subnets)
    assert not any(one.overlaps(other) for i, one in enumerate(subnets) for other in subnets[i + 1 :])


def test_what_is_taken_is_passed_over() -> None:
    first = place("shop", NETS, DEFAULT_RANGE, [], None, [], {}).block
    second = place("shop", NETS, DEFAULT_RANGE, [Taken(first, "x")], None, [], {}).block
    assert not second.overlaps(first)


def test_the_block_of_an_earlier_run_is_kept_though_its_own_networks_are_there() -> None:
    block = place("shop", NETS, DEFAULT_RANGE, [], None, [], {}).block
    assert place("shop", NETS, DEFAULT_RANGE, [Taken(block, "ours")], block, [], {}).block == block
    assert place("shop", NETS, DEFAULT_RANGE, [], block, [Taken(block, "the application's")], {}).block != block
    assert place("shop", NETS, IPv4Network("10.0.0.0/9"), [], block, [], {}).block != block


def test_a_range_that_overlaps_what_is_there() -> None:
    within = IPv4Network("10.9.0.0/20")
    with pytest.raises(
        UsageError, match=r"^--subnets: 10.9.0.0/20 overlaps .* 10.9.0.0/24 \(network lan\): give another"
    ):
        place("shop", NETS, within, [], None, [Taken(IPv4Network("10.9.0.0/24"), "network lan")], {})
    assert place("shop", NETS, within, [Taken(IPv4Network("10.10.0.0/24"), "x")], None, [], {}).block == within


def test_a_range_that_is_too_small() -> None:
    with pytest.raises(UsageError, match="is too small: 272 addresses are needed for 17 networks"):
        place("shop", {str(it): (28, 28) for it in range(17)}, IPv4Network("10.9.0.0/24"), [], None, [], {})
    assert place("shop", {str(it): (28, 28) for it in range(16)}, IPv4Network("10.9.0.0/24"), [], None, [], {})


@pytest.mark.parametrize("text", ["x", "10.0.0.1/16", "10.0.0.0/25", "::/64", "10.0.0.0/40"])
def test_no_range(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--subnets: "):
        parse_range(text)


def test_the_twin_a_range() -> None:
    assert parse_range("10.9.0.0/24") == IPv4Network("10.9.0.0/24")


@pytest.mark.parametrize(("fixed", "dynamic", "prefix"), [(1, 6, 28), (1, 7, 28), (1, 8, 27), (7, 1, 27), (1, 40, 25)])
def test_sizes(fixed: int, dynamic: int, prefix: int) -> None:
    assert prefix_for(fixed, dynamic) == prefix


def test_fixed_and_dynamic_addresses_do_not_meet() -> None:
    subnet = IPv4Network("10.0.0.0/27")
    fixed = fixed_addresses(subnet, [str(it) for it in range(14)], {})
    assert len(set(fixed.values())) == 14
    assert not any(it in dynamic_half(subnet) for it in fixed.values())
    assert first_fixed(subnet) not in dynamic_half(subnet)
    assert {subnet.network_address, subnet.network_address + 1} & set(fixed.values()) == set()


def test_the_gateway_is_not_among_the_addresses_of_containers() -> None:
    subnet = IPv4Network("10.1.0.0/28")
    told, untold = containers(subnet, told=True), containers(subnet, told=False)
    assert told == ["10.1.0.8/29"]
    assert gateway(subnet) not in IPv4Network(told[0])
    # Docker gives the gateway the first address of the range of containers, unless it is told another.
    assert untold == ["10.1.0.9/32", "10.1.0.10/31", "10.1.0.12/30"]
    assert {it for network in untold for it in IPv4Network(network)} == {*IPv4Network(told[0])} - {
        dynamic_half(subnet)[0]
    }
