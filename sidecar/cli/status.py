"""``sidecar status`` and ``sidecar health``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from sidecar.config.wiring import load_config
from sidecar.documents.printable import printable_values
from sidecar.identity.reasons import UsageError
from sidecar.lifecycle.status import as_text
from sidecar.observe import probe

OK = 200

_FILE = click.argument("file", type=click.Path(path_type=Path), required=False)


@click.command()
@_FILE
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.option(
    "--all", "everything", is_flag=True, help="Of every sidecar of this directory's Compose project, and its CA."
)
def status(file: Path | None, as_json: bool, everything: bool) -> None:
    """Show the state of the running sidecar of FILE.

    Its identity and the end of its certificate, its allowed callers, its connections, and recent refusals and why. The state
    is read from the `admin:` address of FILE; without FILE from $SIDECAR_ADMIN_LISTEN, which containers of our image have,
    or else from the address in ./sidecar.yaml. Exit code: 1 if nothing answers there, 2 if the file is wrong.

    With --all, in the directory where `sidecar inject` was run: of all sidecars and the CA, by `docker compose exec`. Exit
    code: 1 if one is not well.
    """
    if everything:
        if file is not None:
            raise UsageError("--all: is of the project in this directory; give no FILE")
        from sidecar.inject import overview  # the rest of this command runs in containers, and starts without it

        found = overview.collect(Path().absolute(), os.environ)
        click.echo(json.dumps(found, indent=2) if as_json else overview.as_text(printable_values(found)))
        raise SystemExit(0 if overview.is_well(found) else 1)
    listen = _listen(file)
    try:
        code, body = probe.ask(listen, "/status")
        if code != OK:
            raise ValueError(f"what answers there has no status to tell (HTTP {code})")
        state: Any = json.loads(body)
        text = json.dumps(state, indent=2) if as_json else as_text(printable_values(state))
    except (OSError, ValueError) as error:
        click.echo(probe.describe_failure(listen, error), err=True)
        raise SystemExit(1) from error
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        click.echo(f"error: what answers at {listen} is not a sidecar, or one of another version", err=True)
        raise SystemExit(1) from error
    click.echo(text)


@click.command()
@_FILE
def health(file: Path | None) -> None:
    """Exit with 0 if the running sidecar of FILE lets connections through, with 1 if not.

    FILE may be left out as with `sidecar status`; without it nothing but a socket is loaded, for Docker's HEALTHCHECK.
    A sidecar is healthy if its certificate is valid, its list of revocations is fresh enough, and it is not draining.
    """
    raise SystemExit(probe.health(_listen(file)))


def _listen(file: Path | None) -> str:
    """The address of the sidecar's admin port. Raises :class:`UsageError`."""
    if file is None and (named := os.environ.get(probe.LISTEN)):
        return named
    file = file or Path("sidecar.yaml")
    config = load_config(file, os.environ)
    if config.admin is None:
        raise UsageError(f'{file}: has no `admin:`, which this command needs: admin: {{listen: "127.0.0.1:15000"}}')
    listen = config.admin.listen
    return f"unix:{listen}" if isinstance(listen, Path) else str(listen)
