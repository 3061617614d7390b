"""The files of the project: their present content, their new content, and the change. I/O: reads and writes them.

All or nothing: everything is on the disk under temporary names before the first file is replaced. A file that ``inject`` did
not write, or that is not a regular file, is not overwritten.
"""

from __future__ import annotations

import difflib
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sidecar.host.atomic import PUBLIC, SECRET, NewFile, write_files
from sidecar.identity.reasons import UsageError
from sidecar.inject.injection import MESH_DIRECTORY
from sidecar.inject.merged import MERGED

MAX_BYTES = 32 << 20
_OURS = ("sidecars/*.yaml", "scrape/*.json", *(f"image/{name}" for name in ("*.whl", "Dockerfile", "constraints.txt")))
_OURS += tuple(pattern.replace("image/", "image/*/") for pattern in _OURS[2:])


@dataclass(frozen=True, slots=True)
class Change:
    """The content of a file before and after, None where there is no file. ``path`` is relative to the project."""

    path: str
    before: bytes | None
    after: bytes | None


def read(path: Path) -> bytes | None:
    """A file's content, None if it does not exist. Raises :class:`UsageError` if it is not a regular file."""
    try:
        state = path.lstat()
        if not stat.S_ISREG(state.st_mode) or state.st_size > MAX_BYTES:
            raise UsageError(
                f"{path}: is no regular file, or a huge one, and is not overwritten: move it out of the way"
            )
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error


def read_text(path: Path) -> str | None:
    content = read(path)
    try:
        return None if content is None else content.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text") from error


def find_changes(project: Path, files: Mapping[str, bytes]) -> list[Change]:
    """The files to write, and the files of earlier runs to remove. Files that are right already are left out."""
    changes = [Change(path, read(project / path), content) for path, content in files.items()]
    for pattern in _OURS:
        for path in sorted((project / MESH_DIRECTORY).glob(pattern)):
            name = path.relative_to(project).as_posix()
            if name not in files:
                changes.append(Change(name, read(path), None))
    return [change for change in changes if change.before != change.after]


def diff(changes: Iterable[Change], *, new_too: bool) -> str:
    """The changes as a unified diff; of new files only the names, in one line, unless ``new_too``. The content of a
    file that holds secrets is never in it."""
    lines = []
    fresh: dict[str, list[str]] = {}
    for change in changes:
        if change.before is None and not new_too:
            fresh.setdefault(str(PurePosixPath(change.path).parent), []).append(change.path)
            continue
        before, after = _lines(change.before), _lines(change.after)
        if before is None or after is None or change.path == MERGED:
            lines.append(f"{'new' if change.before is None else 'changed'}: {change.path}")
            continue
        old = "/dev/null" if change.before is None else f"a/{change.path}"
        new = "/dev/null" if change.after is None else f"b/{change.path}"
        lines += list(difflib.unified_diff(before, after, old, new, lineterm=""))
    if fresh:
        short = [paths[0] if len(paths) == 1 else f"{len(paths)} files in {where}" for where, paths in fresh.items()]
        lines.append("new: " + ", ".join(short))
    return "\n".join(lines)


def _lines(content: bytes | None) -> list[str] | None:
    try:
        return [] if content is None else content.decode().splitlines()
    except UnicodeDecodeError:
        return None


def write(project: Path, changes: Iterable[Change]) -> None:
    """Makes the changes. Raises :class:`UsageError`, and then nothing is changed but, if a disk fails in the very last
    moment, some files whole."""
    changes = list(changes)
    try:
        fresh = [_new_file(project / change.path, change.after) for change in changes if change.after is not None]
        write_files(fresh)
        for change in changes:
            if change.after is None:
                path = project / change.path
                path.unlink(missing_ok=True)
                if path.parent.parent.name == "image" and not any(path.parent.iterdir()):
                    path.parent.rmdir()
    except OSError as error:
        raise UsageError(f"{error.filename or project}: cannot be written: {error.strerror}") from error


def _new_file(path: Path, content: bytes) -> NewFile:
    """A file whose directory is there, and whose mode stays what it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = SECRET if path.name == MERGED else PUBLIC
    return NewFile(str(path), content, stat.S_IMODE(path.stat().st_mode) if path.exists() else fresh)
