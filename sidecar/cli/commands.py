"""The table of the ``sidecar`` commands. Each command has a file of its own."""

from __future__ import annotations

import click

from sidecar import __version__
from sidecar.host.commands import CommandGroup

COMMANDS = {
    "alarms": "sidecar.cli.alarms:alarms",
    "check": "sidecar.cli.check:check",
    "connect": "sidecar.cli.connect:connect",
    "dashboard": "sidecar.cli.dashboard:dashboard",
    "dev": "sidecar.cli.dev:dev",
    "explain": "sidecar.cli.explain:explain",
    "health": "sidecar.cli.status:health",
    "inject": "sidecar.cli.inject:inject",
    "policy": "sidecar.cli.policy:policy",
    "probe": "sidecar.cli.probe:probe",
    "run": "sidecar.cli.run:run",
    "schema": "sidecar.cli.schema:schema",
    "status": "sidecar.cli.status:status",
    "trust": "sidecar.cli.trust:trust",
    "verify": "sidecar.cli.verify:verify",
}


@click.group(cls=CommandGroup, commands_at=COMMANDS)
@click.version_option(__version__, prog_name="sidecar")
def main() -> None:
    """Mutual TLS between services for people who do not run Kubernetes."""
