"""``sidecar verify``: which way in is taken, where reports go, and its exit codes."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sidecar.cli.commands import main
from sidecar.verify import places, project, trial
from sidecar.verify.judgement import Check, Listener, Report, Status
from sidecar.verify.trial import Place

MESH = "trust_domain: shop.internal\nservices: {web: {}}\n"


def ran(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["verify", *map(str, words)])


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The ways in that were taken, and a report that is a proof."""
    ways: list[Any] = []

    def way(name: str) -> Any:
        def go(*words: Any) -> Place:
            ways.append((name, *words))
            return Place(name, "shop.internal", listeners=[Listener("api", "http", "127.0.0.1:1")])

        return go

    monkeypatch.setattr(project, "compose", way("compose"))
    monkeypatch.setattr(places, "dev", way("dev"))
    monkeypatch.setattr(places, "listed", way("listed"))
    conclude(monkeypatch, Status.OK)
    return ways


def conclude(monkeypatch: pytest.MonkeyPatch, *statuses: Status) -> None:
    checks = [Check("edge", "web -> api:http", "called it", status, "x") for status in statuses]
    report = Report("shop", datetime(2026, 12, 1, tzinfo=UTC), checks)
    monkeypatch.setattr(trial, "run", lambda *_, **__: report)


def test_three_ways_in(taken: list[Any], tmp_path: Path) -> None:
    mesh, sidecar = tmp_path / "mesh.yaml", tmp_path / "web.yaml"
    mesh.write_text(MESH)
    sidecar.write_text("service: web\n")
    for words in ([], [mesh], [sidecar], ["api:http=10.0.0.1:8080"], [mesh, sidecar]):
        assert ran(*words).exit_code == 0
    assert [way[0] for way in taken] == ["compose", "dev", "listed", "listed", "listed"]


@pytest.mark.parametrize("statuses", [[Status.OK, Status.FAILED], [Status.OK, Status.NOT_TRIED], []])
def test_what_is_not_proved_ends_with_1(
    taken: list[Any], monkeypatch: pytest.MonkeyPatch, statuses: list[Status]
) -> None:
    conclude(monkeypatch, *statuses)
    result = ran("api:http=10.0.0.1:8080")
    assert (result.exit_code, "NOT PROVED" in result.output) == (1, True)


def test_reports_are_written(taken: list[Any], tmp_path: Path) -> None:
    result = ran("a:b=c:1", "--json", "--junit", tmp_path / "j.xml", "--html", tmp_path / "h.html")
    assert json.loads(result.output)["proved"] is True
    assert (tmp_path / "j.xml").read_text().startswith("<?xml")
    assert (tmp_path / "h.html").read_text().startswith("<!doctype html>")


def test_a_report_that_cannot_be_written_is_a_mistake(taken: list[Any], tmp_path: Path) -> None:
    result = ran("a:b=c:1", "--html", tmp_path / "no" / "h.html")
    assert (result.exit_code, "No such file" in result.output) == (2, True)


def test_options_that_go_with_files_are_refused_elsewhere(taken: list[Any], tmp_path: Path) -> None:
    result = ran("--identity", tmp_path)
    assert (result.exit_code, "go with files or addresses" in result.output) == (2, True)


def test_a_file_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    assert ran(tmp_path / "mesh.yaml").exit_code == 2
