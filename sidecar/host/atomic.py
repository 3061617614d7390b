"""Files that are written whole or not at all, one or several that belong together.

A file is written under a temporary name in its own directory, brought to the disk, and renamed. So whenever the process is
killed, each file is there whole, old or new. Of several files, all are on the disk before the first gets its name: a full
disk changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

PUBLIC, SECRET = 0o644, 0o600

_TEMPORARY = ".tmp"


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file to be written. ``name``: a path. ``mode``: :data:`PUBLIC` or :data:`SECRET`, say; the umask can only take from
    it."""

    name: str
    content: bytes
    mode: int


def write_files(files: Iterable[NewFile], *, dir_fd: int | None = None, take_back: bool = False) -> None:
    """Writes the files in the order given. Names are relative to the directory ``dir_fd``, if there is one. A symlink in the
    place of a file is replaced, and not followed.

    Raises :class:`OSError`; then nothing is changed, unless a name could not be given after another was. With ``take_back``
    the files that got their names before that are removed: for files that are all new.
    """
    fresh: dict[str, str] = {}
    named: list[str] = []
    try:
        for file in files:
            fresh[file.name] = _write_temporary(file, dir_fd)
        for name, temporary in fresh.items():
            os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
            named.append(name)
        for directory in dict.fromkeys(os.path.dirname(name) for name in fresh):  # noqa: PTH120 (by descriptor)
            sync_directory(directory or ".", dir_fd)
    except BaseException:
        for left in (*fresh.values(), *(named if take_back else ())):
            with contextlib.suppress(OSError):
                os.unlink(left, dir_fd=dir_fd)
        raise


def remove_unfinished(dir_fd: int) -> None:
    """Removes what a killed process left half written in a directory that nobody writes to now."""
    for name in os.listdir(dir_fd):
        if name.endswith(_TEMPORARY):
            os.unlink(name, dir_fd=dir_fd)


def sync_directory(path: str, dir_fd: int | None) -> None:
    """Brings the names in a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_temporary(file: NewFile, dir_fd: int | None) -> str:
    directory, name = os.path.split(file.name)
    path = os.path.join(directory, f".{name}.{secrets.token_hex(8)}{_TEMPORARY}")  # noqa: PTH118 (by descriptor)
    # The mode is set as the file is made: a chmod afterwards leaves a moment in which others can open it.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, file.mode, dir_fd=dir_fd)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(file.content)
            stream.flush()
            os.fsync(descriptor)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path, dir_fd=dir_fd)
        raise
    return path
