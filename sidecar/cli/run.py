"""``sidecar run``."""

from __future__ import annotations

import os
from pathlib import Path

import click
import trio

from sidecar.config.wiring import load_config
from sidecar.host.process import keep_memory_private, settle_memory
from sidecar.lifecycle.run import run as run_sidecar


@click.command()
@click.argument("file", type=click.Path(path_type=Path), default=Path("sidecar.yaml"))
def run(file: Path) -> None:
    """Runs one sidecar from FILE (sidecar.yaml by default).

    The mesh file, certificate, key and trust bundle are followed: a change applies to new connections at once, and
    connections that it forbids are cut. A mistake in a change is reported, and the last good value stays in force.

    SIGTERM and SIGINT drain it: idle connections end, requests in flight have `timeouts.drain` (8 s) to finish, and new
    connections are served until then, or sent to another sidecar if the file says `has_replicas`.
    Exit codes: 0 after a drain, 2 if it could not start.
    """
    keep_memory_private()
    config = load_config(file, os.environ)
    settle_memory()
    trio.run(run_sidecar, config, os.environ)
