"""A group of commands that imports a command only when it is called, and prints the user's mistakes as error messages."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

from sidecar.documents.printable import printable
from sidecar.identity.reasons import UsageError


class CommandGroup(click.Group):
    """``commands_at`` maps each command to ``module:attribute``. Only the command that is called is imported.

    Python's collector looks at all that an import makes, again and again, for a seventh of the time, and finds next to
    nothing. So an entry point disables it, and it is enabled here once all is loaded, for what is made from then on.

    A mistake of the user (in a file, an option, a variable) is raised as a :class:`UsageError` anywhere, and printed here:
    its lines on stderr, exit code 2, no traceback. It may quote files, databases and other programs, so it is escaped.
    """

    def __init__(self, *arguments: Any, commands_at: Mapping[str, str], **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._commands_at = commands_at

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return sorted(self._commands_at)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        if name not in self._commands_at:
            return None
        module, _, attribute = self._commands_at[name].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        if not gc.isenabled():
            gc.freeze()
            gc.enable()
        return command

    def mistake(self, error: Exception) -> str | None:
        """The message of an error that the user can correct; None for any other error, which is raised again."""
        return str(error) if isinstance(error, UsageError) else None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            message = self.mistake(error)
            if message is None:
                raise
            for line in message.splitlines():
                click.echo(f"error: {printable(line)}", err=True)
            ctx.exit(2)
