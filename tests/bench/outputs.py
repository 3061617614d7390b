"""What the load generators print, as values. Pure. A run with any error in it is refused: dropping work is fast."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Sequence
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
        raise BenchError(f"a time was printed in {unit!r}")
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


WARM_UP = 0.25
"""Seconds at the start of a run at a fixed rate whose latencies do not count: connections are made then."""


def parse_h2load(text: str) -> Done:
    """Reads the output of ``h2load``, with its log of requests among it. Raises :class:`BenchError`."""
    found = re.search(r"requests: \d+ total, \d+ started, \d+ done, (\d+) succeeded, (\d+) failed, (\d+) errored", text)
    finished = re.search(r"finished in ([0-9.]+)([a-z]+)", text)
    if not found or not finished:
        raise BenchError(f"h2load printed no total:\n{text[-2000:]}")
    done, failed, errored = map(int, found.groups())
    if failed or errored or not done:
        raise BenchError(f"h2load: {done} requests succeeded, {failed} failed, {errored} met errors")
    rows = sorted((int(row[1]), int(row[2])) for row in re.finditer(r"^(\d+)\t200\t(\d+)$", text, re.MULTILINE))
    took = sorted(micros for begun, micros in rows if begun >= rows[0][0] + WARM_UP * 1e6)
    if not took:
        raise BenchError("h2load logged no request after its first")
    return Done(done, _seconds(*finished.groups()), _at(took, 0.5) / 1e6, _at(took, 0.99) / 1e6)


def _at(ordered: Sequence[int], part: float) -> int:
    """The smallest value that this part of all does not exceed."""
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


def parse_redis(text: str, requests: int) -> Done:
    """Reads the output of ``redis-benchmark --csv`` for one kind of request, which does not say how many it was told to
    send. Raises :class:`BenchError`."""
    rows = list(csv.DictReader(line for line in text.splitlines() if line.startswith('"')))
    try:
        (row,) = rows
        rate, p50, p99 = (float(row[key]) for key in ("rps", "p50_latency_ms", "p99_latency_ms"))
    except (ValueError, KeyError) as error:
        raise BenchError(f"redis-benchmark printed no figures: {text[-2000:]}") from error
    if rate <= 0:
        raise BenchError("redis-benchmark got not one answer")
    return Done(requests, requests / rate, p50 / 1e3, p99 / 1e3)


def parse_pgbench(text: str) -> Done:
    """Reads the output of ``pgbench``, which has no percentiles. Raises :class:`BenchError`."""
    total = re.search(r"number of transactions actually processed: (\d+)", text)
    failed = re.search(r"number of failed transactions: (\d+)", text)
    rate = re.search(r"^tps = ([0-9.]+)", text, re.MULTILINE)
    if not total or not rate or not int(total[1]):
        raise BenchError(f"pgbench printed no total:\n{text[-2000:]}")
    if failed and int(failed[1]):
        raise BenchError(f"pgbench: {failed[1]} transactions failed")
    return Done(int(total[1]), int(total[1]) / float(rate[1]))
