"""The meshed shop, for all tests of this directory: started once, beside what it costs. The tests run in the order written."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.e2e.engine import Application, docker, shop, until
from tests.e2e.load import Latency, cost, latency

FIGURES: dict[str, str] = {}
"""What is printed at the end, by name."""

APPS = ("web", "api", "db", "cache", "reporting")
MESH = (*(f"{name}-mesh" for name in APPS), "mesh-ca")


@pytest.fixture(scope="session")
def mesh() -> Iterator[Application]:
    with shop("sidecar-e2e") as application:
        application.up("--build")
        assert "teapot costs 49.90" in until("the plain shop", application.page)
        plain = measured(application, APPS)
        # What the mesh must take away is there without it: any container reaches any other.
        assert application.python("web", REACH, "db", "5432").strip() == "open"
        assert "in all" in until("the report", lambda: _said(application, "database: "))
        application.compose("down", "--timeout", "2")

        began = time.monotonic()
        application.inject()
        application.compose("build")
        built = time.monotonic()
        application.compose("up", "--detach")
        assert "teapot costs 49.90" in until("the first protected request", lambda: protected(application), every=0.1)
        ended = time.monotonic()
        FIGURES["from inject to the first protected request"] = (
            f"{ended - began:.1f} s, of which {ended - built:.1f} s after the image was built"
        )
        application.up()
        meshed = measured(application, (*APPS, *MESH))
        report(plain, meshed)
        yield application


REACH = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), 2) as s:
        s.settimeout(0.5)
        try:
            print("closed" if s.recv(1) == b"" else "spoke")
        except TimeoutError:
            print("open")
except OSError as error:
    print(type(error).__name__)
"""
"""Whether a port can be reached from a container, with two arguments; a connection that is reset at once counts as not."""


def protected(application: Application) -> str:
    page = application.page()
    return page if "costs" in page else ""


def _said(application: Application, start: str) -> str:
    lines = docker("logs", "--tail", "6", application.container("reporting")).splitlines()
    return next((line for line in reversed(lines) if line.startswith(start)), "")


def measured(application: Application, services: tuple[str, ...]) -> tuple[Latency, dict[str, tuple[float, float]]]:
    latency(application, 50)  # warm
    before = cost(application, services)
    found = latency(application, 400)
    after = cost(application, services)
    return found, {name: (after[name][0], after[name][1] - before[name][1]) for name in services}


def report(plain: tuple[Latency, dict[str, tuple[float, float]]], meshed: tuple[Latency, dict[str, tuple[float, float]]]) -> None:
    (one, before), (two, after) = plain, meshed
    FIGURES["a request web -> api -> database and cache, p50"] = f"{one.p50:.1f} ms plain, {two.p50:.1f} ms in the mesh"
    FIGURES["the same, p99"] = f"{one.p99:.1f} ms plain, {two.p99:.1f} ms in the mesh"
    apps, sidecars = sum(it[0] for it in before.values()), sum(after[name][0] for name in MESH)
    FIGURES["memory"] = f"{apps:.0f} MB of the plain shop, and {sidecars:.0f} MB of {len(MESH) - 1} sidecars and their CA"
    busy, more = sum(it[1] for it in before.values()), sum(after[name][1] for name in MESH)
    FIGURES["CPU of a request"] = (
        f"{1000 * busy / one.requests:.1f} ms of the plain shop, and {1000 * more / two.requests:.1f} ms of the mesh "
        "(three new mutual TLS connections)"
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FIGURES:
        terminalreporter.section("measured")
    for name, text in FIGURES.items():
        terminalreporter.line(f"{name}: {text}")
