"""``sidecar schema``: the keys of the two files, for editors and for people."""

from __future__ import annotations

import json

import click

from sidecar.config.reference import FileKind, file_schema, reference
from sidecar.identity.reasons import UsageError


@click.command
@click.argument("kind", required=False, type=click.Choice(["mesh", "sidecar"]))
@click.option(
    "--reference",
    "wants_reference",
    is_flag=True,
    help="Print the reference of all keys and of the words of the logs, in Markdown.",
)
def schema(kind: FileKind | None, *, wants_reference: bool) -> None:
    """Print the JSON Schema of a mesh.yaml or of a sidecar.yaml (draft 2020-12).

    An editor completes and checks a file whose first line names the schema:

    \b
        # yaml-language-server: $schema=mesh.schema.json

    The schema covers keys, types and defaults. `sidecar check` also checks names, and which keys go together.
    """
    if wants_reference == (kind is not None):
        raise UsageError("say which: `sidecar schema mesh`, `sidecar schema sidecar`, or `sidecar schema --reference`")
    click.echo(reference() if kind is None else json.dumps(file_schema(kind), indent=2), nl=kind is not None)
