"""Writes values as YAML for people: block style, comments, Compose's tags. Pure.

Text that YAML 1.1 or 1.2 would read as another type is quoted. A comment is always one line, whatever its source.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./-]*")
_NOT_TEXT = re.compile(r"(?i)y|n|yes|no|on|off|true|false|null|~|\.inf|\.nan|[.\d_]*|0[ox]\w*|[-.\d]+e[-\d]+")


@dataclass(frozen=True, slots=True)
class Tagged:
    """A value with one of Compose's tags: ``!override``, ``!reset``."""

    tag: str
    value: Any


@dataclass(frozen=True, slots=True)
class Commented:
    """A value with a comment behind it (of a scalar or a flow) or above it (of a block)."""

    value: Any
    comment: str


@dataclass(frozen=True, slots=True)
class Flow:
    """A mapping or list on one line."""

    value: Any


def scalar(value: Any) -> str:
    """One value on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    text = str(value)
    if _PLAIN.fullmatch(text) and not _NOT_TEXT.fullmatch(text):
        return text
    # YAML's double-quoted style is JSON's, except for characters that JSON writes as two surrogates.
    inside = "".join(f"\\U{ord(it):08x}" if ord(it) > 0xFFFF else json.dumps(it)[1:-1] for it in text)
    return f'"{inside}"'


def flow(value: Any) -> str:
    """Anything on one line."""
    if isinstance(value, Flow):
        return flow(value.value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(key)}: {flow(it)}" for key, it in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    return scalar(value)


def comment(text: str) -> str:
    """``text`` made safe to follow ``#``: printable, on one line."""
    return "".join(character if character.isprintable() else " " for character in text)


def block(data: Mapping[str, Any], indent: int = 0) -> list[str]:
    """A mapping as lines."""
    lines: list[str] = []
    for key, value in data.items():
        lines += _entry(f"{' ' * indent}{scalar(key)}:", value, indent)
    return lines


def _entry(head: str, value: Any, indent: int) -> list[str]:
    if isinstance(value, Commented):
        inner = _entry(head, value.value, indent)
        if len(inner) == 1:
            return [f"{inner[0]}  # {comment(value.comment)}"]
        return [f"{' ' * indent}# {comment(value.comment)}", *inner]
    tag = ""
    if isinstance(value, Tagged):
        tag, value = f" {value.tag}", value.value
    if isinstance(value, Mapping) and value:
        return [head + tag, *block(value, indent + 2)]
    if isinstance(value, list | tuple) and value:
        return [head + tag, *(line for item in value for line in _item(item, indent + 2))]
    return [f"{head}{tag} {flow(value)}"]


def _item(value: Any, indent: int) -> list[str]:
    behind = ""
    if isinstance(value, Commented):
        value, behind = value.value, f"  # {comment(value.comment)}"
    if isinstance(value, Mapping) and value:
        lines = block(value, indent + 2)
        return [f"{' ' * indent}- {lines[0].lstrip()}{behind}", *lines[1:]]
    return [f"{' ' * indent}- {flow(value)}{behind}"]
