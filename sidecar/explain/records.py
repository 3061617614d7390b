"""Finds the lines of one connection among whatever a log file holds. Pure.

How this works. A log may have gigabytes, lines of other programs, prefixes of Compose or journald, a cut-off end, and text
that an attacker wrote. So :func:`lines_with` looks for the id in blocks of bytes and holds no more than a block and one
line; only lines with the id in them are parsed. :func:`entry_of` takes from such a line the fields that a sidecar writes and
that are of a plain type, shortened and escaped; a line that is no sidecar's, or merely quotes the id, is none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sidecar.documents.printable import printable
from sidecar.identity.reasons import Reason

MAX_LINE = 1 << 16
"""A longer line is no sidecar's."""

MAX_TEXT = 600
"""Characters that are kept of one field."""

ID = re.compile(r"[0-9a-f]{16}(?:-[0-9]{1,19})?")
"""A ``connection_id``, or a ``channel_id``: that of all connections on the channel."""

EVENTS = frozenset({"connection", "mitm_suspected", "neighbour_met", "tampering_suspected", "internal_error"})
"""The events that are about one connection."""

_TEXTS = (
    "time", "event", "direction", "service", "port", "peer_address", "client_address", "peer_id", "upstream", "decision",
    "rule", "reason", "peer_reason", "message", "expected", "next", "evidence", "connection_id", "channel_id", "tls_group",
)  # fmt: skip
_NUMBERS = ("bytes_to_app", "bytes_from_app", "duration_ms", "handshake_ms")
_CLAIMS = ("unverified", "presented")
_INSIDE = ("log", "MESSAGE", "message")
"""Where others keep a line of ours in a line of theirs: Docker's json-file driver, journald."""

_PLACES = 4


@dataclass(frozen=True, slots=True)
class Entry:
    """What one line says. ``source``: where it was found. ``fields``: those of the line that are known here, escaped.
    ``text``: the line itself, if it was written for people (``log_format: console``)."""

    source: str
    fields: Mapping[str, Any]
    text: str = ""

    def get(self, name: str) -> str:
        """A text of the line; empty if it has none."""
        value = self.fields.get(name)
        return value if isinstance(value, str) else ""


def lines_with(blocks: Iterable[bytes], needle: bytes) -> Iterator[bytes]:
    """The lines that hold ``needle``, of text that comes in blocks. Lines longer than :data:`MAX_LINE` are left out."""
    rest, skips = b"", False
    for block in blocks:
        data = rest + block
        cut = data.rfind(b"\n") + 1
        whole, rest = data[:cut], data[cut:]
        if skips and cut:
            whole, skips = whole[whole.find(b"\n") + 1 :], False
        if skips or len(rest) > MAX_LINE:
            rest, skips = b"", True
        at = 0
        while (hit := whole.find(needle, at)) >= 0:
            begin, end = whole.rfind(b"\n", 0, hit) + 1, whole.find(b"\n", hit)
            if end - begin <= MAX_LINE:
                yield whole[begin:end]
            at = end + 1
    if needle in rest:
        yield rest


def entry_of(line: bytes, wanted: str, source: str) -> Entry | None:
    """The line as a record of the connection ``wanted``; None if it is of something else."""
    text = line.decode("utf-8", "replace")
    for found in objects(text):
        if (fields := _fields(found, wanted)) is not None:
            return Entry(source, fields)
    return _written_for_people(text, wanted, source)


def is_of(wanted: str, connection_id: str, channel_id: str) -> bool:
    """Whether a line is asked for: by its own id, or by that of its channel."""
    return connection_id == wanted or connection_id.startswith(f"{wanted}-") or channel_id == wanted


def objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects that may be ours in a line: at its beginning or behind a prefix, and those inside of them."""
    at = -1
    for _ in range(_PLACES):
        at = text.find('{"', at + 1)
        if at < 0:
            return
        found = _parsed(text[at:])
        if found is not None:
            yield found
            for name in _INSIDE:
                inside = found.get(name)
                if isinstance(inside, str) and (inner := _parsed(inside)) is not None:
                    yield inner
            return


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        found, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _fields(found: Mapping[str, Any], wanted: str) -> dict[str, Any] | None:
    texts = {name: shortened(value) for name in _TEXTS if isinstance(value := found.get(name), str)}
    if texts.get("event") not in EVENTS:
        return None
    connection_id = texts.get("connection_id", "")
    if not ID.fullmatch(connection_id) or not is_of(wanted, connection_id, texts.get("channel_id", "")):
        return None
    numbers = {
        name: value
        for name in _NUMBERS
        if isinstance(value := found.get(name), int | float) and not isinstance(value, bool) and 0 <= value < 1e18
    }
    claims = {name: shortened(_flat(value)) for name in _CLAIMS if isinstance(value := found.get(name), dict) and value}
    return {**texts, **numbers, **claims}


def _flat(claims: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in claims.items() if isinstance(value, str | int))


def shortened(text: str) -> str:
    """A text of a log as one line without control characters, and no longer than :data:`MAX_TEXT` and a little."""
    more = f"… ({len(text) - MAX_TEXT} more characters)" if len(text) > MAX_TEXT else ""
    return printable(text[:MAX_TEXT]) + more


def _written_for_people(text: str, wanted: str, source: str) -> Entry | None:
    """A line of ``log_format: console``: its parts are known by their order, so little is taken from it but the reason."""
    ends, *parts = text.strip().split(" | ")
    if len(parts) < 2 or parts[0] not in set(Reason) or not parts[-1].startswith("id "):
        return None
    connection_id = parts[-1].removeprefix("id ")
    if not ID.fullmatch(connection_id) or not is_of(wanted, connection_id, ""):
        return None
    direction = "inbound" if " <- " in ends else "outbound"
    fields = {"event": "connection", "direction": direction, "reason": parts[0], "connection_id": connection_id}
    return Entry(source, fields, shortened(text.strip()))
