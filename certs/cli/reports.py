"""``certs reports``: what the mesh's sidecars reported last."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from certs.cli.options import DIRECTORY, directory
from certs.service.admin import REPORTS_PATH, SOCKET
from sidecar.documents.printable import printable_values
from sidecar.identity.reasons import UsageError
from sidecar.observe import probe


@click.command()
@click.argument("given", type=DIRECTORY, required=False, metavar="[DIRECTORY]")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def reports(given: Path | None, as_json: bool) -> None:
    """Show the last report of each sidecar: its state, its versions, what it refused.

    They are asked of the running `certs serve` of DIRECTORY, by its own user or root, through DIRECTORY/admin.sock. A
    sidecar reports each five seconds; the last report is kept for an hour. A report is what a sidecar says of itself. Exit
    code: 2 if no CA answers there.
    """
    found = {"reports": ask(directory(given), REPORTS_PATH)}
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    every = printable_values(found)["reports"]
    click.echo(f"sidecars that report: {len(every)}")
    for one in every:
        click.echo("\n".join(as_lines(one)))


def ask(where: Path, path: str) -> list[Any]:
    """What the CA of a directory answers at this path of its admin socket: a list of that name. Raises :class:`UsageError`
    if no CA answers."""
    socket, name = (where / SOCKET).absolute(), path.removeprefix("/")
    try:
        status, body = probe.ask(f"unix:{socket}", path)
        found = json.loads(body)
        if status != 200 or not isinstance(found, dict) or not isinstance(found.get(name), list):
            raise ValueError(f"it answers with status {status}")
    except (OSError, ValueError) as error:
        raise UsageError(f"{socket}: no CA answers there ({error}): is `certs serve {where}` running?") from error
    return list(found[name])


def as_lines(one: Mapping[str, Any]) -> Iterator[str]:
    """One entry, its text escaped already, for people."""
    said = one["report"]
    state = "draining" if said.get("draining") else "well" if said.get("healthy") else "NOT WELL"
    state = state if one["fresh"] else f"SILENT since {one['received']} ({state} then)"
    until = said.get("certificate", {}).get("not_after", "unknown")
    versions = f"policy {said.get('policy', 'unknown')}, trust bundle {said.get('bundle', 'unknown')}"
    yield f"{one['identity']}  {one['instance'][:8]}  {state}  certificate until {until}, {versions}"
    yield from (f"  NOT WELL: {sentence}" for sentence in said.get("unwell", ()))
    yield from (f"  REFUSED at the last reload: {sentence}" for sentence in said.get("reload_refused", ()))
    for refusal in said.get("refusals", ()):
        times = f"{refusal['count']} times, last" if refusal.get("count", 1) > 1 else "once,"
        yield f"  refused {times} at {refusal.get('last')}: {refusal.get('reason')}: {refusal.get('message', '')}"
