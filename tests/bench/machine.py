"""On what the figures were measured, with what, and who else was at work meanwhile."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench import procfs

_USER, _NICE, _SYSTEM, _STEAL = 0, 1, 2, 7
"""Fields of the first line of /proc/stat, see proc(5)."""


def facts() -> dict[str, Any]:
    """The machine, as JSON can hold it. ``load`` is the load average before we began: above 0 others were at work."""
    memory = _value(Path("/proc/meminfo").read_text(), "MemTotal")
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _value(Path("/proc/cpuinfo").read_text(), "model name") or platform.processor() or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory": memory,
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "load": [round(value, 2) for value in os.getloadavg()],
    }


@dataclass(frozen=True, slots=True)
class Taken:
    """CPU seconds so far: of all processes, of ours, and what the host gave to others while we would have run."""

    all: float
    ours: float
    stolen: float
    at: float
    cpus: int

    @classmethod
    def now(cls) -> Taken:
        every, stolen = parse_taken(Path("/proc/stat").read_text())
        tick = os.sysconf("SC_CLK_TCK")
        return cls(every / tick, procfs.ticks_below(os.getpid()) / tick, stolen / tick, time.monotonic(), _cpus())

    def disturbed_since(self, earlier: Taken) -> float:
        """The part of the machine's time since then, from 0 to 1, that neither we nor idleness had; at least, because
        interrupts count as ours where the kernel counts them to the process that they interrupt."""
        others = (self.all - earlier.all) - (self.ours - earlier.ours)
        return max(0.0, others + self.stolen - earlier.stolen) / ((self.at - earlier.at) * self.cpus)


def parse_taken(text: str) -> tuple[int, int]:
    """Ticks of all processes, and stolen ones, out of /proc/stat. Interrupts are left out: loads make them, nobody's
    process has them."""
    fields = [int(field) for field in text.split("\n", 1)[0].split()[1:]]
    return fields[_USER] + fields[_NICE] + fields[_SYSTEM], fields[_STEAL]


def _cpus() -> int:
    return os.cpu_count() or 1


def _value(text: str, key: str) -> str | None:
    """The first value of ``key : value`` lines."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None
