"""``sidecar inject`` as people run it: exit codes, what is printed, and never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sidecar.cli.commands import main

COMPOSE = "services: {web: {image: x, environment: {URL: 'redis://:hunter2@db/'}}, db: {image: redis}}\n"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "shop"
    directory.mkdir()
    (directory / "compose.yaml").write_text(COMPOSE)
    monkeypatch.chdir(directory)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("COMPOSE_FILE", "COMPOSE_PROJECT_NAME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return directory


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["inject", *arguments], catch_exceptions=False)


def test_from_nothing_to_a_mesh_that_the_project_s_own_check_takes(project: Path) -> None:
    result = run()
    assert (result.exit_code, result.stderr) == (0, "")
    assert "new: compose.mesh.yaml" in result.stdout
    assert "web ══► db:6379" in result.stdout
    assert result.stdout.splitlines()[-2].startswith("next: docker compose -f compose.yaml -f compose.mesh.yaml up")
    assert "hunter2" not in result.stdout + (project / "compose.mesh.yaml").read_text()
    wirings = [str(path) for path in sorted(project.glob("mesh/sidecars/*.yaml"))]
    checked = CliRunner().invoke(main, ["check", "mesh/mesh.yaml", *wirings])
    assert checked.exit_code == 0, checked.output
    explained = CliRunner().invoke(main, ["policy", "explain", "mesh/mesh.yaml", "--from", "web", "--to", "db"])
    assert explained.stdout.startswith("ALLOWED")
    assert run("--check").exit_code == 0
    assert run().exit_code == 0


def test_check_finds_what_is_stale_and_changes_nothing(project: Path) -> None:
    result = run("--check")
    assert result.exit_code == 1
    assert "stale: compose.mesh.yaml" in result.stdout.splitlines()
    assert sorted(path.name for path in project.iterdir()) == ["compose.yaml"]


def test_a_dry_run_shows_all_and_changes_nothing(project: Path) -> None:
    result = run("--dry-run")
    assert result.exit_code == 0
    assert "+++ b/mesh/mesh.yaml" in result.stdout
    assert '+  - {from: web, to: "db:6379"}  # environment URL' in result.stdout
    assert "web ══► db:6379" in result.stdout
    assert sorted(path.name for path in project.parent.rglob("*") if path.is_file()) == ["compose.yaml"]


@pytest.mark.parametrize(
    ("compose", "arguments", "words"),
    [
        (COMPOSE, ["none.yaml"], "none.yaml: Compose reports: "),
        ("hello", [], "compose.yaml: Compose reports: "),
        ("services: {}", [], "compose.yaml: has no services"),
        ("services: {'..': {image: x}, a: {image: y}}", [], "service '..': its name cannot be an identity"),
        (COMPOSE, ["--port", "db"], "--port: 'db' is not SERVICE=PORT"),
        (COMPOSE, ["--publish-mesh", "db=x"], "--publish-mesh: 'db=x' is not SERVICE[:PORT][=ADDR:PORT]"),
        (
            COMPOSE,
            ["--publish-mesh", "bd"],
            "--publish-mesh: there is no service 'bd' with a network of its own (did you",
        ),
        (COMPOSE, ["--publish-mesh", "db=none"], "--publish-mesh: db=none: it is not published; nothing is"),
        (COMPOSE, ["--only", "wbe"], "--only: there is no service 'wbe' (did you mean 'web'?)"),
        (COMPOSE, ["--subnets", "10.0.0.0"], "--subnets: "),
        (COMPOSE, ["--subnets", "127.0.0.0/24", "--state", "."], "is not outside of the project"),
        (COMPOSE, ["--dry-run", "--check"], "give one of them"),
        ("services: {a: {image: x, environment: {B_HOST: b}}, b: {image: y}}", [], "add --port b=…"),
        ("services: {a: {image: x}, a-mesh: {image: y}}", [], "service 'a-mesh' exists already"),
        (
            "services: {a: {image: redis}, b: {image: y}}\nnetworks: {default: {ipam: {config: [{subnet: 10.9.0.0/16}]}}}",
            ["--subnets", "10.9.0.0/20"],
            "--subnets: 10.9.0.0/20 overlaps",
        ),
    ],
)
def test_bad_input(project: Path, compose: str, arguments: list[str], words: str) -> None:
    (project / "compose.yaml").write_text(compose)
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert all(line.startswith("error: ") for line in result.stderr.splitlines())
    assert sorted(path.name for path in project.parent.rglob("*") if path.is_file()) == ["compose.yaml"]


def test_no_compose_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    result = run()
    assert result.exit_code == 2
    assert result.stderr.startswith("error: Docker Compose 2.24.4 or newer is needed")


def test_what_is_published_of_the_mesh_stays_until_it_ends(project: Path) -> None:
    assert run("--publish-mesh", "db=203.0.113.7:7000").exit_code == 0
    override = project / "compose.mesh.yaml"
    assert 'host_ip: "203.0.113.7", published: "7000"' in override.read_text()
    again = run()
    assert "db:6379 answers mutual TLS at 203.0.113.7:7000 of the host" in again.stdout
    assert (
        "--publish-mesh db: 203.0.113.7 is no address of this machine, so Docker does not start db-mesh here"
        in again.stdout
    )
    assert 'published: "7000"' in override.read_text()
    merged = run("--merged", "--publish-mesh", "db=7001")
    assert "whether the host's port leads to the network of --publish-mesh is up to the tool" in merged.stdout
    assert "no address of this machine" not in merged.stdout
    assert run("--publish-mesh", "db=none").exit_code == 0
    assert "published:" not in override.read_text()


def test_part_of_it_and_all_again(project: Path) -> None:
    (project / "compose.yaml").write_text(
        COMPOSE.replace("db: {image: redis}", "db: {image: redis}, c: {image: redis}")
    )
    assert "note: c is not in the mesh: it left out by --only" not in run("--dry-run").stdout
    limited = run("--dry-run", "--only", "web,db")
    assert "note: c is not in the mesh: it is left out by --only" in limited.stdout
