"""Files that are followed by their content: whoever writes them, and however (in place, by rename, by a swapped symlink).

No notification tells reliably of all these, so the files are read, once a second; they are small. What is new counts once
it was the same twice in a row: half-written files, and a certificate whose key has not been written yet, settle first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

LOOK_SECONDS = 1.0
MAX_BYTES = 1 << 20

Contents = Mapping[Path, bytes | None]
"""Each file's content; None if it cannot be read (or is larger than :data:`MAX_BYTES`)."""


def read_all(paths: Iterable[Path]) -> Contents:
    """The files as they are now."""
    return {path: _read(path) for path in paths}


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError:
        return None
    return data if len(data) <= MAX_BYTES else None


class Watch:
    """Tells a change once, when it has settled. Pure: what was read is an argument."""

    def __init__(self, known: Contents) -> None:
        self._known = known
        self._last = known

    def look(self, now: Contents) -> Contents | None:
        """Takes what the files hold now; returns it if it is new and settled, else None. A change that was told is known,
        also if it turns out to be a mistake: it is told again only if the files change again."""
        settled = now == self._last
        self._last = now
        if not settled or now == self._known:
            return None
        self._known = now
        return now
