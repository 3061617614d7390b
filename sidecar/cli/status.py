"""``sidecar status`` and ``sidecar health``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from sidecar.config.wiring import load_config
from sidecar.identity.reasons import UsageError
from sidecar.lifecycle.status import as_text
from sidecar.observe import probe

_FILE = click.argument("file", type=click.Path(path_type=Path), required=False)


@click.command()
@_FILE
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(file: Path | None, as_json: bool) -> None:
    """Say what the running sidecar of FILE is and does.

    Who it is, until when, who may reach it, who is connected, what was refused lately and why. It asks the `admin:` address
    of FILE; without FILE the address in $SIDECAR_ADMIN_LISTEN, as in a container of our image, or that of ./sidecar.yaml.
    Exit code: 1 if nobody answers there, 2 if the file is wrong.
    """
    listen = _listen(file)
    try:
        said: dict[str, Any] = json.loads(probe.ask(listen, "/status")[1])
    except (OSError, ValueError) as error:
        click.echo(probe.describe_failure(listen, error), err=True)
        raise SystemExit(1) from error
    click.echo(json.dumps(said, indent=2) if as_json else as_text(said))


@click.command()
@_FILE
def health(file: Path | None) -> None:
    """Exit with 0 if the running sidecar of FILE lets connections through, with 1 if not.

    FILE may be left out as with `sidecar status`; without it nothing but a socket is loaded, for Docker's HEALTHCHECK.
    A sidecar is well if its certificate is good, its list of revocations is fresh enough, and it is not draining.
    """
    raise SystemExit(probe.health(_listen(file)))


def _listen(file: Path | None) -> str:
    """Where the sidecar is asked. Raises :class:`UsageError`."""
    if file is None and (named := os.environ.get(probe.LISTEN)):
        return named
    file = file or Path("sidecar.yaml")
    config = load_config(file, os.environ)
    if config.admin is None:
        raise UsageError(f'{file}: has no `admin:`, so there is nobody to ask: admin: {{listen: "127.0.0.1:15000"}}')
    listen = config.admin.listen
    return f"unix:{listen}" if isinstance(listen, Path) else str(listen)
