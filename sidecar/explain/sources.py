"""Where the lines of a connection come from: files, the sidecars' logs of a Compose project, a running sidecar. I/O.

Each source yields entries one after another; none holds a whole log.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from sidecar.explain.records import MAX_LINE, Entry, entry_of, is_of, lines_with, shortened
from sidecar.identity.reasons import UsageError
from sidecar.inject.composecli import Compose, find_compose
from sidecar.inject.injection import MESH_DIRECTORY, OVERRIDE
from sidecar.inject.options import read_record
from sidecar.inject.project import read_text
from sidecar.inject.topology import sidecar_of
from sidecar.observe import probe

BLOCK = 1 << 20
STDIN = Path("-")


def in_files(paths: Iterable[Path], wanted: str) -> Iterator[Entry]:
    """The entries in files; ``-`` is stdin. Raises :class:`UsageError` for one that cannot be read."""
    for path in paths:
        yield from _entries(blocks_in_file(path), wanted, "stdin" if path == STDIN else str(path))


def blocks_in_file(path: Path, option: str = "--log") -> Iterator[bytes]:
    """A file in blocks; ``-`` is stdin. ``option``: what names it. Raises :class:`UsageError` if it cannot be read."""
    try:
        with ExitStack() as opened:
            file: BinaryIO = sys.stdin.buffer if path == STDIN else opened.enter_context(path.open("rb"))
            yield from iter(lambda: file.read(BLOCK), b"")
    except OSError as error:
        name = "stdin" if path == STDIN else str(path)
        raise UsageError(f"{option} {name}: cannot be read: {error.strerror or error}") from error


def is_project(directory: Path) -> bool:
    """Whether ``sidecar inject`` was run in this directory."""
    return (directory / OVERRIDE).is_file()


def in_compose(
    project: Path, wanted: str, environ: Mapping[str, str], compose: Compose | None = None
) -> Iterator[Entry]:
    """The entries in the logs of a project's sidecars, as Docker keeps them. Raises :class:`UsageError`."""
    yield from _entries(blocks_in_compose(project, environ, compose), wanted, "docker compose logs")


def blocks_in_compose(project: Path, environ: Mapping[str, str], compose: Compose | None = None) -> Iterator[bytes]:
    """The logs of a project's sidecars in blocks, as Docker keeps them. Raises :class:`UsageError`."""
    text = read_text(project / OVERRIDE) or ""
    files = [*(project / name for name in read_record(text, OVERRIDE).files), project / OVERRIDE]
    compose = compose or find_compose(environ)
    sidecars = sorted(sidecar_of(path.stem) for path in (project / MESH_DIRECTORY / "sidecars").glob("*.yaml"))
    yield from compose.stream(files, environ, "logs", "--no-color", "--no-log-prefix", *sidecars)


def in_status(listen: str, wanted: str) -> Iterator[Entry]:
    """The refusals that a running sidecar remembers. Raises :class:`UsageError` if none answers at ``listen``."""
    try:
        _, body = probe.ask(listen, "/status")
        status = json.loads(body)
        service, refusals = str(status["service"]), list(status["refused_lately"])
        for one in refusals:
            if is_of(wanted, str(one.get("connection_id", "")), ""):
                yield Entry(f"status of {service}", _of_refusal(service, one))
    except (OSError, ValueError) as error:
        raise UsageError(probe.describe_failure(listen, error).removeprefix("error: ")) from error
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"what answers at {listen} is not a sidecar, or one of another version") from error


def _of_refusal(service: str, refusal: Mapping[str, Any]) -> dict[str, str]:
    fields = {**refusal, "time": refusal["at"], "event": "connection", "service": service, "decision": "deny"}
    return {name: shortened(value) for name, value in fields.items() if isinstance(value, str) and name != "at"}


def _entries(blocks: Iterable[bytes], wanted: str, source: str) -> Iterator[Entry]:
    for line in lines_with(blocks, wanted.encode("ascii")):
        if (entry := entry_of(line[:MAX_LINE], wanted, source)) is not None:
            yield entry
