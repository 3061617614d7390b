"""Reads the text files that services mount and are built from: many applications configure their upstreams there. I/O.

Skipped are files that would mislead: dependencies, lock files, the Compose files themselves, files that ``inject`` wrote.
Secrets are not opened. Size, number and depth are bounded, because a mounted data directory may be huge.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sidecar.inject.edges import Text
from sidecar.inject.injection import MESH_DIRECTORY

MAX_FILE, MAX_TOTAL, MAX_FILES, MAX_DEPTH = 256 << 10, 4 << 20, 500, 6

_SKIPPED_DIRECTORIES = {
    "node_modules",
    "vendor",
    "__pycache__",
    "venv",
    "dist",
    "target",
    "site-packages",
    MESH_DIRECTORY,
}
_SKIPPED_FILES = re.compile(
    r"(?i).*compose.*\.ya?ml|(?:.*\.)?dockerfile(?:\..*)?|.*\.(?:md|rst|lock|sum|svg|map|pem|key|crt|sql|csv|log|min\.js)|"
    r"package-lock\.json|licen[cs]e.*|changelog.*|\..*"
)


@dataclass(frozen=True, slots=True)
class Read:
    """By service: its texts, and its Dockerfile. ``unread`` are files that exist and cannot be read."""

    texts: dict[str, tuple[Text, ...]]
    dockerfiles: dict[str, str]
    unread: tuple[str, ...]


def read_texts(config: Any, project: Path) -> Read:
    """The texts that the services of Compose's ``config`` mount and are built from."""
    reader = _Reader(project)
    services: dict[str, Any] = config.get("services") or {}
    contexts = [context for raw in services.values() if (context := _context(raw)) is not None]
    texts, dockerfiles = {}, {}
    for name, raw in services.items():
        found: dict[str, Text] = {}
        budget = _Budget()
        for source in _mounted(raw, config):
            kind: Literal["mounted", "shared"] = "shared" if reader.holds_project(source) else "mounted"
            for path, text in reader.read(source, budget):
                found.setdefault(path, Text(reader.label(path), text, kind))
        context = _context(raw)
        if context is not None:
            own = contexts.count(context) == 1 and not reader.holds_project(context)
            for path, text in reader.read(context, budget):
                found.setdefault(path, Text(reader.label(path), text, "build" if own else "shared"))
            dockerfile = reader.dockerfile(raw["build"], context)
            if dockerfile is not None:
                dockerfiles[name] = dockerfile
        if found:
            texts[name] = tuple(found.values())
    return Read(texts, dockerfiles, tuple(sorted(reader.unread)))


def _context(raw: Any) -> Path | None:
    """A build's context, if it is a local directory and not a URL."""
    context = (raw.get("build") or {}).get("context")
    return Path(context) if isinstance(context, str) and context.startswith("/") else None


def _mounted(raw: Any, config: Any) -> Iterator[Path]:
    for volume in raw.get("volumes") or []:
        if volume.get("type") == "bind" and volume.get("source"):
            yield Path(volume["source"])
    for mount in raw.get("configs") or []:
        file = (config.get("configs") or {}).get(mount.get("source"), {}).get("file")
        if file:
            yield Path(file)


class _Budget:
    """How much more may be read for one service."""

    def __init__(self) -> None:
        self.files, self.bytes = MAX_FILES, MAX_TOTAL

    def take(self, size: int) -> bool:
        if self.files < 1 or self.bytes < size or size > MAX_FILE:
            return False
        self.files, self.bytes = self.files - 1, self.bytes - size
        return True


class _Reader:
    def __init__(self, project: Path) -> None:
        self.project = project.resolve()
        self.unread: set[str] = set()

    def holds_project(self, path: Path) -> bool:
        real = path.resolve()
        return real == self.project or real in self.project.parents

    def label(self, path: str) -> str:
        """The path of a file within the project; for a file outside of it only the name, because its path is private."""
        real = Path(path)
        return str(real.relative_to(self.project)) if real.is_relative_to(self.project) else real.name

    def read(self, source: Path, budget: _Budget) -> Iterator[tuple[str, str]]:
        """The text of a file, or of each file in a directory that is not skipped."""
        real = source.resolve()
        for path in [real] if real.is_file() else self._walk(real):
            text = self._text(path, budget)
            if text is not None:
                yield str(path), text

    def _walk(self, top: Path) -> Iterator[Path]:
        for directory, names, files in os.walk(top):
            depth = len(Path(directory).relative_to(top).parts)
            deeper = depth < MAX_DEPTH
            names[:] = sorted(
                it for it in names if deeper and it not in _SKIPPED_DIRECTORIES and not it.startswith(".")
            )
            yield from (Path(directory, file) for file in sorted(files) if not _SKIPPED_FILES.fullmatch(file))

    def _text(self, path: Path, budget: _Budget) -> str | None:
        try:
            if not path.is_file() or path.is_symlink() or not budget.take(path.stat().st_size):
                return None
            content = path.read_bytes()
        except OSError:
            self.unread.add(self.label(str(path)))
            return None
        try:
            return None if b"\0" in content else content.decode()
        except UnicodeDecodeError:
            return None

    def dockerfile(self, build: Any, context: Path) -> str | None:
        if build.get("dockerfile_inline"):
            return str(build["dockerfile_inline"])
        return self._text((context / (build.get("dockerfile") or "Dockerfile")).resolve(), _Budget())
