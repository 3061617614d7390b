"""``sidecar alarms``: the alarms of a Compose project, on its host."""

from __future__ import annotations

import os
from pathlib import Path

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs; with --follow one line an alarm.")
@click.option("--follow", is_flag=True, help="Go on, and show each alarm when it is new, or is met again.")
def alarms(as_json: bool, follow: bool) -> None:
    """Show the alarms of this directory's Compose project: what may be an attack, of all its sidecars and its CA.

    For the directory where `sidecar inject` was run. It asks the CA by `docker compose exec`: `certs alarms`, whose help
    says more. To have each new alarm posted to a URL, write `alarm: {url: …}` in mesh/mesh.yaml and run `sidecar inject`
    again, which gives the CA a way out. Exit code: 2 if no CA answers.
    """
    from sidecar.inject import overview  # it needs Compose's reader, which no other way to start does

    options = [*(["--json"] if as_json else []), *(["--follow"] if follow else [])]
    for block in overview.alarms(Path().absolute(), os.environ, options):
        click.echo(block.decode(errors="replace"), nl=False)
