"""Reads the text files that services mount and are built from: many applications configure their upstreams there. I/O.

What is read. Of each service: the files that it mounts, the files in a mounted directory of the project, inline configs,
its Dockerfile, and the sources that it is built from (``attribution`` says whose they are). The project is the directory of
the Compose file, the repository around it, and the build contexts. Directories outside of it are the host's, and are not
read: among them are ``/``, ``/proc`` and disks that do not answer. A symlink leads nowhere.

Skipped are files that would mislead: dependencies, lock files, the Compose files themselves, files that ``inject`` wrote,
hidden files but for the ``.env`` of a program. Secrets are not opened. What is listed and what is read are bounded, because
a mounted data directory may be huge.
"""

from __future__ import annotations

import os
import re
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePath
from typing import Any

from sidecar.inject.attribution import Built, claims, owners
from sidecar.inject.edges import Text
from sidecar.inject.injection import MESH_DIRECTORY

MAX_FILE, MAX_TOTAL, MAX_FILES, MAX_DEPTH = 256 << 10, 4 << 20, 500, 6
MAX_LISTED = 5000
"""Names that are looked at in one directory with all that is in it."""

_KERNEL = tuple(map(Path, ("/proc", "/sys", "/dev", "/run")))
"""Where a read may block, or change something."""

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
    r"package-lock\.json|licen[cs]e.*|changelog.*|readme.*|\.(?!env(?:\.local)?$).*"
)


@dataclass(frozen=True, slots=True)
class Read:
    """By service: its texts, and its Dockerfile. ``unread`` are files that exist and cannot be read."""

    texts: dict[str, tuple[Text, ...]]
    dockerfiles: dict[str, str]
    unread: tuple[str, ...]


def read_texts(config: Any, project: Path) -> Read:
    """The texts that the services of Compose's ``config`` mount and are built from."""
    services: dict[str, Any] = config.get("services") or {}
    contexts = {name: context for name, raw in services.items() if (context := _context(raw)) is not None}
    reader = _Reader(project, frozenset(contexts.values()))
    dockerfiles = {
        name: text
        for name, context in contexts.items()
        if (text := reader.dockerfile(services[name]["build"], context)) is not None
    }
    mounts = {name: [path.resolve() for path in _mounted(raw, config)] for name, raw in services.items()}
    built = {
        name: Built(context, _dockerfile_path(services[name]["build"], context), dockerfiles.get(name), _words(raw))
        for name, context in contexts.items()
        if (raw := services[name])
    }
    narrow = {name: [path for path in paths if not reader.holds_project(path)] for name, paths in mounts.items()}
    claimed = claims(built, narrow, reader.project, reader.known(frozenset(contexts.values())))
    texts = {}
    for name in services:
        found: dict[Path, Text] = {}
        budget = _Budget()
        for path, text in reader.read(narrow[name], budget):
            found.setdefault(path, Text(reader.label(path), text, "mounted"))
        context = contexts.get(name)
        for path, text in reader.read([context] if context is not None else [], budget):
            own = name in owners(path, claimed, reader.project)
            found.setdefault(path, Text(reader.label(path), text, "build" if own else "shared"))
        for path, text in reader.read([path for path in mounts[name] if path not in narrow[name]], budget):
            found.setdefault(path, Text(reader.label(path), text, "shared"))
        if found:
            texts[name] = tuple(found.values())
    return Read(texts, dockerfiles, tuple(sorted(reader.unread)))


def _context(raw: Any) -> Path | None:
    """A build's context, if it is a local directory and not a URL."""
    context = (raw.get("build") or {}).get("context")
    return Path(context).resolve() if isinstance(context, str) and context.startswith("/") else None


def _dockerfile_path(build: Any, context: Path) -> Path:
    return Path(os.path.normpath(context / (build.get("dockerfile") or "Dockerfile")))


