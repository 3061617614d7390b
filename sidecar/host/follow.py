"""Files that a program follows: a valid change takes effect, a mistake is reported once, the last good value stays.

How this works. No notification reports every kind of change reliably (in place, by rename, by a swapped symlink), so the
files are read once a second; they are small. :class:`Watch` decides that their contents are new, but only when two looks in
a row found the same contents: so a half-written file, and a certificate whose key is not yet written, settle first. Then
:class:`Follower` calls ``take``, which gets a value for each topic from :meth:`Follower.attempt` and puts the values in
force by replacing one reference. A topic that is refused yields its last good value, so it does not hold up the other
topics.

All reading of files is in :func:`read_all`, and all parsing runs in :meth:`Follower.attempt`. Only asynchronous methods call
the two.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from sidecar.identity.reasons import UsageError

LOOK_SECONDS = 1.0
MAX_BYTES = 1 << 20

Contents = Mapping[Path, bytes | None]
"""The content of each file; None if it cannot be read (or is larger than :data:`MAX_BYTES`)."""

_T = TypeVar("_T")
_Topic = TypeVar("_Topic", bound=Hashable)


# -- reading -----------------------------------------------------------------------------------------------------------


def read_all(paths: Iterable[Path]) -> Contents:
    """The current contents of the files."""
    return {path: _read(path) for path in paths}


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError:
        return None
    return data if len(data) <= MAX_BYTES else None


class Watch:
    """Finds each change once, when it has settled. Pure: what was read is an argument."""

    def __init__(self, known: Contents) -> None:
        self._known = known
        self._last = known

    def look(self, now: Contents) -> Contents | None:
        """Takes the current contents of the files. Returns them if they are new and settled, else None. They are returned
        once, even if they turn out to be a mistake, until the files change again."""
        settled = now == self._last
        self._last = now
        if not settled or now == self._known:
            return None
        self._known = now
        return now


# -- reporting ---------------------------------------------------------------------------------------------------------


class ReportOnce(Generic[_Topic]):
    """The current faults, by topic. A fault is reported once, and again when it changes; its end is reported too.

    Unless ``exact``, faults that differ only in digits are the same fault: a message may contain the current time.
    """

    def __init__(
        self,
        reported: Callable[[_Topic, str], object],
        mended: Callable[[_Topic], object] = lambda _: None,
        *,
        exact: bool = False,
    ) -> None:
        self._reported = reported
        self._mended = mended
        self._exact = exact
        self._faults: dict[_Topic, str | None] = {}

    def __bool__(self) -> bool:
        """Whether there is any fault."""
        return bool(self._faults)

    def report(self, topic: _Topic, fault: str | None) -> bool:
        """Sets the current fault of a topic; None if there is none. Returns whether this was a change."""
        if fault is None:
            if topic not in self._faults:
                return False
            del self._faults[topic]
            self._mended(topic)
            return True
        plain = fault if self._exact else re.sub(r"[0-9]+", "", fault)
        if topic in self._faults and self._faults[topic] == plain:
            return False
        self._faults[topic] = plain
        self._reported(topic, fault)
        return True

    def renew(self, topics: Iterable[_Topic]) -> None:
        """The next fault of these topics is reported even if it is the same: their source has changed."""
        for topic in topics:
            if topic in self._faults:
                self._faults[topic] = None


# -- following ---------------------------------------------------------------------------------------------------------


class Follower:
    """Follows files, and keeps the last good value where a change is a mistake.

    ``sources`` are the files of each topic. ``take`` is called when they have changed; it gets its values from
    :meth:`attempt`. A refusal (one of ``refusals``) is reported to ``faults``. Any other exception is a bug, which is passed
    to ``bug``. Neither ends the program. A refusal is reported once for each change of its files. With ``again``, a refused
    topic is tried at every settled look until it succeeds, since the cause may be outside of the files (a lock of another
    program, for example); then a refusal is reported only when it differs from the last one, however the files change.
    """

    def __init__(
        self,
        sources: Mapping[str, Iterable[Path]],
        take: Callable[[], Awaitable[None]],
        faults: ReportOnce[str],
        bug: Callable[[Exception], object],
        *,
        refusals: tuple[type[Exception], ...] = (UsageError,),
        again: bool = False,
    ) -> None:
        self._sources = {topic: tuple(paths) for topic, paths in sources.items()}
        self.paths = tuple(dict.fromkeys(path for paths in self._sources.values() for path in paths))
        self._take = take
        self._faults = faults
        self._bug = bug
        self._refusals = refusals
        self._again = again
        # Empty, so a change between the program's start and the first look is not missed.
        self._watch = Watch({})
        self._tried: Contents = {}

    async def look(self) -> None:
        """Reads the files, and takes them if they have changed and settled."""
        now = self._watch.look(read_all(self.paths))
        if now is None:
            return
        changed = [
            topic for topic, paths in self._sources.items() if any(now[path] != self._tried.get(path) for path in paths)
        ]
        await self._take_now(now, changed)

    async def reload(self) -> None:
        """Takes the current contents of the files, without waiting for them to settle."""
        now = read_all(self.paths)
        # From here on every other content is a change, including the content before this one.
        self._watch = Watch(now)
        await self._take_now(now, self._sources)

    async def attempt(self, topic: str, load: Callable[[], _T], good: _T, kept: str) -> _T:
        """What ``load`` returns; ``good``, the last good value, if it raises. ``kept`` is the end of the message, which says
        what stays in force."""
        try:
            value = load()
        except self._refusals as error:
            self._faults.report(topic, f"{error}; {kept}")
            if self._again and topic in self._sources:
                self._watch = Watch({})
            return good
        except Exception as error:  # a bug, which must not end the program
            self._bug(error)
            return good
        self._faults.report(topic, None)
        return value

    async def _take_now(self, now: Contents, changed: Iterable[str]) -> None:
        self._tried = now
        if not self._again:
            self._faults.renew(changed)
        try:
            await self._take()
        except Exception as error:  # a bug, which must not end the program
            self._bug(error)


# -- what cannot be followed -------------------------------------------------------------------------------------------


def mounted(paths: Iterable[Path], mounts: Path = Path("/proc/self/mountinfo")) -> list[Path]:
    """The paths that are mount points themselves (proc_pid_mountinfo(5)); none where the system has no such list."""
    try:
        lines = mounts.read_bytes().splitlines()
    except OSError:
        return []
    points = {line.split(b" ")[4] for line in lines}
    return [path for path in paths if _escaped(path.resolve()) in points]


def _escaped(path: Path) -> bytes:
    r"""A path as mountinfo has it: a space is ``\040``, and so on."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\" else bytes([byte]) for byte in os.fsencode(path))
