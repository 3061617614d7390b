"""``inject --upgrade``: this version's image for the CA and for each sidecar, one after another. I/O: runs Compose.

How this works. For each of them: its part of the files is written, then ``up --no-deps --wait`` recreates it alone, if it
runs. So at every moment a plain ``docker compose up`` recreates nothing else, and a run that failed or was killed is
continued by the next: what is renewed already is found as it should be.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import date

from sidecar.identity.reasons import UsageError
from sidecar.inject.composecli import find_compose
from sidecar.inject.injection import OVERRIDE
from sidecar.inject.state import Certs, run_certs
from sidecar.inject.steps import InjectRequest, carry_out, plan, renewed
from sidecar.inject.topology import CA, sidecar_of


def upgrade(
    request: InjectRequest,
    environ: Mapping[str, str],
    today: date,
    echo: Callable[[str], None],
    certs: Certs = run_certs,
) -> None:
    """Raises :class:`UsageError` if the application has changes that were not written yet, or if Compose fails."""
    planned = plan(request, environ, today)
    if planned.changes:
        raise UsageError(
            f"--upgrade: {planned.changes[0].path} is not up to date: run `sidecar inject` and `docker compose up -d` first"
        )
    compose = find_compose(environ)
    files = [planned.project / name for name in (*planned.names, OVERRIDE)]

    def run(*arguments: str) -> str:
        return compose.run(files, environ, *arguments)

    running = run("ps", "--services", "--status", "running").split()
    is_built = False
    for service in (CA, *map(sidecar_of, planned.injection.services)):
        is_stale = service in planned.injection.kept
        if is_stale:
            planned = renewed(planned, service)
            for line in carry_out(planned, certs):
                echo(line)
        if service in running:
            if is_stale and not is_built:
                run("build", CA)
                is_built = True
            try:
                run("up", "--detach", "--no-deps", "--wait", service)
                _require_well(run("ps", "--format", "json", service), planned.inputs.image)
            except UsageError as error:
                raise UsageError(
                    f"{error}\n--upgrade: {service} did not become healthy, and those after it stay as they were: "
                    "mend it, and run `sidecar inject --upgrade` again"
                ) from error
        if is_stale:
            echo(f"{service}: {'upgraded' if service in running else 'upgraded; it does not run'}")
    echo("every sidecar and the CA have the image of this version")


def _require_well(told: str, tag: str) -> None:
    """Raises :class:`UsageError` unless all containers of a service run this image and are healthy. Looked at because one
    wrapper of Compose exits with 0 although it failed."""
    containers = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    for it in containers or [{}]:
        image, state, health = (str(it.get(key, "")) for key in ("Image", "State", "Health"))
        if not image.endswith(f":{tag}") or state != "running" or health not in ("", "healthy"):
            shown = f"{it['Name']} is {state} {health}, of {image}" if it else "there is no container"
            raise UsageError(f"docker compose ps: {shown}")
