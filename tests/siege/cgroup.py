"""Two cgroups: one for those who are measured and who measure, with a large weight, so that neither strangers nor whatever
else this machine does holds them up; and one for the attackers, on one core, with a smaller one.

Both hierarchies of cgroups(7) are known: version 2, and version 1 with ``cpu`` and ``cpuset``. Needs root.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import trio

ROOT = Path("/sys/fs/cgroup")
DEFAULT_V2, DEFAULT_V1 = 100, 1024
"""What everybody else has (cpu.weight, cpu.shares)."""
GREAT, SMALL = 30.0, 5.0
"""Times that."""

REMOVE_SECONDS = 3.0


class Cgroup:
    """Processes in it share ``weight`` times the CPU time of one that is in none."""

    def __init__(self, directories: Sequence[Path]) -> None:
        self.directories = directories

    def add(self, pid: int) -> None:
        """With all of its threads, and its children from then on."""
        for directory in self.directories:
            (directory / "cgroup.procs").write_text(f"{pid}\n")

    async def emptied(self) -> None:
        """Returns once nobody is in it: the kernel takes a moment after a process was waited for, and tells nobody."""
        with trio.move_on_after(REMOVE_SECONDS):
            while any((directory / "cgroup.procs").read_text() for directory in self.directories):  # noqa: ASYNC110
                await trio.sleep(0.02)


@contextmanager
def cgroup(name: str, weight: float, cores: Sequence[int], root: Path = ROOT) -> Iterator[Cgroup]:
    """A cgroup for the block, on ``cores``; nobody may be left in it at the block's end. Raises :class:`OSError` where it
    cannot be made. We may be in it: see :func:`inside`."""
    made: list[Path] = []
    allowed = ",".join(map(str, cores))
    try:
        if "cpuset" in _controllers(root):
            (root / "cgroup.subtree_control").write_text("+cpu +cpuset")
            settings = {root / name: {"cpuset.cpus": allowed, "cpu.weight": f"{weight * DEFAULT_V2:.0f}"}}
        else:
            settings = {
                root / "cpuset" / name: {"cpuset.cpus": allowed, "cpuset.mems": "0"},
                root / "cpu" / name: {"cpu.shares": f"{weight * DEFAULT_V1:.0f}"},
            }
        for directory, values in settings.items():
            directory.mkdir()
            made.append(directory)
            for file, value in values.items():
                (directory / file).write_text(value)
        yield Cgroup(made)
    finally:
        for directory in made:
            with contextlib.suppress(OSError):
                # A helper of Python's that outlives a round:
                for pid in (directory / "cgroup.procs").read_text().split():
                    (directory.parent / "cgroup.procs").write_text(f"{pid}\n")
                directory.rmdir()


@contextmanager
def inside(group: Cgroup, root: Path = ROOT) -> Iterator[None]:
    """This process is in the group for the block, and so is whom it starts meanwhile; then it goes back to where it was."""
    before = homes(Path("/proc/self/cgroup").read_text(), root)
    group.add(os.getpid())
    try:
        yield
    finally:
        for directory in before:
            with contextlib.suppress(OSError):
                (directory / "cgroup.procs").write_text(f"{os.getpid()}\n")


def homes(text: str, root: Path) -> list[Path]:
    """Where /proc/PID/cgroup says that a process is, among the hierarchies that :func:`cgroup` uses. Pure."""
    found = []
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "cpu", "cpuset", "cpu,cpuacct"):
            base = root / controllers.partition(",")[0] if controllers else root
            found.append(base / path.lstrip("/"))
    return found


def _controllers(root: Path) -> list[str]:
    try:
        return (root / "cgroup.controllers").read_text().split()
    except OSError:
        return []
