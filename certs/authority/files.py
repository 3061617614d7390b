"""Files with keys and certificates: read strictly, written whole or not at all.

Every mistake of an operator is a :class:`sidecar.identity.reasons.UsageError` that says what to do. No message contains a
file's content.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from pwd import getpwuid

from sidecar.host.atomic import NewFile, write_files
from sidecar.host.private import Alone, Unfit, UnfitError, exposure, is_foreign, read_file
from sidecar.identity.reasons import UsageError

MAX_BYTES = 64 * 1024
"""No key or chain of the mesh is near this size."""

WRITER_WAITS_SECONDS = 2.0


def make_directory(path: Path) -> None:
    """Makes ``path`` and its missing parents, each with mode 0700. Existing ones stay as they are."""
    try:
        for each in (*reversed(path.parents), path):
            each.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the directory {path}: {error.strerror}") from error


def check_owner(path: Path) -> None:
    """Raises :class:`UsageError` if a file or directory of the CA belongs to another user, who could replace it."""
    try:
        status = path.stat()
    except OSError as error:
        raise UsageError(f"cannot check {path}: {error.strerror}") from error
    if is_foreign(status):
        raise UsageError(
            f"{path} belongs to another user ({_user(status.st_uid)}), who could replace what is in it: run this as that "
            f"user, or chown {path}"
        )


def _user(number: int) -> str:
    try:
        return getpwuid(number).pw_name
    except KeyError:
        return str(number)


@contextmanager
def locked(directory: Path, *, exclusive: bool) -> Iterator[None]:
    """Locks the directory against other runs of this program, so that no reader sees old and new files mixed.

    Refuses a world-writable directory, since any user could replace the files in it. A writer waits up to
    :data:`WRITER_WAITS_SECONDS` for readers (a serving CA reads its files each second); not longer, since every user who can
    read the directory can hold a lock. A reader does not wait, because it may have requests to serve.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"cannot open the directory {directory}: {error.strerror}") from error
    try:
        if os.fstat(descriptor).st_mode & stat.S_IWOTH:
            raise UsageError(
                f"every user may write to the directory {directory}: chmod o-w {directory}, or use another"
            )
        if not _lock(descriptor, exclusive):
            raise UsageError(f"another program has locked {directory}: try again")
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, exclusive: bool) -> bool:
    end = time.monotonic() + (WRITER_WAITS_SECONDS if exclusive else 0)
    while True:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.02)  # noqa: TID251  # a writing program has no event loop, or nothing else to do in it
        else:
            return True


def missing(directory: Path, names: Iterable[str]) -> list[str]:
    """The names that do not exist in the directory."""
    return [name for name in names if not os.path.lexists(directory / name)]


def read(path: Path, *, secret: bool = False) -> bytes:
    """The content of a regular file of at most :data:`MAX_BYTES`. ``secret``: only its owner may have access."""
    try:
        return read_file(path, MAX_BYTES, Alone.BY_MODE if secret else None)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except UnfitError as error:
        raise UsageError(
            {
                Unfit.IRREGULAR: f"{path} is not a regular file",
                Unfit.TOO_LARGE: f"{path} is larger than {MAX_BYTES // 1024} KiB, too large for a key or certificate",
            }.get(error.unfit, _shared(path))
        ) from error


def check_secret(path: Path) -> None:
    """Raises :class:`UsageError` if ``path`` exists and others than its owner have access. Does not open it."""
    try:
        exposed = exposure(path.stat(), Alone.BY_MODE)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"cannot check {path}: {error.strerror}") from error
    if exposed is not None:
        raise UsageError(_shared(path))


def _shared(path: Path) -> str:
    return f"the key {path} can be read or written by others: chmod 600 {path}"


def write(directory: Path, files: list[NewFile], *, force: bool) -> None:
    """Writes the files in the order given, each whole or not at all; call it with the directory locked.

    All content is on disk under temporary names before the first rename, so a full disk changes nothing. If a rename fails,
    the new files renamed before it are removed again. Without ``force`` nothing is overwritten; with it, symlinks still are
    not.
    """
    try:
        refuse_occupied(directory, [file.name for file in files], force=force)
        write_files([replace(file, name=str(directory / file.name)) for file in files], take_back=not force)
    except OSError as error:
        raise UsageError(f"cannot write to {directory}: {error.strerror}") from error


def unused_name(path: Path) -> Path:
    """The path, or the first ``path-2``, ``path-3``, … that does not exist yet."""
    number = 1
    candidate = path
    while os.path.lexists(candidate):
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def refuse_occupied(directory: Path, names: list[str], *, force: bool) -> None:
    """Raises :class:`UsageError` if a name exists; with ``force``, only if it is not a regular file."""
    existing = [directory / name for name in names if os.path.lexists(directory / name)]
    if existing and not force:
        raise UsageError(f"already there: {', '.join(map(str, existing))}; nothing was written (--force overwrites)")
    for path in existing:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise UsageError(f"{path} is a symlink or not a regular file, and is not overwritten: remove it yourself")
