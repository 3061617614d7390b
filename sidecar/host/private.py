"""Files and directories that must be their owner's alone, and how files are read that may be somebody's trap.

A file is opened without waiting (a FIFO in its place would be waited for, for ever) and is judged by its descriptor, so what
was judged is what is read. Nothing here words a message: each caller says what its user is to do.
"""

from __future__ import annotations

import os
import stat
from enum import Enum, auto
from pathlib import Path


class Alone(Enum):
    """What makes a file or directory its owner's alone."""

    BY_MODE = auto()
    """Its mode gives nobody else anything, whoever the owner is."""
    OURS = auto()
    """So its mode, and the owner is the user of this process."""
    OURS_OR_GROUPS = auto()
    """So its mode; but root may let one group read what is root's (as PostgreSQL has it), for a process that is not root."""


class Unfit(Enum):
    """Why a file is not read."""

    IRREGULAR = auto()
    SHARED = auto()
    FOREIGN = auto()
    TOO_LARGE = auto()


class UnfitError(Exception):
    """A file is not read. ``status`` is what was found."""

    def __init__(self, unfit: Unfit, status: os.stat_result) -> None:
        super().__init__(unfit.name)
        self.unfit = unfit
        self.status = status


def exposure(status: os.stat_result, alone: Alone) -> Unfit | None:
    """Why a file or directory is not its owner's alone (``SHARED`` or ``FOREIGN``); None if it is."""
    if alone is Alone.OURS and status.st_uid != os.geteuid():
        return Unfit.FOREIGN
    others = stat.S_IRWXG | stat.S_IRWXO
    if alone is Alone.OURS_OR_GROUPS and status.st_uid == 0 and os.getuid() != 0:
        others = stat.S_IWGRP | stat.S_IXGRP | stat.S_IRWXO
    return Unfit.SHARED if status.st_mode & others else None


def read_file(
    path: str | Path, limit: int, alone: Alone | None = None, *, follow: bool = True, dir_fd: int | None = None
) -> bytes:
    """The content of a regular file of at most ``limit`` bytes. With ``alone`` it must be its owner's alone; without
    ``follow`` the last part of its path must not be a symlink. Raises :class:`OSError` and :class:`UnfitError`."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(path, flags, dir_fd=dir_fd)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):  # before it is opened as a file, which a directory cannot be
        os.close(descriptor)
        raise UnfitError(Unfit.IRREGULAR, status)
    with os.fdopen(descriptor, "rb") as file:
        if alone is not None and (unfit := exposure(status, alone)) is not None:
            raise UnfitError(unfit, status)
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UnfitError(Unfit.TOO_LARGE, status)
    return content
