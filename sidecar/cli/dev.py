"""``sidecar dev``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

import click
import trio

from sidecar.dashboard import serving
from sidecar.dev.dev_mesh import DevMesh, run_dev
from sidecar.dev.plan import banner, environment, plan
from sidecar.host.clock import utc_now
from sidecar.host.process import keep_memory_private, settle_memory
from sidecar.identity.reasons import UsageError
from sidecar.observe.logs import Log
from sidecar.policy.mesh import load_mesh


@click.command()
@click.argument("mesh", type=click.Path(path_type=Path), default=Path("mesh.yaml"))
@click.option(
    "--env", "service", metavar="SERVICE", help="Print the variables for this service's app, as `export` lines."
)
@click.option("--env-file", is_flag=True, help="With --env: plain NAME=value lines, as `docker --env-file` reads them.")
@click.option("--dashboard", is_flag=True, help="Show the mesh in a browser as well; it prints the page's address.")
@click.option(
    "--dashboard-port", "port", type=click.IntRange(0, 65535), default=0, help="Its port, if not any free one."
)
@click.option(
    "--log", "style", type=click.Choice(["auto", "json", "console"]), default="auto", help="How the log is written."
)
def dev(
    mesh: Path,
    service: str | None,
    env_file: bool,
    dashboard: bool,
    port: int,
    style: Literal["auto", "json", "console"],
) -> None:
    """Runs a whole mesh on this machine: the CA and every sidecar of MESH (mesh.yaml by default) in one process.

    Apps are started by hand. `dev:` in a service of the mesh file sets where its app listens and on which local port each of
    its calls enters the mesh; ports that are left out are chosen the same way every time. The file is followed. Ctrl-C ends
    it.

    \b
    eval "$(sidecar dev mesh.yaml --env web)"     # in web's terminal, before web is started
    """
    if service is not None:
        _print_environment(mesh, service, "" if env_file else "export ")
        return
    if dashboard:
        serving.require_layout()
    if env_file:
        raise UsageError("--env-file goes with --env SERVICE: each service has an environment of its own")
    keep_memory_private()
    log = Log(style=style)
    running = DevMesh(mesh, log)
    text = banner(running.mesh, running.plan)
    if style == "json":
        click.echo(text, err=True)
    else:
        log.text(text)
    beside: list[serving.Task] = []
    if dashboard:
        url, beside = serving.beside(running.looks, f"sidecar dev {mesh}", log, port)
        click.echo(f"\nthe dashboard: {url}\n", err=style == "json")
    settle_memory()
    trio.run(run_dev, running, *beside)


def _print_environment(path: Path, service: str, prefix: str) -> None:
    mesh = load_mesh(path)
    if service not in mesh.services:
        raise UsageError(f"--env: {path} has no service {service!r}; it has: {', '.join(mesh.services)}")
    for name, value in environment(plan(mesh, utc_now()), service).items():
        click.echo(f"{prefix}{name}={shlex.quote(value)}")
