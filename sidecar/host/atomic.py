"""Files that are written whole or not at all, one file or several that belong together.

How this works. A file is written under a temporary name in its own directory, flushed to the disk, and renamed. So each file
is whole, old or new, whenever the process is killed. Several files are all on the disk before the first is renamed, so a
full disk changes nothing.
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
    """A file to be written. ``name``: a path. ``mode``: for example :data:`PUBLIC` or :data:`SECRET`; the umask can only
    remove bits from it."""

    name: str
    content: bytes
    mode: int


def write_files(files: Iterable[NewFile], *, dir_fd: int | None = None, take_back: bool = False) -> None:
    """Writes the files in the order given. Names are relative to the directory ``dir_fd``, if it is given. A symlink in
    the place of a file is replaced, not followed.

    Raises :class:`OSError`; then nothing has changed, unless one rename failed after another had succeeded. With
    ``take_back`` the files that were renamed before that are removed, which suits files that are all new.
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
    """Removes the temporary files of a killed process. No other process may be writing to the directory."""
    for name in os.listdir(dir_fd):
        if name.endswith(_TEMPORARY):
            os.unlink(name, dir_fd=dir_fd)


def sync_directory(path: str, dir_fd: int | None) -> None:
    """Flushes the names in a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_temporary(file: NewFile, dir_fd: int | None) -> str:
    directory, name = os.path.split(file.name)
    path = os.path.join(directory, f".{name}.{secrets.token_hex(8)}{_TEMPORARY}")  # noqa: PTH118 (by descriptor)
    # The mode is set at creation: with a later chmod, other users could open the file in between.
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
