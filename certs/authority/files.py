"""Files that hold keys and certificates: read with suspicion, written whole or not at all.

Every mistake that a person can make with them is a :class:`sidecar.identity.reasons.UsageError` saying what to do; nothing here
puts a file's content into a message.
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

from sidecar.host.atomic import NewFile, write_files
from sidecar.host.private import Alone, Unfit, UnfitError, exposure, read_file
from sidecar.identity.reasons import UsageError

MAX_BYTES = 64 * 1024
"""No key or chain of ours is near that size."""

WRITER_WAITS_SECONDS = 2.0


def make_directory(path: Path) -> None:
    """Makes ``path``, and what is missing above it, with mode 0700 whatever the umask; what exists stays as it is."""
    try:
        for each in (*reversed(path.parents), path):
            each.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the directory {path}: {error.strerror}") from error


@contextmanager
def locked(directory: Path, *, exclusive: bool) -> Iterator[None]:
    """Holds the directory against other runs of ours: its files belong together, and no reader may see two generations
    mixed. Refuses a directory that anybody may write to, since anybody could swap the files in it. Who writes waits for
    who reads at this moment (a CA that serves looks at its files), but not long, since a lock can be held by whoever can
    read the directory; who reads does not wait at all, for it may have others to serve."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"cannot open the directory {directory}: {error.strerror}") from error
    try:
        if os.fstat(descriptor).st_mode & stat.S_IWOTH:
            raise UsageError(f"anybody may write to the directory {directory}: chmod o-w {directory}, or use another")
        if not _lock(descriptor, exclusive):
            raise UsageError(f"another program is at work in {directory}: try again")
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
            time.sleep(0.02)  # noqa: TID251  # programs that write run no event loop, or have nothing else to do in it
        else:
            return True


def missing(directory: Path, names: Iterable[str]) -> list[str]:
    """Those of the names that the directory does not have."""
    return [name for name in names if not os.path.lexists(directory / name)]


def read(path: Path, *, secret: bool = False) -> bytes:
    """The content of a regular file of at most :data:`MAX_BYTES`. A ``secret`` one must be its owner's alone."""
    try:
        return read_file(path, MAX_BYTES, Alone.BY_MODE if secret else None)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except UnfitError as error:
        raise UsageError(
            {
                Unfit.IRREGULAR: f"{path} is not a regular file",
                Unfit.TOO_LARGE: f"{path} is larger than {MAX_BYTES // 1024} KiB, so it is no key or certificate of ours",
            }.get(error.unfit, _shared(path))
        ) from error


def check_secret(path: Path) -> None:
    """Raises if ``path`` exists and is not its owner's alone; it is not opened."""
    try:
        exposed = exposure(path.stat(), Alone.BY_MODE)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"cannot look at {path}: {error.strerror}") from error
    if exposed is not None:
        raise UsageError(_shared(path))


def _shared(path: Path) -> str:
    return f"the key {path} can be read or written by others: chmod 600 {path}"


def write(directory: Path, files: list[NewFile], *, force: bool) -> None:
    """Writes the files in the order given, each one whole or not at all; call it with the directory locked.

    Everything is on the disk under temporary names before the first file gets its own, so that a full disk changes
    nothing. If a name cannot be given after that, the names given before it are taken back where they are new.
    Without ``force`` nothing is overwritten; with it symlinks still are not.
    """
    try:
        refuse_occupied(directory, [file.name for file in files], force=force)
        write_files([replace(file, name=str(directory / file.name)) for file in files], take_back=not force)
    except OSError as error:
        raise UsageError(f"cannot write to {directory}: {error.strerror}") from error


def unused_name(path: Path) -> Path:
    """The path, or one beside it, that nothing has yet."""
    number = 1
    candidate = path
    while os.path.lexists(candidate):
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def refuse_occupied(directory: Path, names: list[str], *, force: bool) -> None:
    """Raises :class:`UsageError` if any of the names is taken; with ``force``, if by something else than a file."""
    existing = [directory / name for name in names if os.path.lexists(directory / name)]
    if existing and not force:
        raise UsageError(f"already there: {', '.join(map(str, existing))}; nothing was written (--force overwrites)")
    for path in existing:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise UsageError(f"{path} is a symlink or no file at all, and is not overwritten: remove it yourself")
