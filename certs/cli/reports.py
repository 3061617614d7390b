"""``certs reports``: what the mesh's sidecars reported last."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from certs.cli.options import DIRECTORY, directory
from certs.protocol.looking import REPORTS_PATH, SECONDS, SOCKET, looks, while_read
from sidecar.documents.printable import printable_values
from sidecar.host.redraw import Look, watch, watch_lines
from sidecar.identity.reasons import UsageError
from sidecar.observe import probe


@click.command()
@click.argument("given", type=DIRECTORY, required=False, metavar="[DIRECTORY]")
@click.option("--json", "as_json", is_flag=True, help="For programs; with --follow a line each time.")
@click.option("--follow", is_flag=True, help=f"Go on, and show them about every {SECONDS:g} s; Ctrl-C ends it.")
def reports(given: Path | None, as_json: bool, follow: bool) -> None:
    """Show the last report of each sidecar: its state, its versions, what it refused.

    They are asked of the running `certs serve` of DIRECTORY, by its own user or root, through DIRECTORY/admin.sock. A
    sidecar reports each five seconds; the last report is kept for an hour. A report is what a sidecar says of itself. Exit
    code: 2 if no CA answers there.

    With --follow --json each line has the alarms too, and what the CA says of itself; or `error`, while no CA answers. It
    ends as well when stdin is a pipe and is closed.
    """
    if follow:
        _follow(directory(given), as_json)
        return
    found = {"reports": ask(directory(given), REPORTS_PATH)}
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(_text(found))


def _text(found: Mapping[str, Any]) -> str:
    every = printable_values(found["reports"])
    return "\n".join([f"sidecars that report: {len(every)}", *(line for one in every for line in as_lines(one))])


def _follow(where: Path, as_json: bool) -> None:
    def now(_seconds: float) -> None:
        """The CA says when the next look is."""

    if as_json:
        lines = looks(where, while_read())
        watch_lines(lambda: json.dumps(next(lines)), SECONDS, sys.stdout, now)
        return
    found = looks(where)

    def look() -> Look:
        one = next(found)
        return Look(fault=one["error"]) if "error" in one else Look(_text(one))

    watch(look, SECONDS, sys.stdout, sleep=now)


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
