"""The audit log's hash chain. Each entry's hash covers the one before, so a changed or removed entry is detected. Pure.

A chain cannot show that its *end* was cut off. For that, ``certs audit`` prints the newest number and hash, to be kept
elsewhere, and ``certs audit --verify --expect N:HASH`` checks that this entry is still there and unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

START = "0" * 64
"""The hash before the first entry."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One event. ``number`` counts from 1; ``at``: Unix seconds; ``detail``: JSON with sorted keys."""

    number: int
    at: int
    event: str
    identity: str
    detail: str
    hash: str


def chained(previous: str, number: int, at: int, event: str, identity: str, detail: Mapping[str, Any]) -> Entry:
    """The entry that follows the one with the hash ``previous``."""
    text = json.dumps(detail, sort_keys=True, separators=(",", ":"))
    return Entry(number, at, event, identity, text, _hash(previous, number, at, event, identity, text))


def faults(entries: Iterable[Entry]) -> Iterator[str]:
    """The faults of a whole log, in its order; none if it is as it was written."""
    previous, number = START, 0
    for entry in entries:
        number += 1
        if entry.number != number:
            yield f"entry {number} is missing: {entry.number} follows {number - 1}"
            number = entry.number
        elif entry.hash != _hash(previous, entry.number, entry.at, entry.event, entry.identity, entry.detail):
            yield f"entry {entry.number} ({entry.event} {entry.identity}) was changed, or what came before it was"
        previous = entry.hash


def _hash(previous: str, number: int, at: int, event: str, identity: str, detail: str) -> str:
    # JSON, because its quotes separate the fields. default=repr, because in a log that was tampered with a field may have
    # any type.
    return sha256(json.dumps([previous, number, at, event, identity, detail], default=repr).encode()).hexdigest()
