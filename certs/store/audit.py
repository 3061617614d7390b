"""The audit log's chain: each entry's hash covers the one before, so that none can be changed or taken out unnoticed. Pure.

What a chain cannot show is that its *end* was cut off: ``certs audit`` prints the newest number and hash, to be kept
elsewhere, and ``certs audit --verify --expect N:HASH`` tells whether that entry is still there as it was.
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
    """What happened. ``number`` counts from 1; ``at``: Unix seconds; ``detail``: JSON with sorted keys."""

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
    """What is wrong with a whole log, in its order; nothing if it is as it was written."""
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
    # As JSON, whose quotes keep the fields apart. (Of a log that was tampered with a field may be anything.)
    return sha256(json.dumps([previous, number, at, event, identity, detail], default=repr).encode()).hexdigest()
