"""``sidecar schema``."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from sidecar.cli.commands import main
from sidecar.config.reference import FileKind, file_schema, reference


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


@pytest.mark.parametrize("arguments", [(), ("mesh", "--reference"), ("policy",)])
def test_neither_and_both_and_another(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "mesh" in result.stderr
