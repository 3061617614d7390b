"""Files that a program follows: a valid change takes effect, a mistake is reported once, the last good value stays.

How this works. No notification reports every kind of change reliably (in place, by rename, by a swapped symlink), so the
files are read once a second; they are small. The files of one topic belong together, such as a certificate and its key.
:class:`Watch` decides that a topic's contents are new, but only when two looks in a row found the same contents: so a
half-written file, and a certificate whose key is not yet written, settle first, and a topic that never settles holds up no
other. Then :class:`Follower` calls ``take``, which gets a value for each topic from :meth:`Follower.attempt` and puts the
values in force by replacing one reference. A topic that is refused yields its last good value, so it does not hold up the
other topics.

A file may also settle half written, for as long as its writer is slow, and still be valid. So a value that could allow more
than the one in force (``opens`` of :meth:`Follower.attempt`) waits until neither the content nor the time of change of the
topic's files has changed for :data:`OPEN_SECONDS`. :meth:`Follower.reload` does not wait: whoever asks says that they are
whole.

Nothing waits in the loop: files are read in a thread, with a deadline (:mod:`sidecar.host.disk`), and parsed in a thread.
What is parsed is what was read. A file that cannot be read (a FIFO in its place, a network mount that does not answer) is a
mistake as any other. A lack of file descriptors is not: it says nothing about the files.
"""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import trio

from sidecar.documents.regular import IrregularError, Read, Regular, read_regular
from sidecar.host.disk import Disk, StalledError, threads
from sidecar.identity.reasons import UsageError

LOOK_SECONDS = 1.0
OPEN_SECONDS = 5.0
"""How long files must stay as they are before a change takes effect that could allow more."""

QUIET_SECONDS = 60.0
"""A warning that has ended and comes back within this time is not logged again, unless it stays."""

MAX_BYTES = 4 << 20

LOAD_SECONDS = 20.0
"""How long a load that reads files by itself may take, with what it computes."""

DESCRIPTORS = "descriptors"
"""The topic of a lack of file descriptors."""


@dataclass(frozen=True, slots=True)
class Unread:
    """Why a file could not be read."""

    why: str
    error: OSError | ValueError | IrregularError = field(compare=False)


Contents = Mapping[Path, Regular | Unread]
"""What was found at each path: the file, up to :data:`MAX_BYTES` and one byte, or why there is none."""

_T = TypeVar("_T")
_Topic = TypeVar("_Topic", bound=Hashable)


# -- reading -----------------------------------------------------------------------------------------------------------


def read_all(paths: Iterable[Path], found: dict[Path, Regular | Unread]) -> None:
    """Adds the current content of each file to ``found``, one after the other."""
    for path in paths:
        try:
            found[path] = read_regular(path, MAX_BYTES)
        except (OSError, ValueError, IrregularError) as error:
            found[path] = _unread(error)


def reader(contents: Contents) -> Read:
    """Reads from what was found before, in place of the disk."""

    def read(path: Path, _limit: int) -> Regular:
        found = contents[path]
        if isinstance(found, Unread):
            raise found.error.with_traceback(None)
        return found

    return read


def _unread(error: OSError | ValueError | IrregularError) -> Unread:
    return Unread(str(error), error)


