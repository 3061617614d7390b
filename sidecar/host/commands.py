"""A group of commands that loads each when it is called, and tells a user's mistakes as sentences."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

from sidecar.identity.reasons import UsageError


class CommandGroup(click.Group):
    """``commands_at`` says where each command is: ``module:attribute``. Whoever asks for one does not wait for all.

    Whatever is a mistake of the user's (a file, an option, a variable) is a :class:`UsageError` from wherever it is found,
    and is told here, once: its lines on stderr, exit code 2, never a traceback.
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
        return command

    def mistake(self, error: Exception) -> str | None:
        """What to say of an error, if it is the user's to mend; else it is a fault of ours, and goes on."""
        return str(error) if isinstance(error, UsageError) else None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            said = self.mistake(error)
            if said is None:
                raise
            for line in said.splitlines():
                click.echo(f"error: {line}", err=True)
            ctx.exit(2)
