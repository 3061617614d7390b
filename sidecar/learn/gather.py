"""Reads what was seen, and what the application says. I/O: files, stdin, and Compose. A log is streamed, never held."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from sidecar.explain.records import MAX_LINE, lines_with, objects
from sidecar.explain.sources import STDIN, blocks_in_compose, blocks_in_file
from sidecar.identity.reasons import UsageError
from sidecar.inject.edges import Edge
from sidecar.inject.meshtext import Existing, proposals
from sidecar.inject.steps import InjectRequest, plan
from sidecar.learn.rules import Evidence
from sidecar.learn.seen import Call, Seen
from sidecar.policy.mesh import Mesh

MAX_REPORTS = 32 << 20
"""Bytes of a file of reports: a thousand sidecars."""


def read_logs(paths: Iterable[Path], seen: Seen) -> None:
    """Adds what the logs tell; ``-`` is stdin. Raises :class:`UsageError` for one that cannot be read."""
    for path in paths:
        _read(blocks_in_file(path), seen)


def read_compose(project: Path, environ: Mapping[str, str], seen: Seen) -> None:
    """Adds what the sidecars' logs of a Compose project tell. Raises :class:`UsageError`."""
    _read(blocks_in_compose(project, environ), seen)


def read_reports(path: Path, seen: Seen) -> None:
    """Adds what ``certs reports --json`` or ``sidecar status --json``, with --all or not, has printed into a file; ``-`` is
    stdin. Raises :class:`UsageError`."""
    name = "stdin" if path == STDIN else str(path)
    text = b"".join(_at_most(blocks_in_file(path, "--reports"), MAX_REPORTS, name))
    try:
        found = json.loads(text)
        for identity, report in list(_reports(found)):
            seen.take_report(identity, report)
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(
            f"--reports {name}: is not what `certs reports --json` or `sidecar status --all --json` prints"
        ) from error


def evidence_of_project(mesh: Mesh, environ: Mapping[str, str], today: date, commented: Iterable[Call]) -> Evidence:
    """What the files of this directory's Compose application say, as ``sidecar inject`` reads them. Raises
    :class:`UsageError`."""
    planned = plan(InjectRequest(), environ, today)
    edges, existing = planned.injection.edges, planned.inputs.existing
    return Evidence(
        lambda call: any(mentions(edge, call, mesh) for edge in edges), removed(edges, existing, mesh), {*commented}
    )


def removed(edges: Iterable[Edge], existing: Existing | None, mesh: Mesh) -> frozenset[Call]:
    """The calls that earlier runs of ``inject`` proposed a rule for, in a file that a person has edited since. Those of them
    that it does not allow now were removed."""
    if existing is None or not existing.edited or existing.proposed is None:
        return frozenset()
    ports = {name: service.ports for name, service in mesh.services.items()}
    known = [edge for edge in edges if {edge.caller, edge.callee} <= ports.keys()]
    return frozenset(
        Call(mesh.identity(rule.caller), target)
        for rule in proposals(known, ports)
        if rule.name in existing.proposed
        for text in rule.to
        for target in mesh.targets(text)
    )


def mentions(edge: Edge, call: Call, mesh: Mesh) -> bool:
    if (edge.caller, edge.callee) != (call.caller, call.target.service):
        return False
    number = mesh.services[edge.callee].ports.get(call.target.port)
    return number is not None and (not edge.ports or number in edge.ports)


def _read(blocks: Iterable[bytes], seen: Seen) -> None:
    for line in lines_with(blocks, b"event"):
        for found in objects(line[:MAX_LINE].decode("utf-8", "replace")):
            if isinstance(found.get("event"), str):
                seen.take(found)
                break


def _at_most(blocks: Iterable[bytes], most: int, name: str) -> Iterator[bytes]:
    read = 0
    for block in blocks:
        read += len(block)
        if read > most:
            raise UsageError(f"--reports {name}: is larger than {most >> 20} MiB")
        yield block


def _reports(found: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each sidecar's identity, and what it reports."""
    if "edges" in found:
        yield found["identity"], found
        return
    running = found.get("sidecars", {})
    yield from ((one["identity"], one) for one in running.values() if "error" not in one)
    # Of a sidecar that answers, its own status is the newer one.
    answering = {one["identity"] for one in running.values() if "error" not in one}
    rest = found["reports"] if not running else found.get("reports", ())
    yield from ((one["identity"], one["report"]) for one in rest if one["identity"] not in answering)
