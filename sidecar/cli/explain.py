"""``sidecar explain``: a word of the logs, or one connection, in words."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import click

from sidecar.cli.status import admin_listen
from sidecar.documents.printable import printable_values
from sidecar.explain import sources, story
from sidecar.explain.records import ID, Entry
from sidecar.identity.reasons import UsageError
from sidecar.inject.injection import MESH_FILE
from sidecar.meanings import glossary
from sidecar.observe import probe


@click.command()
@click.argument("word", required=False, metavar="[WORD|CONNECTION_ID]")
@click.option(
    "--log",
    "logs",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Search this log for the connection; - is stdin. Give both ends' logs, each with a --log of its own.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def explain(word: str | None, logs: tuple[Path, ...], as_json: bool) -> None:
    """Explain a word of the logs, or what happened to one connection.

    WORD is a reason (policy_denied), an event (certificate_failed), a peer's TLS alert, or a refusal of the CA: what it
    means, its likely causes, what to run next. Without WORD, all words are listed.

    CONNECTION_ID is that of a line: who called whom, what each end says of it, by which rule, and why. Both ends' lines have
    the same one; a channel_id is that of all connections on the channel. The lines are looked for in every --log; without it
    in the sidecars' logs of this directory's Compose project, or else among the last refusals of a running sidecar (at
    $SIDECAR_ADMIN_LISTEN, or the `admin:` of ./sidecar.yaml).

    Why the policy allows or denies a call that you can think of is answered by `sidecar policy explain`: it reads the mesh
    file and no log.

    Exit code: 1 if no line of the connection was found, 2 for an unknown word.
    """
    if word is None or not ID.fullmatch(word):
        if logs:
            raise UsageError(
                "--log: goes with a connection_id, 16 hexadecimal digits, and what may follow them after a -"
            )
        _explain_word(word, as_json=as_json)
        return
    entries, searched, mesh = _search(word, logs)
    found = story.tell(word, entries, [searched], mesh)
    if not found["connections"]:
        click.echo(f"error: no line of connection {word} in {searched}", err=True)
        click.echo(
            "A line may be missing because its log was rotated, the sidecar's `access_log:` leaves it out, a flood was "
            "summed up (`connection_summary`), or the connection is still open. Give more logs with --log FILE.",
            err=True,
        )
        raise SystemExit(1)
    click.echo(json.dumps(found, indent=2) if as_json else story.as_text(printable_values(found)))


def _explain_word(word: str | None, *, as_json: bool) -> None:
    if word is None:
        every = [{"word": one.word, **one.as_json()} for one in glossary.EVERY]
        click.echo(json.dumps(every, indent=2) if as_json else "\n".join(glossary.overview()).rstrip())
        return
    found = [{"word": one.word, **one.as_json()} for one in glossary.look_up(word)]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    entries = ["\n".join(story.meaning_lines(one)) for one in found]
    click.echo("\n\n".join(entries))
    for line in story.names_left(found):
        click.echo(line)


def _search(wanted: str, logs: tuple[Path, ...]) -> tuple[Iterator[Entry], str, str]:
    """The entries, what was read, and where the mesh file is if that is known. Raises :class:`UsageError`."""
    here = Path()
    mesh = MESH_FILE if sources.is_project(here) else ""
    if logs:
        return (
            sources.in_files(logs, wanted),
            ", ".join("stdin" if log == sources.STDIN else str(log) for log in logs),
            mesh,
        )
    if mesh:
        return sources.in_compose(here.absolute(), wanted, os.environ), "the logs of this project's sidecars", mesh
    if probe.LISTEN not in os.environ and not Path("sidecar.yaml").is_file():
        raise UsageError(
            "where are the logs? Give --log FILE (- is stdin), or run this where `sidecar inject` was run, or beside a "
            "sidecar.yaml"
        )
    listen = admin_listen(None)
    return sources.in_status(listen, wanted), f"the last refusals of the sidecar at {listen}", mesh
