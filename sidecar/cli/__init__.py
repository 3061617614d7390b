"""The ``sidecar`` command: one file a command, and no logic in any of them.

Whatever is a mistake of the user's (a file, an option, a variable) is a :class:`UsageError` from wherever it is found, and
is told here, once: its lines on stderr, exit code 2, never a traceback.
"""

from __future__ import annotations

from typing import Any

import click

from sidecar import __version__
from sidecar.cli.check import check
from sidecar.cli.dev import dev
from sidecar.cli.policy import policy
from sidecar.cli.run import run
from sidecar.reasons import UsageError


class _Group(click.Group):
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


# One line a command.
main.add_command(check)
main.add_command(dev)
main.add_command(policy)
main.add_command(run)
