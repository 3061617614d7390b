"""The audit log's hash chain. Each entry's hash covers the one before, so damage and a single edit are detected. Pure.

What the chain does not prove. It has no key, so whoever can write the store can compute all of it anew, and a cut-off end
leaves a shorter chain that is sound. Both show only against a number and hash that were kept elsewhere: ``certs serve`` logs
the newest ones at its start and every hour, ``certs audit`` prints them, and ``certs audit --verify --expect N:HASH`` checks
that this entry is still there and unchanged, and so all before it.
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
