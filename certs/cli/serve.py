"""``certs serve``."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Literal

import click
import trio

from certs.cli.options import DIRECTORY, directory, duration, store_option
from certs.cli.options import store_url as url_of
from certs.protocol.x509_profile import ProfileError, check_ttl
from certs.registrar.commands import Commands
from certs.service import serve as serving
from certs.service.api import RateLimits, daily
from sidecar.documents.address import parse_address
from sidecar.host.clock import utc_now
from sidecar.host.process import raise_descriptor_limit, settle_memory
from sidecar.identity.reasons import UsageError
from sidecar.observe.logs import Log


@click.command()
@click.argument("given", type=DIRECTORY, required=False, metavar="[DIRECTORY]")
@click.option("--mesh", required=True, type=DIRECTORY, help="The mesh.yaml: only its services get certificates.")
@click.option("--listen", default="0.0.0.0:8443", show_default=True, metavar="HOST:PORT")
@click.option(
    "--ttl", default="1h", callback=duration, show_default=True, help="How long certificates live: 5m to 24h."
)
@click.option(
    "--log", "style", type=click.Choice(["auto", "json", "console"]), default="auto", help="How the log is written."
)
@store_option
def serve(
    given: Path | None,
    mesh: Path,
    listen: str,
    ttl: timedelta,
    style: Literal["auto", "json", "console"],
    store_url: str | None,
) -> None:
    """Serve the CA over HTTPS (TLS 1.3): sidecars enrol, renew, and get the trust bundle and the revocation list.

    Changes of the directory, MESH and the store are followed. SIGTERM ends it. Exit codes: 0 after that, 2 if it could not
    start.
    """
    where = directory(given)
    try:
        address = parse_address(listen, listening=True)
        check_ttl(ttl)
    except ProfileError as error:
        raise UsageError(f"--ttl: {error}") from error
    except ValueError as error:
        raise UsageError(f"--listen: {error}") from error
    # Set by `sidecar inject` in the container, where commands for people cannot be run.
    commands = Commands(os.environ.get("MESH_STATE") or None)
    limits = RateLimits(day=daily(ttl))
    settings = serving.Settings(where, mesh, address, url_of(where, store_url), ttl, limits, commands)
    raise_descriptor_limit()
    settle_memory()
    trio.run(serving.serve, settings, Log(style=style), utc_now)
