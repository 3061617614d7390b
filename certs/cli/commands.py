"""``certs``: the mini-CA's table of commands."""

from __future__ import annotations

import click

from sidecar import __version__
from sidecar.host.commands import CommandGroup

COMMANDS = {
    "alarms": "certs.cli.alarms:alarms",
    "audit": "certs.cli.records:audit",
    "enrolment": "certs.cli.access:enrolment",
    "init": "certs.cli.ca:init",
    "inspect": "certs.cli.ca:inspect",
    "issue": "certs.cli.ca:issue",
    "list": "certs.cli.records:list_",
    "pass": "certs.cli.passes:pass_",
    "renew-issuing": "certs.cli.ca:renew_issuing",
    "reports": "certs.cli.reports:reports",
    "revoke": "certs.cli.access:revoke",
    "rotate-root": "certs.cli.rotate:rotate_root",
    "serve": "certs.cli.serve:serve",
    "token": "certs.cli.access:token",
}


class _Group(CommandGroup):
    def mistake(self, error: Exception) -> str | None:
        from certs.protocol.documents import UntrustedError
        from certs.store.store import StoreUnavailableError  # imported only after a failure, to start fast

        if isinstance(error, StoreUnavailableError):
            return str(error)
        if isinstance(error, UntrustedError):
            return f"the store's trust bundle is not of this CA: {error}; is it the store of another CA?"
        return super().mistake(error)


@click.group(cls=_Group, commands_at=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="certs")
def main() -> None:
    """The mesh's mini-CA: short-lived certificates that prove a service's identity.

    DIRECTORY is where `certs init` made the CA. Where it may be left out, it is $CERTS_DIR, else this directory or ./ca.
    """
    from sidecar.host.process import keep_memory_private

    keep_memory_private()  # most commands hold a key, and rotate-root holds two roots' for as long as it waits
