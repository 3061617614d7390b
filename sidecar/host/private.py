"""Files and directories that only their owner may access, and a safe way to read a file that another user may have placed.

The file that is checked is the file that is read (:mod:`sidecar.documents.regular`). This module writes no messages: each
caller tells its user what to do.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from enum import Enum, auto
from pathlib import Path

from sidecar.documents.regular import IrregularError, Regular, read_regular


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


def is_foreign(status: os.stat_result) -> bool:
    """Whether a file or directory belongs to a user who is neither root nor the user of this process: its owner may change
    it and its mode at any time."""
    return status.st_uid not in (0, os.geteuid())


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
    return read_checked(lambda: read_regular(path, limit, follow=follow, dir_fd=dir_fd), limit, alone)


def _is_secret_mount(found: Regular, alone: Alone) -> bool:
    """Whether a file that others can read is on a secret mount of a container platform, where its mode cannot be changed:
    Kubernetes and Docker mount secrets read-only, by default with mode 0444 or 0644.

    Accepted for :data:`Alone.OURS_OR_GROUPS` alone (a sidecar's key and secret, not a CA's) if the mount is read-only, it is
    not the root file system, and group and others can do nothing but read. Then only the users of this container can read
    the file: a container of its own has one. Who runs other users in the same container, or mounts a share read-only on a
    host with several users, gives them the key."""
    others = stat.S_IWGRP | stat.S_IXGRP | stat.S_IWOTH | stat.S_IXOTH
    return (
        alone is Alone.OURS_OR_GROUPS
        and found.read_only
        and not found.status.st_mode & others
        and found.status.st_dev != Path("/").stat().st_dev
    )


def read_checked(read: Callable[[], Regular], limit: int, alone: Alone | None) -> bytes:
    """The content of the file that ``read`` returns, checked as :func:`read_file` does."""
    try:
        found = read()
    except IrregularError as error:
        raise UnfitError(Unfit.IRREGULAR, error.status) from error
    if (
        alone is not None
        and (unfit := exposure(found.status, alone)) is not None
        and not _is_secret_mount(found, alone)
    ):
        raise UnfitError(unfit, found.status)
    if len(found.content) > limit:
        raise UnfitError(Unfit.TOO_LARGE, found.status)
    return found.content
