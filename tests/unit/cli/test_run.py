"""``sidecar run``: which file it takes, what it says of itself, and its exit codes."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sidecar.cli.commands import main
from sidecar.identity.reasons import UsageError


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files with which a sidecar would have been started; none is."""
    files: list[Path] = []

    def load(file: Path, _: Any) -> str:
        files.append(file)
        if not file.exists():
            raise UsageError(f"{file}: not there\nand another mistake")
        return "the configuration"

    async def run(config: str, *_: Any) -> None:
        assert config == "the configuration"

    # By name, since `sidecar.cli.run` the attribute is the command, not the module.
    module = import_module("sidecar.cli.run")
    monkeypatch.setattr(module, "load_config", load)
    monkeypatch.setattr(module, "run_sidecar", run)
    return files


def test_it_runs_the_file_it_is_given(started: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.touch()
    result = CliRunner().invoke(main, ["run", str(file)])
    assert (result.exit_code, result.output) == (0, "")
    assert started == [file]


def test_without_one_it_is_sidecar_yaml(started: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sidecar.yaml").touch()
    assert CliRunner().invoke(main, ["run"]).exit_code == 0
    assert started == [Path("sidecar.yaml")]


def test_a_mistake_is_told_line_by_line_with_exit_code_2(started: list[Path], tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["run", str(tmp_path / "none.yaml")])
    assert result.exit_code == 2
    assert result.stderr == f"error: {tmp_path / 'none.yaml'}: not there\nerror: and another mistake\n"
    assert result.stdout == ""


def test_help_says_how_it_ends() -> None:
    text = CliRunner().invoke(main, ["run", "--help"]).output
    for word in ("SIGTERM", "Exit codes", "sidecar.yaml"):
        assert word in text


def test_two_files_are_one_too_many() -> None:
    assert CliRunner().invoke(main, ["run", "a", "b"]).exit_code == 2
