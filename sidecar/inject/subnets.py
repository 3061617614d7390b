"""The addresses of the added networks: small subnets of one block per project, and fixed addresses in them. Pure.

How this works. Docker's default pools end at about thirty networks, and its choices differ between machines. Here every
choice follows from a hash of a name: unless hashes collide, a network stays in place when others are added or removed.
Containers get addresses from the upper half of a subnet (``ip_range``), so none gets a fixed address: those are all in the
lower half.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network

from sidecar.identity.reasons import UsageError

DEFAULT_RANGE = IPv4Network("10.128.0.0/9")
SMALLEST = 28
LARGEST_BLOCK = 20
"""A project's block has 4096 addresses, or more if it needs more, or the whole range if that is smaller."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A network that exists already, and a description of it for messages."""

    network: IPv4Network
    what: str


@dataclass(frozen=True, slots=True)
class Placement:
    """``block`` contains all ``subnets``, which are by network."""

    block: IPv4Network
    subnets: Mapping[str, IPv4Network]


def parse_range(text: str, option: str = "--subnets") -> IPv4Network:
    """Raises :class:`UsageError`."""
    try:
        found = IPv4Network(text)
    except ValueError as error:
        raise UsageError(
            f"{option}: {text!r} is no range of addresses: write it as 10.200.0.0/16, host bits zero"
        ) from error
    if found.prefixlen > 24:
        raise UsageError(f"{option}: {text} is too small: at least a /24")
    return found


def prefix_for(fixed: int, dynamic: int) -> int:
    """The prefix length of the smallest subnet with room for ``fixed`` addresses in its lower half, beside the network's and
    the gateway's, and for ``dynamic`` containers in its upper half, beside the broadcast address."""
    half = max(fixed + 2, dynamic + 1, 1 << (31 - SMALLEST))
    return 31 - (half - 1).bit_length()


def place(
    project: str,
    prefixes: Mapping[str, int],
    within: IPv4Network,
    taken: Iterable[Taken],
    before: IPv4Network | None,
    declared: Iterable[Taken],
) -> Placement:
    """``prefixes`` are the networks and their prefix lengths. ``taken`` are networks of this machine: no new block overlaps
    one, but the block ``before`` of an earlier run is kept, because its own networks are among them. ``declared`` are the
    application's own: no block ever overlaps one. Raises :class:`UsageError`."""
    needed = sum(1 << (32 - prefix) for prefix in prefixes.values())
    size = max(1 << (32 - LARGEST_BLOCK), 1 << (2 * needed - 1).bit_length())
    size = min(size, within.num_addresses)
    if needed > size:
        raise UsageError(
            f"--subnets: {within} is too small: {needed} addresses are needed for {len(prefixes)} networks"
        )
    declared = list(declared)
    fits = before is not None and before.subnet_of(within) and before.num_addresses >= size
    if before is not None and fits and not any(before.overlaps(it.network) for it in declared):
        return Placement(before, _fill(before, prefixes))
    block = _block(project, within, 33 - size.bit_length(), [*declared, *taken])
    return Placement(block, _fill(block, prefixes))


def _block(project: str, within: IPv4Network, prefix: int, taken: list[Taken]) -> IPv4Network:
    count = 1 << (prefix - within.prefixlen)
    start = _number(project) % count
    size = 1 << (32 - prefix)
    for step in range(count):
        candidate = IPv4Network((int(within.network_address) + (start + step) % count * size, prefix))
        if not any(candidate.overlaps(it.network) for it in taken):
            return candidate
    near = [it for it in taken if it.network.overlaps(within)]
    listed = "; ".join(f"{it.network} ({it.what})" for it in near[:5])
    raise UsageError(f"--subnets: {within} overlaps networks that exist already: {listed}: give another range")


def _fill(block: IPv4Network, prefixes: Mapping[str, int]) -> dict[str, IPv4Network]:
    """Large subnets first; each at the position that its name's hash gives, or at the next free one."""
    found: dict[str, IPv4Network] = {}
    used: set[int] = set()  # in units of the smallest subnet
    unit = 1 << (32 - SMALLEST)
    for name, prefix in sorted(prefixes.items(), key=lambda item: (item[1], item[0])):
        size = 1 << (32 - prefix)
        count, units = block.num_addresses // size, size // unit
        start = _number(name) % count
        index = next(
            at
            for step in range(count)
            if not used.intersection(range((at := (start + step) % count) * units, (at + 1) * units))
        )
        used.update(range(index * units, (index + 1) * units))
        found[name] = IPv4Network((int(block.network_address) + index * size, prefix))
    return {name: found[name] for name in prefixes}


def dynamic_half(subnet: IPv4Network) -> IPv4Network:
    """The half for containers without a fixed address."""
    return list(subnet.subnets(prefixlen_diff=1))[1]


def first_fixed(subnet: IPv4Network) -> IPv4Address:
    """The sidecar's address on its app's private network: the first after the gateway's."""
    return subnet.network_address + 2


def fixed_addresses(subnet: IPv4Network, names: Iterable[str]) -> dict[str, IPv4Address]:
    """An address in the lower half for each name, chosen by its hash: most addresses stay when a name is added."""
    count = subnet.num_addresses // 2 - 2
    found: dict[str, IPv4Address] = {}
    used: set[int] = set()
    for name in sorted(names):
        start = _number(name) % count
        index = next(at for step in range(count) if (at := (start + step) % count) not in used)
        used.add(index)
        found[name] = subnet.network_address + 2 + index
    return found


def _number(text: str) -> int:
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big")
