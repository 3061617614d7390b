"""``COMPOSE_FILE`` in ``.env``: plain ``docker compose up`` then starts the mesh, not the plaintext application. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

_LINE = re.compile(r"^([ \t]*(?:export[ \t]+)?COMPOSE_FILE[ \t]*=[ \t]*)(.*?)[ \t]*$", re.MULTILINE)
_SEPARATOR = re.compile(r"^[ \t]*COMPOSE_PATH_SEPARATOR[ \t]*=[ \t]*[\"']?(.)", re.MULTILINE)


def is_active(env: str | None, override: str) -> bool:
    """Whether a ``.env`` names the override."""
    found = _LINE.findall(env or "")
    return bool(found) and override in _names(found[-1][1], _separator(env or ""))


def activation_line(files: Iterable[str], override: str) -> str:
    return f"COMPOSE_FILE={':'.join([*files, override])}"


def activated(env: str | None, files: Iterable[str], override: str) -> str:
    """The ``.env`` with the override appended to the files that it names, or else to those of the application. All other
    lines stay unchanged."""
    if is_active(env, override):
        return env or ""
    text = env or ""
    lines = list(_LINE.finditer(text))
    if not lines:
        gap = "" if not text or text.endswith("\n") else "\n"
        separator = _separator(text)
        return f"{text}{gap}COMPOSE_FILE={separator.join([*files, override])}\n"
    last = lines[-1]
    names = _names(last[2], _separator(text)) or list(files)
    return text[: last.start()] + last[1] + _separator(text).join([*names, override]) + text[last.end() :]


def _names(value: str, separator: str) -> list[str]:
    return [name for name in value.strip("\"'").split(separator) if name]


def _separator(text: str) -> str:
    found = _SEPARATOR.search(text)
    return found[1] if found else ":"