def _words(raw: Any) -> tuple[str, ...]:
    """The words that may name the program a service runs: its command, its build's arguments, its directory."""
    commands = [raw.get("entrypoint"), raw.get("command"), raw.get("working_dir")]
    texts = [text for it in commands for text in (it if isinstance(it, list) else [it]) if isinstance(text, str)]
    texts += [text for text in ((raw.get("build") or {}).get("args") or {}).values() if isinstance(text, str)]
    return tuple(word for text in texts for word in text.split())


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
        if self.files < 1 or self.bytes < size:
            return False
        self.files, self.bytes = self.files - 1, self.bytes - size
        return True


class _Reader:
    def __init__(self, project: Path, contexts: frozenset[Path]) -> None:
        self.project = project.resolve()
        around = [self.project, *self.project.parents]
        repository = next((path for path in around if (path / ".git").exists()), self.project)
        # A context at the top of the file system is no source directory.
        self.roots = {self.project, repository, *(it for it in contexts if len(it.parts) > 2)}
        self.unread: set[str] = set()
        self._listed: dict[Path, tuple[Path, ...]] = {}
        self._texts: dict[Path, str | None] = {}

    def holds_project(self, path: Path) -> bool:
        return path == self.project or path in self.project.parents

    def label(self, path: Path) -> str:
        """The path of a file within the project; for a file outside of it only the name, because its path is private."""
        return str(path.relative_to(self.project)) if path.is_relative_to(self.project) else path.name

    def known(self, contexts: frozenset[Path]) -> frozenset[PurePath]:
        """Every file of the contexts, and every directory with one."""
        files = [(context, file) for context in contexts for file in self._files(context)]
        between = {it for context, file in files for it in file.parents if context in it.parents}
        return frozenset({*between, *(file for _, file in files)})

    def read(self, sources: list[Path], budget: _Budget) -> Iterator[tuple[Path, str]]:
        """The text of each file, and of each file in a directory of the project that is not skipped."""
        for source in sources:
            for path in self._files(source):
                text = self._text(path)
                if text is not None and budget.take(len(text)):
                    yield path, text

    def _files(self, source: Path) -> tuple[Path, ...]:
        if source not in self._listed:
            self._listed[source] = tuple(self._list(source))
        return self._listed[source]

    def _list(self, source: Path) -> Iterator[Path]:
        if any(source.is_relative_to(kernel) for kernel in _KERNEL):
            return
        try:
            state = source.stat()
        except OSError:
            return
        if stat.S_ISREG(state.st_mode):
            yield source
        elif stat.S_ISDIR(state.st_mode) and any(source.is_relative_to(root) for root in self.roots):
            yield from _walk(source, state.st_dev)

    def _text(self, path: Path) -> str | None:
        if path not in self._texts:
            try:
                self._texts[path] = _read(path)
            except OSError:
                self._texts[path] = None
                self.unread.add(self.label(path))
        return self._texts[path]

    def dockerfile(self, build: Any, context: Path) -> str | None:
        if build.get("dockerfile_inline"):
            return str(build["dockerfile_inline"])
        path = _dockerfile_path(build, context)
        return self._text(path) if path.is_file() else None


def _walk(top: Path, device: int) -> Iterator[Path]:
    """The files in a directory and in those in it, the nearest first. Symlinks and other disks are left out."""
    left, queue = MAX_LISTED, deque([(top, 0)])
    while queue and left > 0:
        directory, depth = queue.popleft()
        try:
            with os.scandir(directory) as names:
                entries = sorted(islice(names, left), key=lambda entry: entry.name)
            left -= len(entries)
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    skipped = entry.name in _SKIPPED_DIRECTORIES or entry.name.startswith(".") or depth >= MAX_DEPTH
                    if not skipped and entry.stat(follow_symlinks=False).st_dev == device:
                        queue.append((Path(entry.path), depth + 1))
                elif entry.is_file(follow_symlinks=False) and not _SKIPPED_FILES.fullmatch(entry.name):
                    yield Path(entry.path)
        except OSError:
            continue


def _read(path: Path) -> str | None:
    """A file's text, None if it is none. It is looked at once it is open, and opening it does not wait. A file of size 0 may
    be one of the kernel's that has no end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode) or not 0 < state.st_size <= MAX_FILE:
            return None
        content = file.read(state.st_size)
    try:
        return None if b"\0" in content else content.decode()
    except UnicodeDecodeError:
        return None
