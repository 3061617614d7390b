"""The addresses of the added networks: small subnets of one block per project, and fixed addresses in them. Pure.

How this works. Docker's default pools end at about thirty networks, and its choices differ between machines. Here every
choice follows from a hash of a name, and what an earlier run chose stays: to move a network is an outage.
Containers get addresses from the upper half of a subnet (``ip_range``), so none gets a fixed address: those are all in the
lower half. The gateway is there too, and is written down: Docker would give it the first address of the upper half, and then
nobody could tell the host's own programs, which come in its name, from a container.
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
    """``subnets`` are by network. New ones are in ``block``; those of earlier runs may be in earlier blocks."""

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
    sizes: Mapping[str, tuple[int, int]],
    within: IPv4Network,
    taken: Iterable[Taken],
    before: IPv4Network | None,
    declared: Iterable[Taken],
    kept: Mapping[str, IPv4Network],
) -> Placement:
    """``sizes`` are the networks and their prefix lengths: one with room for more, and the longest that will do. ``taken``
    are networks of this machine: nothing new overlaps one, but ``before``, the block of an earlier run, stays in use,
    because its own networks are among them. ``declared`` are the application's own: nothing ever overlaps one. ``kept`` are
    subnets of an earlier run. They stay; if one cannot, it is a :class:`UsageError`, and so is a range that is too small."""
    declared, taken = list(declared), list(taken)
    stay = {name: subnet for name, subnet in kept.items() if name in sizes}
    _refuse_moves(stay, sizes, within, declared)
    new = {name: it for name, it in sizes.items() if name not in stay}
    needed, prefixes = _chosen(new, within.num_addresses - sum(it.num_addresses for it in stay.values()), within)
    others = [it.network for it in declared]
    if before is not None and not (before.subnet_of(within) and not any(before.overlaps(it) for it in others)):
        before = None
    if before is not None:
        # Without ``kept`` all of the block is free: the networks of this machine that are in it are those of the last run.
        used = [*kept.values(), *(it.network for it in taken if kept)]
        found = _fill(before, prefixes, used)
        if found is not None:
            return Placement(before, {name: stay.get(name) or found[name] for name in sizes})
    size = min(max(1 << (32 - LARGEST_BLOCK), 1 << (2 * needed - 1).bit_length()), within.num_addresses)
    busy = [*declared, *taken, *(Taken(subnet, f"network {name}") for name, subnet in kept.items())]
    block = _block(project, within, 33 - size.bit_length(), busy)
    found = _fill(block, prefixes, []) or {}
    return Placement(block, {name: stay.get(name) or found[name] for name in sizes})


def _refuse_moves(
    stay: Mapping[str, IPv4Network], sizes: Mapping[str, tuple[int, int]], within: IPv4Network, declared: list[Taken]
) -> None:
    for name, subnet in stay.items():
        other = next((it.what for it in declared if it.network.overlaps(subnet)), None)
        if not subnet.subnet_of(within):
            why = f"is not in {within}"
        elif other is not None:
            why = f"overlaps {other}"
        elif subnet.prefixlen > sizes[name][1]:
            why = f"has no room for what is on it: it needs a /{sizes[name][1]}"
        else:
            continue
        raise UsageError(
            f"network {name}: {subnet} {why}. It stays where it is until you run `sidecar inject --relayout`, which chooses "
            "all networks anew and is an outage: everything must be stopped for it"
        )


def _chosen(sizes: Mapping[str, tuple[int, int]], free: int, within: IPv4Network) -> tuple[int, dict[str, int]]:
    """The prefix lengths, with room for more if the range has it, and how many addresses they need."""
    for which in (0, 1):
        prefixes = {name: it[which] for name, it in sizes.items()}
        needed = sum(1 << (32 - prefix) for prefix in prefixes.values())
        if needed <= free:
            return needed, prefixes
    raise UsageError(
        f"--subnets: {within} is too small: {needed} addresses are needed for {len(sizes)} networks, and {free} are free"
    )


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


def _fill(
    block: IPv4Network, prefixes: Mapping[str, int], used: Iterable[IPv4Network]
) -> dict[str, IPv4Network] | None:
    """Large subnets first; each at the position that its name's hash gives, or at the next free one. None: no room."""
    found: dict[str, IPv4Network] = {}
    busy = [it for it in used if it.overlaps(block)]
    for name, prefix in sorted(prefixes.items(), key=lambda item: (item[1], item[0])):
        count = block.num_addresses >> (32 - prefix)
        start = _number(name) % max(count, 1)
        for step in range(count):
            at = int(block.network_address) + (start + step) % count * (1 << (32 - prefix))
            candidate = IPv4Network((at, prefix))
            if not any(candidate.overlaps(it) for it in busy):
                found[name] = candidate
                busy.append(candidate)
                break
        else:
            return None
    return found


def dynamic_half(subnet: IPv4Network) -> IPv4Network:
    """The half for containers without a fixed address."""
    return list(subnet.subnets(prefixlen_diff=1))[1]


def gateway(subnet: IPv4Network) -> IPv4Address:
    return subnet.network_address + 1


def containers(subnet: IPv4Network, *, told: bool) -> list[str]:
    """The addresses that containers get, as networks. ``told``: the gateway is written in the override. A network of an
    earlier run may have none there: Docker gave it the first of these addresses."""
    half = dynamic_half(subnet)
    first = IPv4Network((half.network_address, 32))
    return [str(half)] if told else [str(it) for it in sorted(half.address_exclude(first))]


def first_fixed(subnet: IPv4Network) -> IPv4Address:
    """The sidecar's address on its app's private network: the first after the gateway's."""
    return subnet.network_address + 2


def fixed_addresses(
    subnet: IPv4Network, names: Iterable[str], kept: Mapping[str, IPv4Address]
) -> dict[str, IPv4Address]:
    """An address in the lower half for each name: the one that it has in ``kept``, or a free one chosen by its hash."""
    lower = next(subnet.subnets(prefixlen_diff=1))
    found = {name: kept[name] for name in sorted(names) if name in kept and kept[name] in lower}
    count = subnet.num_addresses // 2 - 2
    used = set(found.values())
    for name in sorted(set(names) - set(found)):
        start = _number(name) % count
        found[name] = next(
            at for step in range(count) if (at := subnet.network_address + 2 + (start + step) % count) not in used
        )
        used.add(found[name])
    return dict(sorted(found.items()))


def _number(text: str) -> int:
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big")
