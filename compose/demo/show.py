"""Runs the shop, first as it is and then in the mesh; prints and checks both.

    make shop

Exit code 1, with a sentence, if a check fails. It starts a copy of the shop under its own name and removes it at
the end.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # it runs as a file: this directory is not in a package

from tests.e2e.engine import Application, EngineError, docker, shop, until

PAGE = "teapot costs 49.90"

Echo = Callable[[str], object]


def check(condition: object, sentence: str) -> None:
    if not condition:
        raise EngineError(f"not as expected: {sentence}")


def report(application: Application, of: str) -> str:
    """The newest line in reporting's log that begins with ``of``."""
    lines = docker("logs", "--tail", "6", application.container("reporting")).splitlines()
    return next((line for line in reversed(lines) if line.startswith(f"{of}: ")), "")


def as_it_is(application: Application, echo: Echo) -> None:
    """Starts the plain shop, in which every service can reach every other."""
    application.up("--build")
    page = until("the plain shop", lambda: _page(application))
    echo(f"the shop as it is. A customer opens web:     {page}")
    total = until("the report", lambda: _with(report(application, "database"), "in all"))
    echo(f"reporting reads the database, and should not: {total.removeprefix('database: ')}")


def first_page(application: Application) -> str:
    """Starts the mesh of an application that is injected and built; returns the first page that comes through it."""
    application.compose("up", "--detach")
    return str(until("the first protected request", lambda: _page(application), every=0.1))


def in_the_mesh(application: Application, echo: Echo) -> None:
    """Prints and checks what the mesh changes; ``application`` is up."""
    echo(f"the shop in the mesh. A customer opens web:  {until('the meshed shop', lambda: _page(application))}")
    answered = until("api's answer", lambda: _with(report(application, "api"), "products"))
    echo(f"reporting may call api:                      {answered.removeprefix('api: ')}")
    refused = until("the refusal", lambda: refusal(application))
    check("refused" in report(application, "database"), report(application, "database"))
    echo(f"reporting may not call the database: {refused['reason']}. {refused['message']}")
    status = application.call("api-mesh", "sidecar", "status").splitlines()
    check("may call: reporting, web" in "\n".join(status), "\n".join(status))
    echo("the status of api's sidecar (sidecar status):")
    for line in status:
        echo(f"    {line}")
    application.compose("stop", "--timeout", "5", "api-mesh")
    try:
        page = application.page()
        check("cannot be reached" in page, page)
        echo(f"without its sidecar, api is unreachable, not plaintext: {page}")
    finally:
        application.compose("start", "api-mesh")
    echo(f"with it again, without a new token:          {until('api is back', lambda: _page(application))}")


def refusal(application: Application) -> dict[str, Any] | None:
    """The log line in which reporting's sidecar gives the reason of the refusal."""
    lines = [it for it in application.log("reporting-mesh") if it.get("upstream") == "db:5432"]
    return next((it for it in reversed(lines) if it["reason"] == "policy_denied"), None)


def _page(application: Application) -> str:
    return _with(application.page(), PAGE)


def _with(text: str, wanted: str) -> str:
    return text if wanted in text else ""


def main() -> None:
    try:
        with shop("sidecar-demo") as application:
            as_it_is(application, print)
            application.compose("down", "--timeout", "2")
            print(f"\n$ sidecar inject\n{application.inject()}")
            application.compose("build")
            first_page(application)
            application.up()
            in_the_mesh(application, print)
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
