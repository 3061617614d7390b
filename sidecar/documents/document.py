"""A file as plain data with the line of each value, and paths to values in it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sidecar.identity.spiffe import shown

DataPath = tuple[str | int, ...]
"""The path to a value in the data: ``("policy", 2, "from")``."""

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_*-][A-Za-z0-9_:./*-]*")


@dataclass(frozen=True, slots=True)
class Document:
    """A file's data (dict, list, str, int, float, bool, None), and the line on which each value begins. ``ended``: whether
    the text says where it ends, by a line ``...``."""

    filename: str
    data: Any
    lines: Mapping[DataPath, int]
    ended: bool = False

    def line(self, path: DataPath) -> int:
        """The line of the value at ``path``, or of the nearest value around it."""
        while path not in self.lines:
            path = path[:-1]
        return self.lines[path]


def path_text(path: DataPath) -> str:
    """``policy[2].from``, safe to print."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif _PLAIN_KEY.fullmatch(step):
            text += f".{step}" if text else step
        else:
            text += f"[{shown(step)}]"
    return text


def part(data: Any, *path: str | int) -> Any:
    """The value at ``path``, or None if any step of it is missing. For checks of a file that may have errors elsewhere."""
    for step in path:
        try:
            data = data[step]
        except (TypeError, LookupError):
            return None
    return data


def parts(data: Any) -> Iterator[tuple[Any, Any]]:
    """The pairs of a mapping, or the numbered items of a list; empty for any other value."""
    if isinstance(data, dict):
        yield from data.items()
    elif isinstance(data, list):
        yield from enumerate(data)
