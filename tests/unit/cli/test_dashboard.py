"""``sidecar dashboard``: where it looks, and what it says of a mistake."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sidecar.cli.commands import main
from sidecar.dashboard import serving


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, Any]]:
    """What would have been shown, and at which port."""
    found: list[tuple[str, int, Any]] = []

    async def run(documents: Any, where: str, _log: Any, port: int, say: Any, not_seen: Any) -> None:
        found.append((where, port, not_seen))
        say("http://127.0.0.1:1/#token")
        await documents.aclose()

    monkeypatch.setattr(import_module("sidecar.cli.dashboard").serving, "run", run)
    return found


def test_beside_a_ca(tmp_path: Path, served: list[tuple[str, int, Any]]) -> None:
    done = CliRunner().invoke(main, ["dashboard", str(tmp_path), "--port", "8000"])
    assert done.output == "http://127.0.0.1:1/#token\nCtrl-C ends it; the address is for you alone\n"
    assert (done.exit_code, served) == (0, [(f"the CA in {tmp_path}", 8000, {})])


def test_of_a_project(tmp_path: Path, served: list[tuple[str, int, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sidecar.inject.overview.looking", lambda project, _environ: (None, [str(project)]))
    monkeypatch.setattr("sidecar.inject.overview.not_seen", lambda _project: {"db": ["at published port 80"]})
    assert CliRunner().invoke(main, ["dashboard"]).exit_code == 0
    assert served == [(f"the Compose project in {tmp_path}", 0, {"db": ["at published port 80"]})]


def test_outside_of_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["dashboard"])
    assert done.exit_code == 2
    assert "sidecar inject" in done.output


def test_without_the_package_that_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "find_spec", lambda _name: None)
    for command in (["dashboard", str(tmp_path)], ["dev", "mesh.yaml", "--dashboard"]):
        done = CliRunner().invoke(main, command)
        assert (done.exit_code, "mtls-sidecar[dashboard]" in done.output) == (2, True)


def test_help_says_how_to_reach_it_and_for_whom_it_is() -> None:
    text = " ".join(CliRunner().invoke(main, ["dashboard", "--help"]).output.split())
    for words in ("docker compose exec", "sidecar dev --dashboard", "ssh -L", "changes nothing", "Exit code: 2"):
        assert words in text
