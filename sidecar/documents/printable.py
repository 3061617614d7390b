"""Text of others, made safe for a terminal. Pure.

A terminal obeys control characters (ECMA-48), and bidirectional marks (UAX 9) make text look like other text. Unlike
``shown``, which quotes one untrusted word in ASCII, this leaves letters of all languages as they are.
"""

from __future__ import annotations

from typing import Any


def printable(text: str) -> str:
    """``text`` as one line in which every character that is not printable is escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def printable_values(document: Any) -> Any:
    """A JSON document with all its text :func:`printable`. Raises :class:`RecursionError` if it is nested too deep."""
    if isinstance(document, str):
        return printable(document)
    if isinstance(document, list):
        return [printable_values(one) for one in document]
    if isinstance(document, dict):
        return {printable(name): printable_values(value) for name, value in document.items()}
    return document
