"""``sidecar inject``."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import click

from sidecar.identity.reasons import UsageError
from sidecar.inject.options import Publish, parse_ports
from sidecar.inject.published import parse_asked
from sidecar.inject.steps import InjectRequest, carry_out, next_steps, plan, report
from sidecar.inject.upgrade import upgrade


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE]…", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Show the diff and which service calls which; change nothing.")
@click.option("--check", is_flag=True, help="Exit 1 if anything would change; change nothing.")
@click.option("--activate", is_flag=True, help="Name the override in .env, so that no -f is needed.")
@click.option(
    "--observe/--no-observe", default=None, help="Allow everything for two weeks, besides the inferred rules."
)
@click.option(
    "--publish",
    type=click.Choice(["keep", "loopback", "drop"]),
    help="How to treat published ports.  [default: keep]",
)
@click.option(
    "--port",
    "ports",
    multiple=True,
    metavar="SERVICE=PORT[,PORT]",
    help="The ports that a service listens on; or =none.",
)
@click.option(
    "--publish-mesh",
    multiple=True,
    metavar="SERVICE[:PORT][=ADDR:PORT]",
    help="Publish a service's mutual TLS port on the host, on loopback by default; or =none to end it.",
)
@click.option("--only", metavar="SERVICE,…", help="Put only these into the mesh; `all` for all services again.")
@click.option("--subnets", metavar="CIDR", help="The range for the added networks.  [default: 10.128.0.0/9]")
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The directory for keys and secrets; outside of the project.",
)
@click.option("--relayout", is_flag=True, help="Choose all networks and addresses anew. This is an outage.")
@click.option(
    "--all-names", is_flag=True, help="Give services that run already the names of new ones; their sidecars restart."
)
@click.option(
    "--upgrade", "upgrades", is_flag=True, help="Give the CA and each sidecar this version's image, one after another."
)
@click.option(
    "--merged",
    is_flag=True,
    help="Write one finished file, compose.merged.yaml, too: for podman-compose and its like, not for Swarm.",
)
def inject(
    files: tuple[Path, ...],
    dry_run: bool,
    check: bool,
    activate: bool,
    observe: bool | None,
    publish: Publish | None,
    ports: tuple[str, ...],
    publish_mesh: tuple[str, ...],
    only: str | None,
    subnets: str | None,
    state: Path | None,
    relayout: bool,
    all_names: bool,
    upgrades: bool,
    merged: bool,
) -> None:
    """Puts a sidecar beside every service of a Compose application.

    Writes compose.mesh.yaml and mesh/ beside FILE (compose.yaml by default); keys and secrets go elsewhere. The
    application's own files are not touched. mesh/mesh.yaml says which service may call which; it is yours to edit.
    Options are recorded for the next run.

    Exit codes: 0, 1 if --check finds a stale file, 2 for an error.
    """
    if dry_run and check:
        raise UsageError("--dry-run and --check: give one of them")
    names = None if only is None else () if only == "all" else tuple(filter(None, only.split(",")))
    request = InjectRequest(
        files,
        state,
        publish,
        names,
        observe,
        subnets,
        parse_ports(ports),
        activate,
        relayout,
        all_names,
        merged,
        parse_asked(publish_mesh),
    )
    today = datetime.now(UTC).date()
    if upgrades:
        if dry_run or check:
            raise UsageError("--upgrade: changes containers that run, so not with --dry-run or --check")
        upgrade(request, os.environ, today, click.echo)
        return
    planned = plan(request, os.environ, today)
    if check:
        for change in planned.changes:
            click.echo(f"stale: {change.path}")
        raise SystemExit(1 if planned.changes else 0)
    report(planned, click.echo, new_too=dry_run)
    if not dry_run:
        for line in (*carry_out(planned), *next_steps(planned)):
            click.echo(line)
