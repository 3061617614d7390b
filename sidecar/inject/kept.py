"""What another version of this program wrote for sidecars that run: it stays until they are upgraded. Pure.

How this works. A sidecar whose stanza or image changes is recreated by the next ``docker compose up``, and all of them at
once are an outage. So the stanza and the wiring of a sidecar of another image stay byte for byte, unless the application
itself now needs something else of it: other networks, names, listeners or settings. Then it is recreated anyway.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any

from sidecar.inject.layout import parse_override
from sidecar.inject.override import NEEDS
from sidecar.inject.topology import CA
from sidecar.inject.yamltext import Flow, block, scalar

_STANZA = re.compile(r'^  "?([\w.-]+)"?:\n(?:    .*\n)+', re.MULTILINE)
_BUILD = re.compile(r"^    build:\n(?:      .*\n)+", re.MULTILINE)
_IMAGE = re.compile(r"^    image: .*\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Earlier:
    """The files of the last run: the override, and each sidecar's wiring by its service."""

    override: str
    wirings: Mapping[str, str]


def is_stale(override: str, image: str) -> bool:
    """Whether some sidecar has another image."""
    return {found[0] for found in _IMAGE.finditer(override)} != {f"    image: {scalar(image)}\n"}


def keep(
    override: str, earlier: Earlier, needs: Mapping[str, str], renew: Collection[str], state: str
) -> tuple[str, tuple[str, ...]]:
    """The override with those stanzas of the last run that stay, and the services whose stanzas these are. ``needs`` are
    by service what its wiring of the last run is enough for. ``renew`` are services that are upgraded, ``state`` is the
    directory of the keys."""
    data, after = parse_override(earlier.override), parse_override(override)["services"]
    before, old, new = data["services"], _stanzas(earlier.override), _stanzas(override)
    image = after[CA]["image"]
    ours = [name for name, raw in after.items() if raw.get("image") == image]
    kept = tuple(
        name
        for name in ours
        if name in old and name not in renew and before[name].get("image") != image
        if f"MESH_STATE:-{state}}}" in old[name] and (name == CA or name in earlier.wirings)
        if _is_enough(before[name], after[name], needs.get(name))
    )
    for name in kept:
        override = override.replace(new[name], old[name])
    build = _BUILD.search(new[CA])
    if CA in kept and kept != tuple(ours) and build is not None:
        # Compose builds an image for a service, which is the CA otherwise.
        first = new[next(name for name in ours if name not in kept)]
        override = override.replace(first, _IMAGE.sub(lambda found: found[0] + build[0], first, count=1))
    used = sorted({it["source"] for name in kept for it in before[name].get("secrets") or ()})
    if used:
        override += "\n".join(block({"secrets": {name: Flow(data["secrets"][name]) for name in used}})) + "\n"
    return override, kept


def lets_in_more(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a sidecar's wiring of the last run takes its app's calls from more addresses than that of this run."""
    allowed = {entry["listen"]: entry["allow_from"] for entry in after["outbound"]}
    return any(
        not all(_is_in(network, allowed[entry["listen"]]) for network in entry.get("allow_from") or ["0.0.0.0/0"])
        for entry in before["outbound"]
        if entry["listen"] in allowed
    )


def _is_in(network: str, others: Collection[str]) -> bool:
    try:
        one = IPv4Network(network)
    except ValueError:
        return False  # not as it was written: whatever it lets in is more
    return any(one.subnet_of(IPv4Network(other)) for other in others)


def _stanzas(override: str) -> dict[str, str]:
    """The text of each service."""
    services = override.partition("\nservices:\n")[2].partition("\nnetworks:\n")[0] + "\n"
    return {found[1]: found[0] for found in _STANZA.finditer(services)}


def _is_enough(before: Mapping[str, Any], after: Mapping[str, Any], needs: str | None) -> bool:
    """Whether a sidecar as it runs does all that the application needs."""
    is_same = all(before.get(key) == after.get(key) for key in ("networks", "profiles", "user", "ports"))
    logs_there = before.get("logging", after["logging"]) == after["logging"]
    return is_same and logs_there and before.get("labels", {}).get(NEEDS, needs) == after.get("labels", {}).get(NEEDS)
