"""On what the figures were measured, and with what."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


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


def _value(text: str, key: str) -> str | None:
    """The first value of ``key : value`` lines."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None
