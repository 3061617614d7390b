"""``sidecar check``: validates files, each one and together."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import click

from sidecar.config import wiring as config
from sidecar.config.sidecar_yaml import ConfigShape
from sidecar.documents.document import parts
from sidecar.documents.schema import keys_at
from sidecar.documents.yaml12 import load_text, parse_yaml
from sidecar.identity.reasons import UsageError
from sidecar.lifecycle.plaintext_watch import who_would_be_cut
from sidecar.policy import decide, mesh
from sidecar.policy.mesh_yaml import MeshShape


@click.command
@click.argument("files", nargs=-1, required=True, metavar="FILE…", type=click.Path(path_type=Path))
def check(files: tuple[Path, ...]) -> None:
    """Validate mesh.yaml and sidecar.yaml files together.

    The keys of a file determine which of the two it is. A sidecar.yaml is checked against the mesh file that it names, and
    with the SIDECAR_… variables of the environment, as `sidecar run` would read it. All mistakes of all files are reported.
    Of ports that are or were permissive it is told who spoke plaintext to them lately, as far as `state_dir` can be read.

    Exit code: 0 if every file is valid (there may be warnings), 2 if not.
    """
    mistakes: dict[str, None] = {}  # each is printed once: two sidecars may name the same broken mesh
    warnings: dict[str, None] = {}
    for file in files:
        try:
            summary, found = _check(file, datetime.now(UTC))
        except UsageError as error:
            mistakes.update(dict.fromkeys(str(error).splitlines()))
        else:
            click.echo(f"{file}: ok — {summary}")
            warnings.update(dict.fromkeys(found))
    for line in warnings:
        click.echo(f"warning: {line}", err=True)
    if mistakes:
        raise UsageError("\n".join(mistakes))


def _check(file: Path, now: datetime) -> tuple[str, list[str]]:
    """One file's summary and warnings."""
    keys = {key for key, _ in parts(parse_yaml(load_text(file), str(file)).data)}
    mesh_keys, config_keys = (set(keys_at(shape, ())) for shape in (MeshShape, ConfigShape))
    if len(keys & mesh_keys) > len(keys & config_keys):
        found = mesh.load_mesh(file)
        return f"{_count(len(found.services), 'service')}, {_count(len(found.rules), 'rule')}", decide.warnings(
            found, now
        )
    if not keys & config_keys:
        raise UsageError(
            f"{file}: is neither a mesh.yaml (trust_domain, services, policy) nor a sidecar.yaml (service, …)"
        )
    wiring = config.load_config(file, os.environ)
    summary = f"service {wiring.service}, {len(wiring.inbound)} inbound, {len(wiring.outbound)} outbound"
    return summary, [*config.warnings(wiring, now), *who_would_be_cut(wiring, now)]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
