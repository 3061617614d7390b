"""What ``/proc`` says of a program and its children: CPU time, memory, listening ports. See proc(5).

Parsers are pure and take the text of the file; :class:`ProcessTree` reads it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.errors import BenchError

_LISTEN = "0A"  # TCP_LISTEN in the kernel's tcp_states.h


@dataclass(frozen=True, slots=True)
class Stat:
    """One line of ``/proc/PID/stat``. ``ticks``: user and system time, with that of children that have ended and been
    waited for; the unit is ``SC_CLK_TCK``. ``started`` tells two processes with the same number apart."""

    pid: int
    name: str
    parent: int
    ticks: int
    started: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. ``rss`` counts a page that several processes share in each of them, ``pss`` its share; None if the system
    does not tell."""

    rss: int
    pss: int | None


def parse_stat(text: str) -> Stat:
    """Reads one line. The name in parentheses may hold anything, parentheses and blanks too: the last one ends it."""
    before, _, after = text.rpartition(")")
    pid, _, name = before.partition("(")
    fields = after.split()
    if len(fields) < 20:
        raise ValueError(f"no line of /proc/PID/stat: {text!r}")
    # Numbered as in proc(5), which counts from 1 and has pid and name before these: 4 ppid, 14 to 17 times, 22 starttime.
    return Stat(int(pid), name, int(fields[1]), sum(map(int, fields[11:15])), int(fields[19]))


def parse_kilobytes(text: str, key: str) -> int | None:
    """The value, in bytes, of a line such as ``Rss:  1234 kB`` or ``VmRSS:  1234 kB``; None without such a line."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    return None


def parse_listening(text: str) -> frozenset[int]:
    """The ports that ``/proc/net/tcp`` says somebody listens on."""
    rows = [line.split() for line in text.splitlines()[1:]]
    return frozenset(int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == _LISTEN)


def descendants(stats: Iterable[Stat], root: int) -> list[Stat]:
    """The process ``root`` and all that come from it, by number."""
    children: dict[int, list[Stat]] = {}
    by_pid = {}
    for stat in stats:
        children.setdefault(stat.parent, []).append(stat)
        by_pid[stat.pid] = stat
    found, queue = [], [by_pid[root]] if root in by_pid else []
    while queue:
        stat = queue.pop()
        found.append(stat)
        queue += children.get(stat.pid, [])
    return sorted(found, key=lambda stat: stat.pid)


class ProcessTree:
    """A program and its children as they are now. Raises :class:`BenchError` if it ever changes: one that died and was
    replaced takes its CPU time, and some connections, with it."""

    def __init__(self, name: str, root: int) -> None:
        self.name = name
        self._root = root
        self._members = self._identities(self._stats())

    def cpu_seconds(self) -> float:
        """What all of it has used so far; its resolution is that of the kernel's tick, mostly 10 ms."""
        return sum(stat.ticks for stat in self._living()) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> Memory:
        """The sum over its processes."""
        each = [_memory(stat.pid) for stat in self._living()]
        shares = [one.pss for one in each if one.pss is not None]
        return Memory(sum(one.rss for one in each), sum(shares) if len(shares) == len(each) else None)

    def _living(self) -> list[Stat]:
        stats = self._stats()
        if self._identities(stats) != self._members:
            raise BenchError(f"{self.name}: its processes are not those that it started with: did one die?")
        return stats

    def _stats(self) -> list[Stat]:
        stats = descendants(_all_stats(), self._root)
        if not stats:
            raise BenchError(f"{self.name} (process {self._root}) has ended")
        return stats

    @staticmethod
    def _identities(stats: Sequence[Stat]) -> list[tuple[int, int]]:
        return [(stat.pid, stat.started) for stat in stats]


def ticks_below(root: int) -> int:
    """Of a process and all that came from it, those that have ended included."""
    return sum(stat.ticks for stat in descendants(_all_stats(), root))


def listening() -> frozenset[int]:
    """The TCP ports of this machine that somebody listens on, over IPv4."""
    return parse_listening(Path("/proc/net/tcp").read_text())


def _all_stats() -> list[Stat]:
    stats = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stats.append(parse_stat((entry / "stat").read_text()))
            except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                continue
    return stats


def _memory(pid: int) -> Memory:
    directory = Path("/proc") / str(pid)
    rss = parse_kilobytes((directory / "status").read_text(), "VmRSS")
    try:
        pss = parse_kilobytes((directory / "smaps_rollup").read_text(), "Pss")
    except OSError:  # an old kernel, or not ours to read
        pss = None
    return Memory(rss or 0, pss)
