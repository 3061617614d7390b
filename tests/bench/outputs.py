"""What the load generators print, as values. Pure. A run with any error in it is refused: dropping work is fast."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from tests.bench.errors import BenchError

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Done:
    """Work that was done, all of it without an error. ``units``: requests, connections or gigabytes (1e9 bytes);
    ``p50`` and ``p99`` are seconds from request to answer, where the generator measures them."""

    units: float
    seconds: float
    p50: float | None = None
    p99: float | None = None


def parse_wrk(text: str) -> Done:
    """Reads the output of ``wrk --latency``. Raises :class:`BenchError`: errors of any kind, or nothing done."""
    socket_errors = re.search(r"Socket errors: (.*)", text)
    if socket_errors and re.search(r"[1-9]", socket_errors[1]):
        raise BenchError(f"wrk met socket errors: {socket_errors[1]}")
    if other := re.search(r"Non-2xx or 3xx responses: (\d+)", text):
        raise BenchError(f"wrk was answered {other[1]} times with something else than success")
    total = re.search(r"(\d+) requests in ([0-9.]+)([a-z]+)", text)
    if not total:
        raise BenchError(f"wrk printed no total:\n{text}")
    if int(total[1]) == 0:
        raise BenchError("wrk got not one answer")
    return Done(int(total[1]), _seconds(total[2], total[3]), _percentile(text, 50), _percentile(text, 99))


def _percentile(text: str, percent: int) -> float:
    found = re.search(rf"^\s+{percent}%\s+([0-9.]+)([a-z]+)\s*$", text, re.MULTILINE)
    if not found:
        raise BenchError(f"wrk printed no {percent} % latency:\n{text}")
    return _seconds(found[1], found[2])


def _seconds(number: str, unit: str) -> float:
    if unit not in _UNITS:
        raise BenchError(f"wrk printed a time in {unit!r}")
    return float(number) * _UNITS[unit]


def parse_iperf3(text: str) -> Done:
    """Reads the output of ``iperf3 --json`` for TCP. What counts is what arrived. Raises :class:`BenchError`."""
    try:
        report: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise BenchError(f"iperf3 printed no JSON:\n{text}") from error
    if "error" in report:
        raise BenchError(f"iperf3 failed: {report['error']}")
    try:
        received = report["end"]["sum_received"]
        size, seconds = float(received["bytes"]), float(received["seconds"])
    except (KeyError, TypeError, ValueError) as error:
        raise BenchError(f"iperf3 printed no total: {error!r}") from error
    if size <= 0 or seconds <= 0:
        raise BenchError("iperf3 moved not one byte")
    return Done(size / 1e9, seconds)
