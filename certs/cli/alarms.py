"""``certs alarms``: what may be an attack, of the whole mesh."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import click

from certs.cli.options import DIRECTORY, directory
from certs.cli.reports import ask
from certs.protocol.looking import ALARMS_PATH
from sidecar.documents.printable import printable_values
from sidecar.identity.reasons import UsageError
from sidecar.observe.alarms import alarm_lines

FOLLOW_SECONDS = 1.0
_PAUSE = threading.Event()  # never set


@click.command()
@click.argument("given", type=DIRECTORY, required=False, metavar="[DIRECTORY]")
@click.option("--json", "as_json", is_flag=True, help="For programs; with --follow one line an alarm.")
@click.option("--follow", is_flag=True, help="Go on, and show each alarm when it is new, or is met again.")
def alarms(given: Path | None, as_json: bool, follow: bool) -> None:
    """Show the alarms of the whole mesh: what its sidecars met, and what the CA saw itself.

    They are asked of the running `certs serve` of DIRECTORY, by its own user or root, through DIRECTORY/admin.sock. What
    sidecars reported is kept until the CA ends; the logs of both have it for good. To have each new alarm posted to a URL,
    write `alarm: {url: …}` in mesh.yaml. Exit code: 2 if no CA answers there.
    """
    where = directory(given)
    found = ask(where, ALARMS_PATH)
    if not follow:
        if as_json:
            click.echo(json.dumps({"alarms": found}, indent=2))
        else:
            for one in printable_values(found):
                click.echo("\n".join(_lines(one)))
            if not found:
                click.echo("no alarms")
        return
    told: dict[str, int] = {}
    while True:
        for one in found:
            if told.get(one["id"]) != one["count"]:
                click.echo(json.dumps(one) if as_json else "\n".join(_lines(printable_values(one))))
        told = {one["id"]: one["count"] for one in found}
        _PAUSE.wait(FOLLOW_SECONDS)
        found = _ask_again(where, found)


def _ask_again(where: Path, before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same; those before, if the CA restarts now."""
    try:
        return ask(where, ALARMS_PATH)
    except UsageError as error:
        click.echo(f"{error}; trying again", err=True)
        _PAUSE.wait(FOLLOW_SECONDS)
        return before


def _lines(one: dict[str, Any]) -> list[str]:
    by = one.get("reported_by")
    return [line.removeprefix("  ") for line in alarm_lines(one)] + ([f"  reported by {by}"] if by else [])
