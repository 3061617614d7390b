"""COMPOSE_FILE in .env."""

from __future__ import annotations

import pytest

from sidecar.inject.activation import activated, activation_line, is_active

OVERRIDE = "compose.mesh.yaml"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "COMPOSE_FILE=compose.yaml:compose.mesh.yaml\n"),
        ("A=1", "A=1\nCOMPOSE_FILE=compose.yaml:compose.mesh.yaml\n"),
        ("COMPOSE_FILE=a.yaml:b.yaml\nB=2\n", "COMPOSE_FILE=a.yaml:b.yaml:compose.mesh.yaml\nB=2\n"),
        ("COMPOSE_FILE='a.yaml'\n", "COMPOSE_FILE=a.yaml:compose.mesh.yaml\n"),
        ("COMPOSE_FILE=\nA=1\n", "COMPOSE_FILE=compose.yaml:compose.mesh.yaml\nA=1\n"),
        ("COMPOSE_PATH_SEPARATOR=,\nCOMPOSE_FILE=a\n", "COMPOSE_PATH_SEPARATOR=,\nCOMPOSE_FILE=a,compose.mesh.yaml\n"),
        ("COMPOSE_PATH_SEPARATOR=,\n", "COMPOSE_PATH_SEPARATOR=,\nCOMPOSE_FILE=compose.yaml,compose.mesh.yaml\n"),
    ],
)
def test_activated(before: str | None, after: str) -> None:
    assert not is_active(before, OVERRIDE)
    assert activated(before, ["compose.yaml"], OVERRIDE) == after
    assert is_active(after, OVERRIDE)
    assert activated(after, ["compose.yaml"], OVERRIDE) == after


@pytest.mark.parametrize(
    "env",
    [
        None,
        "",
        "#COMPOSE_FILE=compose.mesh.yaml",
        "X_COMPOSE_FILE=compose.mesh.yaml",
        "COMPOSE_FILE=compose.mesh.yaml\nCOMPOSE_FILE=a",
        "COMPOSE_FILE=my-compose.mesh.yaml",
    ],
)
def test_not_active(env: str | None) -> None:
    assert not is_active(env, OVERRIDE)


def test_the_line_to_add() -> None:
    assert activation_line(["a", "b"], OVERRIDE) == "COMPOSE_FILE=a:b:compose.mesh.yaml"
