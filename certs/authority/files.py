"""Files that hold keys and certificates: read with suspicion, written whole or not at all.

Every mistake that a person can make with them is a :class:`sidecar.identity.reasons.UsageError` saying what to do; nothing here
puts a file's content into a message.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sidecar.identity.reasons import UsageError

MAX_BYTES = 64 * 1024
"""No key or chain of ours is near that size."""

PUBLIC, SECRET = 0o644, 0o600
WRITER_WAITS_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file to be written. ``mode``: :data:`PUBLIC` or :data:`SECRET`; the umask can only take from it."""

    name: str
    content: bytes
    mode: int


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
        # O_NONBLOCK, so that a FIFO in its place is refused and not waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode):
                raise UsageError(f"{path} is not a regular file")
            if secret:
                _refuse_shared(path, state)
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise UsageError(f"{path} is larger than {MAX_BYTES // 1024} KiB, so it is no key or certificate of ours")
    return content


def check_secret(path: Path) -> None:
    """Raises if ``path`` exists and is not its owner's alone; it is not opened."""
    try:
        _refuse_shared(path, path.stat())
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"cannot look at {path}: {error.strerror}") from error


def write(directory: Path, files: list[NewFile], *, force: bool) -> None:
    """Writes the files in the order given, each one whole or not at all; call it with the directory locked.

    Everything is on the disk under temporary names before the first file gets its own, so that a full disk changes
    nothing. If a name cannot be given after that, the names given before it are taken back where they are new.
    Without ``force`` nothing is overwritten; with it symlinks still are not.
    """
    fresh: dict[str, Path] = {}
    named: list[Path] = []
    try:
        refuse_occupied(directory, [file.name for file in files], force=force)
        for file in files:
            fresh[file.name] = _write_temporary(directory, file)
        for name, temporary in fresh.items():
            temporary.rename(directory / name)
            named.append(directory / name)
        _sync_directory(directory)
    except BaseException as error:
        for path in (*fresh.values(), *(() if force else named)):
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UsageError(f"cannot write to {directory}: {error.strerror}") from error
        raise


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


def _refuse_shared(path: Path, state: os.stat_result) -> None:
    if state.st_mode & 0o077:
        raise UsageError(f"the key {path} can be read or written by others: chmod 600 {path}")


def _write_temporary(directory: Path, file: NewFile) -> Path:
    path = directory / f".{file.name}.{secrets.token_hex(8)}.tmp"
    # The mode is set as the file is made: a chmod afterwards leaves a moment in which others can open it.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, file.mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(file.content)
            stream.flush()
            os.fsync(descriptor)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
