"""What has happened so far, counted from the access log's lines: how connections ended, and the last refusals. Pure.

Bounded: labels are ports of our own wiring and words of the vocabulary, never what a peer sent.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LAST_REFUSALS = 50

_TOLD = ("direction", "port", "upstream", "peer_address", "peer_id", "client_address", "reason", "peer_reason", "rule")


@dataclass(slots=True)
class Metrics:
    """``ended``: (direction, port or target, decision, reason) → connections. ``to_app``, ``from_app``: bytes by (direction,
    port or target). ``refusals``: the newest last, each what its line said, with ``at``, the time of day as text."""

    ended: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    to_app: Counter[tuple[str, str]] = field(default_factory=Counter)
    from_app: Counter[tuple[str, str]] = field(default_factory=Counter)
    refusals: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=LAST_REFUSALS))

    def add(self, line: Mapping[str, Any], at: str) -> None:
        """Counts one connection's line."""
        direction = line["direction"]
        # Inbound, `upstream` is an app's address; what it is about is our own port.
        about = line["port"] if direction == "inbound" else str(line["upstream"])
        self.ended[direction, about, line["decision"], line["reason"]] += 1
        self.to_app[direction, about] += line["bytes_to_app"]
        self.from_app[direction, about] += line["bytes_from_app"]
        if line["decision"] == "deny":
            told = {name: line[name] for name in _TOLD if line.get(name)}
            self.refusals.append({"at": at, **told, "message": line.get("message")})
