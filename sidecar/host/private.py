"""Files and directories that only their owner may access, and a safe way to read a file that another user may have placed.

A file is opened without blocking (a FIFO in its place would block for ever) and checked by its descriptor, so the file that
is checked is the file that is read. This module writes no messages: each caller tells its user what to do.
"""

from __future__ import annotations

import os
import stat
from enum import Enum, auto
from pathlib import Path


class Alone(Enum):
    """The conditions under which only the owner can access a file or directory."""

    BY_MODE = auto()
    """Its mode gives group and others no access. Any owner will do."""
    OURS = auto()
    """As ``BY_MODE``, and the owner is the user of this process."""
    OURS_OR_GROUPS = auto()
    """As ``BY_MODE``; but a file of root may be readable for its group, as in PostgreSQL, if the process is not root."""


class Unfit(Enum):
    """Why a file is refused."""

    IRREGULAR = auto()
    SHARED = auto()
    FOREIGN = auto()
    TOO_LARGE = auto()


class UnfitError(Exception):
    """A file is refused. ``status`` is its status when it was checked."""

    def __init__(self, unfit: Unfit, status: os.stat_result) -> None:
        super().__init__(unfit.name)
        self.unfit = unfit
        self.status = status


def exposure(status: os.stat_result, alone: Alone) -> Unfit | None:
    """Why a file or directory does not meet ``alone`` (``SHARED`` or ``FOREIGN``); None if it does."""
    if alone is Alone.OURS and status.st_uid != os.geteuid():
        return Unfit.FOREIGN
    others = stat.S_IRWXG | stat.S_IRWXO
    if alone is Alone.OURS_OR_GROUPS and status.st_uid == 0 and os.getuid() != 0:
        others = stat.S_IWGRP | stat.S_IXGRP | stat.S_IRWXO
    return Unfit.SHARED if status.st_mode & others else None


def read_file(
    path: str | Path, limit: int, alone: Alone | None = None, *, follow: bool = True, dir_fd: int | None = None
) -> bytes:
    """The content of a regular file of at most ``limit`` bytes. ``alone``: its owner alone must have access.
    Without ``follow`` the last part of its path must not be a symlink. Raises :class:`OSError` and :class:`UnfitError`."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(path, flags, dir_fd=dir_fd)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):  # checked before fdopen(), which fails for a directory
        os.close(descriptor)
        raise UnfitError(Unfit.IRREGULAR, status)
    with os.fdopen(descriptor, "rb") as file:
        if alone is not None and (unfit := exposure(status, alone)) is not None:
            raise UnfitError(unfit, status)
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UnfitError(Unfit.TOO_LARGE, status)
    return content
