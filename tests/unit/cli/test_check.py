"""``sidecar check``, and how the command line tells mistakes."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sidecar import __version__
from sidecar.cli.commands import main

MESH = """\
trust_domain: shop.internal
services: {web: {}, api: {ports: {http: 80}}}
policy: [{from: web, to: api}]
"""
SIDECAR = """\
service: api
mesh: mesh.yaml
identity: {files: {certificate: c, key: k, bundle: b}}
inbound: [{port: http, listen: "0.0.0.0:8080", app: "127.0.0.1:80"}]
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mesh.yaml").write_text(MESH, encoding="utf-8")
    (tmp_path / "api.yaml").write_text(SIDECAR, encoding="utf-8")
    return tmp_path


def run(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(main, arguments, env=environ, catch_exceptions=False)


def test_valid_files() -> None:
    result = run("check", "mesh.yaml", "api.yaml")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "mesh.yaml: ok — 2 services, 1 rule",
        "api.yaml: ok — service api, 1 inbound, 0 outbound",
    ]


def test_all_mistakes_of_all_files_each_once(here: Path) -> None:
    (here / "mesh.yaml").write_text(MESH.replace("to: api", "to: apj"), encoding="utf-8")
    (here / "api.yaml").write_text(SIDECAR + "nonsense: 1", encoding="utf-8")
    (here / "good.yaml").write_text(MESH, encoding="utf-8")
    result = run("check", "mesh.yaml", "api.yaml", "good.yaml", "none.yaml")
    assert result.exit_code == 2
    assert result.stdout == "good.yaml: ok — 2 services, 1 rule\n"
    assert result.stderr.splitlines() == [
        "error: mesh.yaml:3: policy[0].to: unknown service 'apj' (did you mean 'api'?)",
        "error: api.yaml:5: unknown key 'nonsense'",
        "error: none.yaml: cannot be read: No such file or directory",
    ]


def test_warnings_do_not_fail_and_are_told_once(here: Path) -> None:
    (here / "mesh.yaml").write_text(MESH.replace("to: api}", "to: api, until: 2020-01-01}"), encoding="utf-8")
    result = run("check", "mesh.yaml", "api.yaml")
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        "warning: mesh.yaml:3: rule 'web->api' held until 2020-01-01 and has no effect now",
        "warning: api.yaml: inbound[0]: every call to api:http will be refused: no rule allows it",
    ]


def test_the_environment_counts() -> None:
    assert run("check", "api.yaml", SIDECAR_SERVICE="web").stderr.splitlines() == [
        "error: api.yaml:4: inbound[0].port: service 'web' has no ports, so it cannot be called"
    ]
    result = run("check", "api.yaml", SIDECAR_SERVCE="web")
    assert result.exit_code == 2
    assert result.stderr == "error: SIDECAR_SERVCE: unknown variable (did you mean 'SIDECAR_SERVICE'?)\n"


@pytest.mark.parametrize("text", ["a: 1", "[]", "hello"])
def test_neither_kind_of_file(here: Path, text: str) -> None:
    (here / "x.yaml").write_text(text, encoding="utf-8")
    result = run("check", "x.yaml")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: x.yaml: is neither a mesh.yaml (trust_domain, services, policy) nor a sidecar.yaml (service, …)\n"
    )


def test_needs_a_file() -> None:
    assert run("check").exit_code == 2


def test_lists_its_commands() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert "  check " in result.stdout
    assert "  policy " in result.stdout


def test_version() -> None:
    assert run("--version").stdout == f"sidecar, version {__version__}\n"


def test_as_a_module(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["sidecar", "check", "mesh.yaml"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("sidecar", run_name="__main__")
    assert left.value.code == 0
    assert capsys.readouterr().out == "mesh.yaml: ok — 2 services, 1 rule\n"
