"""What has changed between two views of the mesh, so that only that is sent. Pure.

A view has sections; in a section each entry is replaced whole or is gone. The page does the opposite of :func:`changes`; so
does :func:`applied`, which says exactly what it has to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Sections = Mapping[str, Mapping[str, Any]]


def changes(before: Sections, after: Sections) -> dict[str, dict[str, Any]]:
    """By section ``set`` (entries that are new or another) and ``gone`` (keys); sections that are the same are left out."""
    found = {}
    for name, entries in after.items():
        old = before.get(name, {})
        new = {key: value for key, value in entries.items() if key not in old or old[key] != value}
        gone = [key for key in old if key not in entries]
        if new or gone:
            found[name] = {"set": new, "gone": gone}
    return found


def applied(before: Sections, change: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The view after a change."""
    found = {name: dict(entries) for name, entries in before.items()}
    for name, one in change.items():
        entries = found.setdefault(name, {})
        for key in one["gone"]:
            del entries[key]
        entries |= one["set"]
    return found
