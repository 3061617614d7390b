"""``state_dir``: what a sidecar keeps between two starts: its certificate with the key, and what it trusts. Fails closed.

====================== =========================================================================================
``identity.pem``       the key, then the chain; one file, so that the two are never of different certificates
``pending.pem``        the key of an enrolment that was asked for and is not answered yet
``bundle.json``        the newest trust bundle
``revocations.json``   the newest list of revocations
``member.json``        ``{"instance", "pin"}``: which sidecar this is, and the root that it was told to trust
====================== =========================================================================================

The directory is its owner's alone (0700), as is each file (0600), and neither may be a symlink. A file is written beside its
place, brought to the disk and renamed, so it is there whole, old or new, whenever the process is killed. One process at a
time has the directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path

from sidecar.host.atomic import SECRET, NewFile, remove_unfinished, write_files
from sidecar.host.private import Alone, Unfit, UnfitError, exposure, read_file
from sidecar.identity.reasons import UsageError

IDENTITY, PENDING = "identity.pem", "pending.pem"
BUNDLE, REVOCATIONS, MEMBER = "bundle.json", "revocations.json", "member.json"
MAX_BYTES = 4 << 20


class StateDir:
    """An open state directory, ours alone until :meth:`close`. Its constructor raises :class:`UsageError`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise UsageError(f"{path.parent}: is not there, so state_dir cannot be made in it") from error
        except OSError as error:
            what = "is a symlink" if path.is_symlink() else error.strerror
            raise UsageError(f"{path}: cannot be state_dir: {what}; it must be a directory of its own") from error
        try:
            self._claim()
            remove_unfinished(self._fd)
        except BaseException:
            os.close(self._fd)
            raise

    def _claim(self) -> None:
        status = os.fstat(self._fd)
        exposed = exposure(status, Alone.OURS)
        if exposed is Unfit.FOREIGN:
            raise UsageError(f"{self.path}: state_dir belongs to another user, who could read the key in it")
        if exposed is not None:
            mode = stat.S_IMODE(status.st_mode)
            raise UsageError(
                f"{self.path}: state_dir can be read by others (mode {mode:04o}); do: chmod 700 {self.path}"
            )
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"{self.path}: another sidecar is using this state_dir; each needs one of its own"
            ) from error

    def close(self) -> None:
        os.close(self._fd)

    def read(self, name: str) -> bytes | None:
        """A file's content; None if there is none. Raises :class:`UsageError` for one that others could have read or
        swapped."""
        path = self.path / name
        try:
            return read_file(name, MAX_BYTES, Alone.OURS, follow=False, dir_fd=self._fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {error.strerror}; a symlink is not followed") from error
        except UnfitError as error:
            why = {
                Unfit.IRREGULAR: "is not a regular file",
                Unfit.SHARED: f"can be read by others; do: chmod 600 {path}",
                Unfit.FOREIGN: f"can be read by others; do: chmod 600 {path}",
                Unfit.TOO_LARGE: f"is larger than {MAX_BYTES >> 20} MiB, so it is none of ours",
            }[error.unfit]
            raise UsageError(f"{path}: {why}") from error

    def write(self, name: str, data: bytes) -> None:
        """Replaces a file. Raises :class:`OSError`; the old one is there then."""
        write_files([NewFile(name, data, SECRET)], dir_fd=self._fd)

    def remove(self, *names: str) -> None:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._fd)
