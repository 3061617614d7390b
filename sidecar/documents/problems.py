"""Collects the errors in a file and reports them together: ``file:line: path: what`` or ``VARIABLE: path: what``. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

from sidecar.documents.document import DataPath, Document, path_text
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import shown

MAX_PROBLEMS = 200

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_:./*-]+")


class Problems:
    """All errors in one file, to be reported together.

    ``variables`` maps the path of each value that came from the environment, not from the file, to its variable.
    """

    def __init__(self, document: Document, variables: Mapping[DataPath, str] | None = None) -> None:
        self.document = document
        self._variables = variables or {}
        self._found: list[tuple[str, int, str]] = []

    def add(self, path: DataPath, what: str, *, line: int | None = None) -> None:
        """Adds an error at ``path``; ``line`` if another line than that of ``path`` is to be reported."""
        at = f"{path_text(path)}: " if path else ""
        variable = next((name for known, name in self._variables.items() if path[: len(known)] == known), None)
        if variable is not None:
            self._found.append((variable, 0, f"{variable}: {at}{what}"))
        else:
            line = line or self.document.line(path)
            self._found.append(("", line, f"{self.document.filename}:{line}: {at}{what}"))

    def add_variable(self, name: str, what: str) -> None:
        """Adds an error of an environment variable that belongs to no value."""
        self._found.append((name, 0, f"{name if _PLAIN_NAME.fullmatch(name) else shown(name)}: {what}"))

    def written(self, path: DataPath) -> DataPath:
        """``path``, or the nearest path around it that is written in the file or given by a variable of it or of something
        in it."""
        while path not in self.document.lines and not any(known[: len(path)] == path for known in self._variables):
            path = path[:-1]
        return path

    def error(self) -> UsageError:
        """All errors as one exception: one line each, in the file's order, those of the environment last."""
        texts = list(dict.fromkeys(text for _, _, text in sorted(self._found, key=lambda item: item[:2])))
        if len(texts) > MAX_PROBLEMS:
            more = len(texts) - MAX_PROBLEMS
            texts[MAX_PROBLEMS:] = [f"{self.document.filename}: and {more} more problems"]
        return UsageError("\n".join(texts))

    def raise_any(self) -> None:
        if self._found:
            raise self.error()


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """`` (did you mean 'web'?)``, or an empty text if no option is similar.

    Swapped letters are similar too: in a short name (``bd`` for ``db``) difflib alone would not find them.
    """
    if len(word) > 100:
        return ""
    options = list(options)
    near = difflib.get_close_matches(word, options, n=1) or [it for it in options if sorted(it) == sorted(word)]
    return f" (did you mean {shown(near[0])}?)" if near else ""
