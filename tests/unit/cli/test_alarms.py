"""``sidecar alarms``: what the CA of a project says, passed on as it comes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from sidecar.cli.commands import main
from sidecar.inject import overview


def test_options_and_blocks_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[str]] = []

    def alarms(_project: Path, _environ: Mapping[str, str], options: Sequence[str]) -> Iterator[bytes]:
        asked.append(options)
        return iter([b"one\ntw", b"o\n"])

    monkeypatch.setattr(overview, "alarms", alarms)
    done = CliRunner().invoke(main, ["alarms", "--json", "--follow"])
    assert (done.exit_code, done.output) == (0, "one\ntwo\n")
    assert CliRunner().invoke(main, ["alarms"]).exit_code == 0
    assert asked == [["--json", "--follow"], []]


def test_outside_of_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["alarms"])
    assert done.exit_code == 2
    assert "sidecar inject" in done.output
