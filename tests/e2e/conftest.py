"""The meshed shop, for all tests of this directory: started once, and what it costs. They run in the order written."""

from __future__ import annotations

import runpy
import socket
import time
from collections.abc import Iterator

import pytest

from sidecar.inject.override import CHECK_SECONDS
from tests.e2e.ask import REACH
from tests.e2e.engine import DEMO, Application, shop
from tests.e2e.figures import APPS, FIGURES, MESH, TAKEN
from tests.e2e.load import Latency, cost, latency

show = runpy.run_path(str(DEMO / "show.py"))
"""The demo's own script: what it shows is what is tested here."""


@pytest.fixture(scope="session")
def mesh() -> Iterator[Application]:
    TAKEN.update(port for port in (5432, 6379, 8000, 8443, 15000) if _serves(port))
    said: list[str] = []
    with shop("sidecar-e2e") as application:
        show["as_it_is"](application, said.append)
        plain = measured(application, APPS)
        # What the mesh must take away is there without it: any container reaches any other.
        assert application.python("web", REACH, "db", "5432", "0.5").strip() == "open"
        application.compose("down", "--timeout", "2")

        began = time.monotonic()
        application.inject()
        injected = time.monotonic()
        application.compose("build")
        built = time.monotonic()
        show["first_page"](application)
        ended = time.monotonic()
        FIGURES["from inject to the first protected request"] = (
            f"{ended - began:.1f} s: inject {injected - began:.1f}, building the image {built - injected:.1f}, "
            f"starting {ended - built:.1f}"
        )
        application.up()
        meshed = measured(application, (*APPS, *MESH))
        report(plain, meshed, idle(application))
        show["in_the_mesh"](application, said.append)
        FIGURES["the demo"] = "\n" + "\n".join(said) + "\n"
        yield application


def _serves(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def measured(application: Application, services: tuple[str, ...]) -> tuple[Latency, dict[str, tuple[float, float]]]:
    latency(application, 30)  # warm
    before = cost(application, services)
    found = latency(application, 200)
    after = cost(application, services)
    return found, {name: (after[name][0], after[name][1] - before[name][1]) for name in services}


def idle(application: Application) -> float:
    """What share of a core the mesh uses while nobody asks anything, one health check of each container included."""
    before, began = cost(application, MESH), time.monotonic()
    time.sleep(CHECK_SECONDS + 1)  # noqa: TID251  # what is measured is that nothing happens
    after, ended = cost(application, MESH), time.monotonic()
    return sum(after[name][1] - before[name][1] for name in MESH) / (ended - began)


Measured = tuple[Latency, dict[str, tuple[float, float]]]


def report(plain: Measured, meshed: Measured, resting: float) -> None:
    (one, before), (two, after) = plain, meshed
    FIGURES["a request web -> api -> database and cache, p50"] = f"{one.p50:.1f} ms plain, {two.p50:.1f} ms in the mesh"
    FIGURES["the same, p99"] = f"{one.p99:.1f} ms plain, {two.p99:.1f} ms in the mesh"
    apps, sidecars = sum(it[0] for it in before.values()), sum(after[name][0] for name in MESH)
    FIGURES["memory"] = (
        f"{apps:.0f} MB of the plain shop, and {sidecars:.0f} MB of {len(MESH) - 1} sidecars and their CA"
    )
    busy, more = sum(it[1] for it in before.values()), sum(after[name][1] for name in MESH)
    more -= resting * two.seconds
    FIGURES["the mesh at rest"] = (
        f"{sidecars:.0f} MB and {100 * resting:.1f} % of a core in {len(MESH)} containers, health checks included"
    )
    FIGURES["CPU of a request"] = (
        f"{1000 * busy / one.requests:.1f} ms of the plain shop, and {1000 * more / two.requests:.1f} ms of the mesh "
        "(three new mutual TLS connections), less what it uses at rest"
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FIGURES:
        terminalreporter.section("measured")
    for name, text in FIGURES.items():
        terminalreporter.line(f"{name}: {text}")
