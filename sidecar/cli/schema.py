"""``sidecar schema``: the keys of the two files, for editors and for people, and the metrics."""

from __future__ import annotations

import json

import click

from certs.protocol import catalogue as ca
from sidecar.config.reference import FileKind, file_schema, reference
from sidecar.identity.reasons import UsageError
from sidecar.observe import catalogue
from sidecar.observe.exposition import table
from sidecar.observe.traffic import MAX_EDGES, OTHERS


@click.command
@click.argument("kind", required=False, type=click.Choice(["mesh", "sidecar"]))
@click.option(
    "--reference",
    "wants_reference",
    is_flag=True,
    help="Print the reference of all keys and of the words of the logs, in Markdown.",
)
@click.option("--metrics", "wants_metrics", is_flag=True, help="Print the table of all metrics, in Markdown.")
def schema(kind: FileKind | None, *, wants_reference: bool, wants_metrics: bool) -> None:
    """Print the JSON Schema of a mesh.yaml or of a sidecar.yaml (draft 2020-12).

    An editor completes and checks a file whose first line names the schema:

    \b
        # yaml-language-server: $schema=mesh.schema.json

    The schema covers keys, types and defaults. `sidecar check` also checks names, and which keys go together.
    """
    if [wants_reference, wants_metrics, kind is not None].count(True) != 1:
        raise UsageError(
            "say which: `sidecar schema mesh`, `sidecar schema sidecar`, or `sidecar schema` with --reference or --metrics"
        )
    if kind is not None:
        click.echo(json.dumps(file_schema(kind), indent=2))
    else:
        click.echo(reference() if wants_reference else metrics(), nl=False)


def metrics() -> str:
    """The metrics of a sidecar and of the CA, in Markdown."""
    return "\n".join(
        [
            "# Metrics",
            "",
            "Made by `sidecar schema --metrics`; do not edit. What `/metrics` answers, in Prometheus's text format. A metric"
            " without a number is left out.",
            "",
            "## A sidecar",
            "",
            "`direction`: `inbound` or `outbound`. `peer`: the caller's service (inbound) or the called one (outbound);"
            f" empty if it has not proved an identity. At most {MAX_EDGES} combinations are told apart: further peers are"
            f" `{OTHERS}`. `port`: our own port's name, or `service:port`. `rule`: the rule of the mesh file that decided."
            " `reason`: a word of the access log.",
            "",
            *table(catalogue.METRICS),
            "",
            "## The CA",
            "",
            *table(ca.METRICS),
            "",
        ]
    )
