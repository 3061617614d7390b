"""What a request costs, asked from inside of web's container; bounded in number and time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from tests.e2e.engine import Application, docker

_REQUESTS = """
import http.client, json, sys, time
found, wrong = [], 0
for _ in range(int(sys.argv[1])):
    began = time.perf_counter()
    connection = http.client.HTTPConnection("localhost", 8000, timeout=8)
    connection.request("GET", "/teapot")
    wrong += b"costs" not in connection.getresponse().read()
    connection.close()
    found.append((time.perf_counter() - began) * 1000)
print(json.dumps({"times": sorted(found), "wrong": wrong}))
"""

_COST = """
cat /sys/fs/cgroup/cpu.stat 2>/dev/null | sed -n 's/^usage_usec //p'; cat /sys/fs/cgroup/cpuacct/cpuacct.usage 2>/dev/null
"""


@dataclass(frozen=True)
class Latency:
    """In milliseconds."""

    requests: int
    p50: float
    p99: float
    seconds: float


def latency(application: Application, requests: int) -> Latency:
    told = json.loads(application.python("web", _REQUESTS, str(requests), seconds=120))
    assert told["wrong"] == 0
    times = told["times"]
    return Latency(requests, times[len(times) // 2], times[len(times) * 99 // 100], sum(times) / 1000)


def cost(application: Application, services: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Memory in MB (as ``docker stats`` counts it) and CPU seconds so far, of each."""
    found = {}
    containers = {name: application.container(name) for name in services}
    shown = docker("stats", "--no-stream", "--no-trunc", "--format", "{{.ID}} {{.MemUsage}}", *containers.values())
    memory = {line.split()[0]: _megabytes(line.split()[1]) for line in shown.splitlines()}
    for name, container in containers.items():
        text = docker("exec", container, "sh", "-c", _COST).split()
        used = float(text[0])
        found[name] = (memory[container], used / (1e6 if _is_v2(container) else 1e9))
    return found


def _is_v2(container: str) -> bool:
    return "yes" in docker("exec", container, "sh", "-c", "test -f /sys/fs/cgroup/cpu.stat && echo yes || echo no")


def _megabytes(text: str) -> float:
    for unit, factor in (("GiB", 1024.0), ("MiB", 1.0), ("KiB", 1 / 1024), ("kB", 1 / 1024), ("B", 1 / 1024**2)):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    raise ValueError(text)
