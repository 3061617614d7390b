"""``sidecar status`` and ``sidecar health``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from sidecar.config.wiring import load_config
from sidecar.documents.printable import printable_values
from sidecar.host.redraw import Look, watch, watch_lines
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import shown
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
@click.option(
    "--watch",
    "seconds",
    is_flag=False,
    flag_value="2",
    metavar="[SECONDS]",
    help="Show it again and again, every 2 s if not given; Ctrl-C ends it. With --json: a line of JSON each time.",
)
def status(file: Path | None, as_json: bool, everything: bool, seconds: str | None) -> None:
    """Show the state of the running sidecar of FILE.

    Its identity and the end of its certificate, its allowed callers, its connections, and recent refusals and why. The state
    is read from the `admin:` address of FILE; without FILE from $SIDECAR_ADMIN_LISTEN, which containers of our image have,
    or else from the address in ./sidecar.yaml. Exit code: 1 if nothing answers there, 2 if the file is wrong.

    With --all, in the directory where `sidecar inject` was run: of all sidecars and the CA, by `docker compose exec`. Exit
    code: 1 if one is not well.

    With --watch it goes on when the sidecar restarts, and says so meanwhile. Exit code: 0 when it is ended.
    """
    subject = _project(file) if everything else _sidecar(admin_listen(file))
    if seconds is not None:
        _watch(subject, _seconds(seconds), as_json=as_json)
        return
    try:
        found = subject.ask()
        text = json.dumps(found, indent=2) if as_json else subject.text(found)
    except _NoAnswerError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(1) from error
    click.echo(text)
    raise SystemExit(0 if subject.is_well(found) else 1)


class _NoAnswerError(Exception):
    """Nothing answers, or nothing that is a sidecar: it may the next time."""


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is asked for its state. ``ask`` and ``text``, the document as text for people, raise :class:`_NoAnswerError`."""

    ask: Callable[[], Any]
    text: Callable[[Any], str]
    is_well: Callable[[Any], bool] = lambda _: True


def _project(file: Path | None) -> _Subject:
    if file is not None:
        raise UsageError("--all: is of the project in this directory; give no FILE")
    from sidecar.inject import overview  # the rest of this command runs in containers, and starts without it

    ask = partial(overview.collect, Path().absolute(), os.environ)
    return _Subject(ask, lambda found: overview.as_text(printable_values(found)), overview.is_well)


def _sidecar(listen: str) -> _Subject:
    def ask() -> Any:
        try:
            code, body = probe.ask(listen, "/status")
            if code != OK:
                raise ValueError(f"what answers there has no status to tell (HTTP {code})")
            return json.loads(body)
        except (OSError, ValueError, RecursionError) as error:
            raise _NoAnswerError(probe.describe_failure(listen, error).removeprefix("error: ")) from error

    def text(found: Any) -> str:
        try:
            return as_text(printable_values(found))
        except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
            message = f"what answers at {listen} is not a sidecar, or one of another version"
            raise _NoAnswerError(message) from error

    return _Subject(ask, text)


def _watch(subject: _Subject, seconds: float, *, as_json: bool) -> None:
    """Asks again and again. A mistake of the user is one the first time only: later a file may be written at that moment."""
    asked = False

    def ask() -> Any:
        nonlocal asked
        try:
            return subject.ask()
        except UsageError as error:
            if not asked:
                raise
            raise _NoAnswerError(str(error)) from error
        finally:
            asked = True

    def look() -> Look:
        try:
            return Look(subject.text(ask()))
        except _NoAnswerError as error:
            return Look(fault=str(error))

    def line() -> str:
        try:
            return json.dumps(ask())
        except _NoAnswerError as error:
            return json.dumps({"error": str(error)})

    if as_json:
        watch_lines(line, seconds, sys.stdout)
    else:
        watch(look, seconds, sys.stdout)


def _seconds(text: str) -> float:
    """The time between two looks. What follows ``--watch`` is taken for one, and may be a file's name."""
    try:
        seconds = float(text)
    except ValueError:
        raise UsageError(
            f"--watch: {shown(text)} is no number of seconds; a file comes first: sidecar status FILE --watch"
        ) from None
    if not 0.1 <= seconds <= 3600:
        raise UsageError(f"--watch: {text} is not between 0.1 and 3600 seconds")
    return seconds


@click.command()
@_FILE
def health(file: Path | None) -> None:
    """Exit with 0 if the running sidecar of FILE lets connections through, with 1 if not.

    FILE may be left out as with `sidecar status`; without it nothing but a socket is loaded, for Docker's HEALTHCHECK.
    A sidecar is healthy if its certificate is valid, its list of revocations is fresh enough, and it is not draining.
    """
    raise SystemExit(probe.health(admin_listen(file)))


def admin_listen(file: Path | None) -> str:
    """The address of the sidecar's admin port. Raises :class:`UsageError`."""
    if file is None and (named := os.environ.get(probe.LISTEN)):
        return named
    file = file or Path("sidecar.yaml")
    config = load_config(file, os.environ)
    if config.admin is None:
        raise UsageError(f'{file}: has no `admin:`, which this command needs: admin: {{listen: "127.0.0.1:15000"}}')
    listen = config.admin.listen
    return f"unix:{listen}" if isinstance(listen, Path) else str(listen)
