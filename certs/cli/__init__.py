"""``certs``: the command line of the mini-CA. One file for the commands of a kind; they read options, call, and print."""

from __future__ import annotations

import sys
from typing import IO, Any

import click

from certs.cli.access import enrolment, revoke, token
from certs.cli.ca import init, inspect, issue, renew_issuing
from certs.cli.records import audit, list_
from certs.cli.rotate import rotate_root
from certs.cli.serve import serve
from certs.store import StoreUnavailableError
from certs.trust import UntrustedError
from sidecar import __version__
from sidecar.reasons import UsageError


class _Refusal(click.ClickException):
    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"error: {self.message}", file=file or sys.stderr)


class _Group(click.Group):
    """Commands whose mistakes are printed as one sentence, with exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (UsageError, StoreUnavailableError) as error:
            raise _Refusal(str(error)) from error
        except UntrustedError as error:
            raise _Refusal(
                f"the store's trust bundle is not of this CA: {error}; is it the store of another CA?"
            ) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="certs")
def main() -> None:
    """The mesh's mini-CA: short-lived certificates that say who a service is.

    DIRECTORY is where `certs init` made the CA. Where it may be left out, it is $CERTS_DIR, else this directory or ./ca.
    """


for _command in (
    audit, enrolment, init, inspect, issue, list_, renew_issuing, revoke, rotate_root, serve, token,
):  # fmt: skip
    main.add_command(_command)
