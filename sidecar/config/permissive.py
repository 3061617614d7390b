"""An inbound port that takes plaintext as well as mTLS, until a day: its keys that go together. Pure; fails closed.

A port without ``mode`` is strict. A permissive one has an end, as a way in that nobody closes stays open for good.
"""

from __future__ import annotations

from typing import Any, Literal

from sidecar.documents.document import part, parts
from sidecar.documents.problems import Problems

PortMode = Literal["strict", "permissive"]

SOON_DAYS = 7
"""How long before its last day a permissive port is warned of."""


def add_mode_faults(data: Any, problems: Problems) -> None:
    """Adds permissive ports without an end, and strict ones with what only a permissive one has."""
    for index, port in parts(part(data, "inbound")):
        at = ("inbound", index)
        if part(port, "mode") == "permissive":
            if part(port, "until") is None:
                problems.add(
                    (*at, "mode"),
                    "permissive needs `until`: the last day on which plaintext is taken, such as 2027-01-31",
                )
            continue
        for key in ("until", "server_first"):
            if part(port, key) not in (None, False):
                problems.add(
                    (*at, key), "is for a port in `mode: permissive`; this one is strict, and takes no plaintext"
                )