def _lacks_descriptors(found: Regular | Unread) -> bool:
    return (
        isinstance(found, Unread)
        and isinstance(found.error, OSError)
        and found.error.errno in {errno.EMFILE, errno.ENFILE}
    )


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

    ``quiet``, in seconds: a fault that was reported less than this long ago, has ended, and is back, is not reported again
    yet: it may end again. :meth:`remind`, which must be called from time to time, reports it if it stays.
    """

    def __init__(
        self,
        reported: Callable[[_Topic, str], object],
        mended: Callable[[_Topic], object] = lambda _: None,
        *,
        exact: bool = False,
        quiet: float = 0.0,
    ) -> None:
        self._reported = reported
        self._mended = mended
        self._exact = exact
        self._quiet = quiet
        self._faults: dict[_Topic, str | None] = {}
        self._back: dict[_Topic, str] = {}
        self._lately: dict[_Topic, tuple[str, float]] = {}

    def __bool__(self) -> bool:
        """Whether there is any fault."""
        return bool(self._faults or self._back)

    def report(self, topic: _Topic, fault: str | None) -> bool:
        """Sets the current fault of a topic; None if there is none. Returns whether this was a change that was reported."""
        self._back.pop(topic, None)
        if fault is None:
            if topic not in self._faults:
                return False
            del self._faults[topic]
            self._mended(topic)
            return True
        plain = fault if self._exact else re.sub(r"[0-9]+", "", fault)
        if topic in self._faults:
            if self._faults[topic] == plain:
                return False
        elif self._quiet and topic in self._lately:
            before, at = self._lately[topic]
            if before == plain and trio.current_time() - at < self._quiet:
                self._back[topic] = fault
                return False
        if self._quiet:
            self._lately[topic] = plain, trio.current_time()
        self._faults[topic] = plain
        self._reported(topic, fault)
        return True

    def remind(self) -> None:
        """Reports the faults that are back, and were reported long enough ago."""
        for topic, fault in list(self._back.items()):
            self.report(topic, fault)

    def renew(self, topics: Iterable[_Topic]) -> None:
        """The next fault of these topics is reported even if it is the same: their source has changed."""
        for topic in topics:
            self._lately.pop(topic, None)
            if topic in self._faults:
                self._faults[topic] = None


# -- following ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Followed:
    """The files of one topic. ``contents``: as they were when they last settled; ``found``: as they are read now;
    ``waiting``: the contents whose value waits, since it could allow more; ``since``: when the files were last seen to have
    changed."""

    paths: tuple[Path, ...]
    # Empty, so a change between the program's start and the first look is not missed.
    watch: Watch = field(default_factory=lambda: Watch({}))
    contents: Contents | None = None
    found: dict[Path, Regular | Unread] = field(default_factory=dict)
    disk: Disk = field(default_factory=Disk)
    waiting: Contents | None = None
    since: float = 0.0
    _seen: object = None

    @property
    def lasting(self) -> bool:
        """Whether the files have not changed for long enough to allow more."""
        return trio.current_time() - self.since >= OPEN_SECONDS

    def look(self, now: Contents) -> Contents | None:
        """The current contents, if they are new and settled, or if their value waited and need not wait any more."""
        times = [found.status.st_mtime_ns for found in now.values() if isinstance(found, Regular)]
        if (now, times) != self._seen:
            self._seen, self.since = (now, times), trio.current_time()
        settled = self.watch.look(now)
        return now if now == self.waiting and self.lasting else settled

    async def read(self) -> Contents:
        """The current contents."""
        if not self.disk.busy:  # else the thread that hangs fills it still
            self.found = {}
        try:
            await self.disk.run(partial(read_all, self.paths, self.found))
        except StalledError as error:
            return {path: self.found.get(path, _unread(error)) for path in self.paths}
        return self.found


class Follower:
    """Follows files, and keeps the last good value where a change is a mistake.

    ``sources`` are the files of each topic. ``take`` is called when they have changed; it gets its values from
    :meth:`attempt`. A refusal (one of ``refusals``) is reported to ``faults``. Any other exception is a bug, which is passed
    to ``bug``. Neither ends the program. A refusal is reported once for each change of its files. With ``again``, a refused
    topic is tried at every settled look until it succeeds, since the cause may be outside of the files (a lock of another
    program, for example); then a refusal is reported only when it differs from the last one, however the files change.
    ``waits`` gets a message, once for each change, about a value that waits because it could allow more.
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
        waits: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._topics = {topic: _Followed(tuple(paths)) for topic, paths in sources.items()}
        self.paths = tuple(dict.fromkeys(path for topic in self._topics.values() for path in topic.paths))
        self._take = take
        self._faults = faults
        self._bug = bug
        self._refusals: tuple[type[Exception], ...] = (*refusals, StalledError)
        self._again = again
        self._waits = waits
        self._disk = Disk(LOAD_SECONDS)
        self._one_at_a_time = trio.Lock()

    async def look(self) -> None:
        """Reads the files, and takes them if those of a topic have changed and settled."""
        async with self._one_at_a_time:
            settled = {
                name: contents
                for name, now in (await self._read()).items()
                if (contents := self._topics[name].look(now)) is not None
            }
            changed = [name for name, contents in settled.items() if contents != self._topics[name].contents]
            for name, contents in settled.items():
                self._topics[name].contents = contents
            if settled:
                await self._take_now(changed)

    async def reload(self) -> None:
        """Takes the current contents of the files, without waiting for them to settle, also if they could allow more."""
        async with self._one_at_a_time:
            for name, now in (await self._read()).items():
                topic = self._topics[name]
                topic.look(now)
                # From here on every other content is a change, including the content before this one.
                topic.watch, topic.contents, topic.since = Watch(now), now, -math.inf
            await self._take_now(self._topics)

    async def attempt(
        self,
        topic: str,
        load: Callable[[Read], _T],
        good: _T,
        kept: str,
        *,
        reads_disk: bool = False,
        opens: Callable[[_T, _T], str | None] = lambda _good, _value: None,
    ) -> _T:
        """What ``load`` returns; ``good``, the last good value, if it raises or its value must wait. It runs in a thread,
        and gets a way to read the files of the topic as they were found. ``reads_disk``: it reads files by itself, which has
        a deadline. ``opens``: what of a value could allow more than ``good``; None if nothing could. ``kept`` is the end of
        the message, which says what stays in force."""
        followed = self._topics.get(topic)
        if followed is not None and followed.contents is None:
            return good  # never read yet
        read = read_regular if followed is None else reader(self._contents(topic))

        def work() -> tuple[_T, str | None]:
            value = load(read)
            return value, opens(good, value)

        try:
            if reads_disk:
                value, more = await self._disk.run(work)
            else:
                value, more = await trio.to_thread.run_sync(work, limiter=threads(), abandon_on_cancel=True)
        except self._refusals as error:
            self._faults.report(topic, f"{error}; {kept}")
            if self._again and followed is not None:
                followed.watch = Watch({})
            return good
        except Exception as error:  # a bug, which must not end the program
            self._bug(error)
            return good
        if followed is not None and self._must_wait(followed, more, kept):
            return good
        self._faults.report(topic, None)
        return value

    def _must_wait(self, followed: _Followed, more: str | None, kept: str) -> bool:
        """Whether a value must wait because it could allow ``more``; logged once for each change."""
        waited, followed.waiting = followed.waiting, None
        if more is None or followed.lasting:
            return False
        followed.waiting = followed.contents
        if waited != followed.waiting:
            files = ", ".join(map(str, followed.paths))
            advice = f"takes effect when the file has not changed for {OPEN_SECONDS:g} s; SIGHUP puts it in force now"
            self._waits(f"{files}: {more}; {advice}; {kept}")
        return True

    async def _read(self) -> dict[str, Contents]:
        """The current contents of each topic, except where they cannot be known now."""
        read = {name: await topic.read() for name, topic in self._topics.items()}
        known = {name: now for name, now in read.items() if not any(map(_lacks_descriptors, now.values()))}
        lack = "no file descriptor is left, so files cannot be read: raise the limit (ulimit -n); nothing changes until then"
        self._faults.report(DESCRIPTORS, None if len(known) == len(read) else lack)
        return known

    def _contents(self, name: str) -> Contents:
        return self._topics[name].contents or {}

    async def _take_now(self, changed: Iterable[str]) -> None:
        if not self._again:
            # A file that comes and goes was changed by nobody.
            self._faults.renew(
                name for name in changed if not any(isinstance(one, Unread) for one in self._contents(name).values())
            )
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
