"""The ``sidecar`` command: one file a command, and no logic in any of them.

Whatever is a mistake of the user's (a file, an option, a variable) is a :class:`UsageError` from wherever it is found, and
is told here, once: its lines on stderr, exit code 2, never a traceback.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from sidecar import __version__
from sidecar.reasons import UsageError

COMMANDS = {
    "check": "sidecar.cli.check:check",
    "dev": "sidecar.cli.dev:dev",
    "health": "sidecar.cli.status:health",
    "inject": "sidecar.cli.inject:inject",
    "policy": "sidecar.cli.policy:policy",
    "run": "sidecar.cli.run:run",
    "status": "sidecar.cli.status:status",
}
"""Where each command is. Loaded when it is called: a health check, every few seconds beside every service, should not
load the proxy to ask how it is."""


class _Group(click.Group):
    def list_commands(self, _ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            for line in str(error).splitlines():
                click.echo(f"error: {line}", err=True)
            ctx.exit(2)


@click.group(cls=_Group)
@click.version_option(__version__, prog_name="sidecar")
def main() -> None:
    """Mutual TLS between services for people who do not run Kubernetes."""
