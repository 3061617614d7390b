"""``sidecar schema``."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from certs.protocol import catalogue as ca
from sidecar.cli.commands import main
from sidecar.cli.schema import metrics
from sidecar.config.reference import FileKind, file_schema, reference
from sidecar.observe import catalogue


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["schema", *arguments], catch_exceptions=False)


@pytest.mark.parametrize("kind", ["mesh", "sidecar"])
def test_a_schema(kind: FileKind) -> None:
    result = run(kind)
    assert result.exit_code == 0
    assert json.loads(result.stdout) == file_schema(kind)
    assert result.stdout.endswith("}\n")


def test_the_reference() -> None:
    assert run("--reference").stdout == reference()


def test_the_table_of_all_metrics() -> None:
    told = run("--metrics").stdout
    assert told == metrics()
    for metric in (*catalogue.METRICS, *ca.METRICS):
        assert f"| `{metric.name}` | {metric.kind} |" in told


@pytest.mark.parametrize("arguments", [(), ("mesh", "--reference"), ("policy",), ("--reference", "--metrics")])
def test_neither_and_both_and_another(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "mesh" in result.stderr
