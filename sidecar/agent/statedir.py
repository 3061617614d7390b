"""``state_dir``: the files that a sidecar keeps between two starts. Fails closed: files that others can read are refused.

====================== =========================================================================================
``identity.pem``       the key, then the chain; one file, so that the two are never of different certificates
``pending.pem``        the key of an enrolment that has no answer yet
``bundle.json``        the newest trust bundle
``revocations.json``   the newest list of revocations
``member.json``        ``{"instance", "pin", "floors"}``: the random name of this replica, the pinned root's digest, and
                       what was newest of each signer of lists (:class:`sidecar.agent.trust.Floor`)
``own.json``           ``{"keys", "since"}``: which keys it made for certificates (:class:`sidecar.agent.twins.Own`)
``evidence/``          what impostors presented (:mod:`sidecar.observe.evidence`)
====================== =========================================================================================

The directory has mode 0700, each file 0600, and none is a symlink. A file is written under a temporary name, synced and
renamed: whenever the process is killed, the old or the new content is complete. A lock keeps a second process out.
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
BUNDLE, REVOCATIONS, MEMBER, OWN = "bundle.json", "revocations.json", "member.json", "own.json"
MAX_BYTES = 4 << 20


class StateDir:
    """An open state directory, locked until :meth:`close`. The constructor raises :class:`UsageError`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise UsageError(f"{path.parent}: does not exist, so state_dir cannot be created in it") from error
        except OSError as error:
            what = "is a symlink" if path.is_symlink() else error.strerror
            raise UsageError(f"{path}: cannot be state_dir: {what}; it must be a directory of its own") from error
        try:
            self._check_and_lock()
            remove_unfinished(self._fd)
        except BaseException:
            os.close(self._fd)
            raise

    def _check_and_lock(self) -> None:
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
        """A file's content; None if there is none. Raises :class:`UsageError` if others could have read or replaced it."""
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
                Unfit.TOO_LARGE: f"is larger than {MAX_BYTES >> 20} MiB, so this program did not write it",
            }[error.unfit]
            raise UsageError(f"{path}: {why}") from error

    def write(self, name: str, data: bytes) -> None:
        """Replaces a file. Raises :class:`OSError`; then the old file stays."""
        write_files([NewFile(name, data, SECRET)], dir_fd=self._fd)

    def remove(self, *names: str) -> None:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._fd)
