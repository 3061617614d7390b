"""Files that a program follows: what is good takes effect, what is wrong is reported once, the last good value stays.

How it works. No notification reports every kind of change reliably (in place, by rename, by a swapped symlink), so the files
are read once a second; they are small. :class:`Watch` decides that their contents are new, and only when two looks in a row
saw the same: a half-written file, and a certificate whose key has not been written yet, settle first. Then :class:`Follower`
calls ``take``, which asks :meth:`Follower.attempt` for a value a topic and puts the values in force by replacing one
reference. A topic that is refused yields its last good value, so it keeps no other topic out.

Everything that touches a file is in :func:`read_all`, and everything that parses one runs in :meth:`Follower.attempt`; both
are reached by asynchronous methods only.
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
"""Each file's content; None if it cannot be read (or is larger than :data:`MAX_BYTES`)."""

_T = TypeVar("_T")
_Topic = TypeVar("_Topic", bound=Hashable)


# -- reading -----------------------------------------------------------------------------------------------------------


def read_all(paths: Iterable[Path]) -> Contents:
    """The files as they are now."""
    return {path: _read(path) for path in paths}


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError:
        return None
    return data if len(data) <= MAX_BYTES else None


class Watch:
    """Tells a change once, when it has settled. Pure: what was read is an argument."""

    def __init__(self, known: Contents) -> None:
        self._known = known
        self._last = known

    def look(self, now: Contents) -> Contents | None:
        """Takes what the files hold now; returns it if it is new and settled, else None. A change that was told is known,
        also if it turns out to be a mistake: it is told again only if the files change again."""
        settled = now == self._last
        self._last = now
        if not settled or now == self._known:
            return None
        self._known = now
        return now


# -- reporting ---------------------------------------------------------------------------------------------------------


class ReportOnce(Generic[_Topic]):
    """The faults that there are now, by topic. Each is reported once, again if it becomes another one, and when it is over.

    Digits do not tell one fault from another, unless ``exact``: the time that it is may be part of the message.
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
        """Whether there is any fault now."""
        return bool(self._faults)

    def report(self, topic: _Topic, fault: str | None) -> bool:
        """Takes what is wrong with a topic now; None if nothing is. Returns whether that was news."""
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
        """The next fault of these topics is news, also if it is the same: its source has changed."""
        for topic in topics:
            if topic in self._faults:
                self._faults[topic] = None


# -- following ---------------------------------------------------------------------------------------------------------


class Follower:
    """Follows files, and keeps a change that is wrong from doing harm.

    ``sources`` are the files of each topic. ``take`` is called when they have changed; it gets its values by
    :meth:`attempt`. A refusal (one of ``refusals``) is reported to ``faults``, and any other exception is a bug, which goes
    to ``bug``; neither ends anything. A refusal is reported for each change of its files. With ``again`` what was refused is
    tried at every settled look until it is taken, since its cause may be outside of the files (another program's lock, for
    one); then a refusal is reported until it becomes another one, whatever changes.
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
        # Nothing is known yet, so what changed between the start's reading and the first look is not missed.
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
        """Takes what the files hold now, without waiting for it to settle."""
        now = read_all(self.paths)
        # From here on this is known: whatever the files hold later is a change, also what they held before.
        self._watch = Watch(now)
        await self._take_now(now, self._sources)

    async def attempt(self, topic: str, load: Callable[[], _T], good: _T, kept: str) -> _T:
        """What ``load`` returns; ``good``, the last good value, if that raises. ``kept`` ends the message: what is in force
        instead."""
        try:
            value = load()
        except self._refusals as error:
            self._faults.report(topic, f"{error}; {kept}")
            if self._again and topic in self._sources:
                self._watch = Watch({})
            return good
        except Exception as error:  # a fault of ours, and no reason to end anything
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
        except Exception as error:  # a fault of ours, and no reason to end anything
            self._bug(error)


# -- what cannot be followed -------------------------------------------------------------------------------------------


def mounted(paths: Iterable[Path], mounts: Path = Path("/proc/self/mountinfo")) -> list[Path]:
    """Those of the paths that are mount points themselves (proc_pid_mountinfo(5)); none where the system does not tell."""
    try:
        lines = mounts.read_bytes().splitlines()
    except OSError:
        return []
    points = {line.split(b" ")[4] for line in lines}
    return [path for path in paths if _escaped(path.resolve()) in points]


def _escaped(path: Path) -> bytes:
    r"""A path as mountinfo has it: a space is ``\040``, and so on."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\" else bytes([byte]) for byte in os.fsencode(path))
