"""Regular files, read whole. Pure, but for the disk.

A FIFO or a device in the place of a file would make its reader wait, perhaps for ever. So a file is opened without blocking
and checked by its descriptor: what is checked is what is read. Nothing here protects from a file system that does not answer
(:mod:`sidecar.host.disk` does).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


class IrregularError(Exception):
    """No regular file is there, but a directory, a FIFO, a device or a socket."""

    def __init__(self, status: os.stat_result) -> None:
        super().__init__("Is a directory" if stat.S_ISDIR(status.st_mode) else "Not a regular file")
        self.status = status


@dataclass(frozen=True, slots=True)
class Regular:
    """A file as it was when it was read. ``content`` has one byte more than the limit if the file is larger. ``read_only``:
    whether its mount is. Equal if content, owner, mode and mount are: a change of its times or its inode is none."""

    content: bytes
    status: os.stat_result = field(compare=False)
    read_only: bool
    access: tuple[int, int, int]


Read = Callable[[Path, int], Regular]
"""Reads the file at a path, up to a limit in bytes. Raises :class:`OSError`, :class:`ValueError` (no file has such a name)
and :class:`IrregularError`."""


def read_regular(path: str | Path, limit: int, *, follow: bool = True, dir_fd: int | None = None) -> Regular:
    """The regular file at ``path``. Without ``follow`` the last part of its path must not be a symlink. Raises as
    :data:`Read` says."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(path, flags, dir_fd=dir_fd)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise IrregularError(status)
        read_only = bool(os.fstatvfs(descriptor).f_flag & os.ST_RDONLY)
        parts, size = [], 0
        while size <= limit and (part := os.read(descriptor, limit + 1 - size)):
            parts.append(part)
            size += len(part)
    finally:
        os.close(descriptor)
    return Regular(b"".join(parts), status, read_only, (status.st_mode, status.st_uid, status.st_gid))
