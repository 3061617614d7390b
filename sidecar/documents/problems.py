"""Mistakes in a file, told all at once as ``file:line: path: what`` or, of a variable, ``VARIABLE: path: what``. Pure."""

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
    """Everything that is wrong with one file, so that it can be said at once.

    ``variables`` names the values that came from the environment and not from the file.
    """

    def __init__(self, document: Document, variables: Mapping[DataPath, str] | None = None) -> None:
        self.document = document
        self._variables = variables or {}
        self._found: list[tuple[str, int, str]] = []

    def add(self, path: DataPath, what: str, *, line: int | None = None) -> None:
        """Something is wrong at ``path``; ``line`` if it is told of another place than where it is."""
        at = f"{path_text(path)}: " if path else ""
        variable = next((name for known, name in self._variables.items() if path[: len(known)] == known), None)
        if variable is not None:
            self._found.append((variable, 0, f"{variable}: {at}{what}"))
        else:
            line = line or self.document.line(path)
            self._found.append(("", line, f"{self.document.filename}:{line}: {at}{what}"))

    def add_variable(self, name: str, what: str) -> None:
        """Something is wrong with an environment variable that stands for no value."""
        self._found.append((name, 0, f"{name if _PLAIN_NAME.fullmatch(name) else shown(name)}: {what}"))

    def written(self, path: DataPath) -> DataPath:
        """``path``, or the nearest around it that somebody wrote, in the file or as a variable of it or of
        something in it."""
        while path not in self.document.lines and not any(known[: len(path)] == path for known in self._variables):
            path = path[:-1]
        return path

    def error(self) -> UsageError:
        """All of them as one error: a line each, in the file's order and the environment's last."""
        texts = list(dict.fromkeys(text for _, _, text in sorted(self._found, key=lambda item: item[:2])))
        if len(texts) > MAX_PROBLEMS:
            more = len(texts) - MAX_PROBLEMS
            texts[MAX_PROBLEMS:] = [f"{self.document.filename}: and {more} more problems"]
        return UsageError("\n".join(texts))

    def raise_any(self) -> None:
        if self._found:
            raise self.error()


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """`` (did you mean 'web'?)``, or nothing if no option is near.

    Two swapped letters are near too, which in a short name (``bd`` for ``db``) is too much of it for difflib's measure.
    """
    if len(word) > 100:
        return ""
    options = list(options)
    near = difflib.get_close_matches(word, options, n=1) or [it for it in options if sorted(it) == sorted(word)]
    return f" (did you mean {shown(near[0])}?)" if near else ""
