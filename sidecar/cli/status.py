"""``sidecar status`` and ``sidecar health``."""

from __future__ import annotations

import http.client
import json
import os
import socket
from pathlib import Path
from typing import Any

import click

from sidecar.address import Address
from sidecar.config import load_config
from sidecar.reasons import UsageError
from sidecar.status import as_text

SECONDS = 5.0

_FILE = click.argument("file", type=click.Path(path_type=Path), default=Path("sidecar.yaml"))


@click.command()
@_FILE
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(file: Path, as_json: bool) -> None:
    """Say what the running sidecar of FILE (sidecar.yaml by default) is and does.

    Who it is, until when, who may reach it, who is connected, what was refused lately and why. It asks the `admin:` address.
    Exit code: 1 if nobody answers there, 2 if the file is wrong.
    """
    _, said = _asked(file, "/status")
    click.echo(json.dumps(said, indent=2) if as_json else as_text(said))


@click.command()
@_FILE
def health(file: Path) -> None:
    """Exit with 0 if the running sidecar of FILE (sidecar.yaml by default) lets connections through, with 1 if not.

    For Docker's HEALTHCHECK. A sidecar is well if its certificate is good, its list of revocations is fresh enough, and it
    is not draining.
    """
    code, said = _asked(file, "/healthz")
    if code != 200:
        click.echo("not well: " + "; ".join(map(str, said.get("unwell", []))), err=True)
        raise SystemExit(1)
    click.echo("well")


def _asked(file: Path, target: str) -> tuple[int, dict[str, Any]]:
    config = load_config(file, os.environ)
    if config.admin is None:
        raise UsageError(f'{file}: has no `admin:`, so there is nobody to ask: admin: {{listen: "127.0.0.1:15000"}}')
    listen = config.admin.listen
    try:
        return _ask(listen, target)
    except (OSError, ValueError, http.client.HTTPException) as error:
        click.echo(f"error: no sidecar answers at {listen}: {error}", err=True)
        raise SystemExit(1) from error


def _ask(listen: Address | Path, target: str) -> tuple[int, dict[str, Any]]:
    """The status of the answer, and its JSON."""
    if isinstance(listen, Path):
        connection = http.client.HTTPConnection("localhost", timeout=SECONDS)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(SECONDS)
        connection.sock.connect(str(listen))
    else:
        connection = http.client.HTTPConnection(listen.host, listen.port, timeout=SECONDS)
    try:
        connection.request("GET", target, headers={"Host": "localhost"})
        answer = connection.getresponse()
        return answer.status, dict(json.loads(answer.read()))
    finally:
        connection.close()
