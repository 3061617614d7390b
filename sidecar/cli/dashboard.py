"""``sidecar dashboard``: the mesh in a browser."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import click
import trio

from sidecar.dashboard import serving, sources
from sidecar.observe.logs import Log


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), required=False)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="The page's port on 127.0.0.1; any that is free."
)
def dashboard(directory: Path | None, port: int) -> None:
    """Show the mesh in a browser: who calls whom, what was refused, what expires next.

    Without DIRECTORY: of the Compose project here, where `sidecar inject` was run. It asks the CA by the socket in its
    directory, or else by a process in its container (`docker compose exec`). With DIRECTORY: of the `certs serve` of that
    directory on this machine, as its own user or root. For a laptop: `sidecar dev --dashboard`.

    It prints the page's address. The page is for this machine alone, and whoever has the address sees the mesh: keep what
    is behind its #. From another machine: `ssh -L PORT:127.0.0.1:PORT`, with --port. It reads what the sidecars report to
    the CA each five seconds, and changes nothing. Ctrl-C ends it. Exit code: 2 if no CA answers.
    """
    serving.require_layout()
    if directory is None:
        from sidecar.inject import overview  # it needs Compose's reader, which a CA's machine does not

        project = Path().absolute()
        own, command = overview.looking(project, os.environ)
        documents = sources.of_project(own, command, os.environ, partial(click.echo, err=True))
        where, past = f"the Compose project in {project}", overview.not_seen(project)
    else:
        documents, where, past = sources.beside(directory), f"the CA in {directory.absolute()}", {}
    trio.run(partial(serving.run, documents, where, Log(), port, _say, past))


def _say(url: str) -> None:
    click.echo(f"{url}\nCtrl-C ends it; the address is for you alone")
