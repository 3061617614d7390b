"""``sidecar dev``: what it prints of a mesh, for people and for shells, and what it says of a mistake."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sidecar.cli.commands import main
from sidecar.dev.dev_mesh import DevMesh
from tests.beds.dev_mesh import MESH, MeshFile, is_free

PLACED = """\
trust_domain: shop.internal
services:
  web: {ports: {http: 8080}, dev: {app: {http: 8081}, calls: {"api:http": 18080, "db:sql": 18081}}}
  api: {ports: {http: 80}, dev: {app: {http: 8082}}}
  db: {ports: {sql: 5432}}
  idle: {}
policy:
  - {from: web, to: "api:http"}
"""


@pytest.fixture
def placed(tmp_path: Path) -> Path:
    path = tmp_path / "mesh.yaml"
    path.write_text(PLACED)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Iterator[MeshFile]:
    with MeshFile(tmp_path) as made:
        yield made


@pytest.fixture
def meshes(monkeypatch: pytest.MonkeyPatch) -> list[DevMesh]:
    """Those that would have been run; their listeners are closed instead."""
    made: list[DevMesh] = []

    async def run(mesh: DevMesh) -> None:
        made.append(mesh)
        for listener in mesh._listeners():
            listener.server.close()

    # By name, since `sidecar.cli.dev` the attribute is the command, not the module.
    monkeypatch.setattr(import_module("sidecar.cli.dev"), "run_dev", run)
    return made


def dev(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["dev", *map(str, arguments)])


# -- variables ---------------------------------------------------------------------------------------------------------

WEB = {
    "HTTP_PORT": "8081",
    "PORT": "8081",
    **{f"{name}_HOST": "127.0.0.1" for name in ("API", "API_HTTP", "DB", "DB_SQL")},
    **{f"{name}_PORT": "18080" for name in ("API", "API_HTTP")},
    **{f"{name}_ADDRESS": "127.0.0.1:18080" for name in ("API", "API_HTTP")},
    **{f"{name}_PORT": "18081" for name in ("DB", "DB_SQL")},
    **{f"{name}_ADDRESS": "127.0.0.1:18081" for name in ("DB", "DB_SQL")},
}


def test_env_prints_what_an_app_needs_to_know_as_export_lines(placed: Path) -> None:
    result = dev(placed, "--env", "web")
    assert (result.exit_code, result.stderr) == (0, "")
    assert set(result.stdout.splitlines()) == {f"export {name}={value}" for name, value in WEB.items()}


@pytest.mark.parametrize("shell", [name for name in ("sh", "bash", "zsh") if shutil.which(name)])
def test_env_is_for_the_shell_s_eval(placed: Path, shell: str) -> None:
    script = 'set -eu; eval "$("$1" -m sidecar dev "$2" --env web)"; exec env'
    done = subprocess.run(
        [shell, "-c", script, shell, sys.executable, str(placed)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert WEB.items() <= dict(line.partition("=")[::2] for line in done.stdout.splitlines()).items()


def test_env_file_is_what_docker_reads(placed: Path) -> None:
    result = dev(placed, "--env", "web", "--env-file")
    assert dict(line.split("=") for line in result.stdout.splitlines()) == WEB  # no quotes: docker would keep them


def test_env_of_a_service_that_neither_listens_nor_calls_is_empty(placed: Path) -> None:
    result = dev(placed, "--env", "idle")
    assert (result.exit_code, result.output) == (0, "")


def test_env_of_an_unknown_service(placed: Path) -> None:
    result = dev(placed, "--env", "wbe")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: --env: {placed} has no service 'wbe'; it has: web, api, db, idle\n"


def test_env_file_alone(placed: Path) -> None:
    result = dev(placed, "--env-file")
    assert result.exit_code == 2
    assert "--env-file goes with --env SERVICE" in result.stderr


def test_two_services_that_become_one_variable(tmp_path: Path) -> None:
    path = tmp_path / "mesh.yaml"
    path.write_text(
        "trust_domain: shop.internal\nservices: {web: {}, a-b: {ports: 1}, a.b: {ports: 1}}\n"
        "policy: [{from: web, to: [a-b, a.b]}]\n"
    )
    result = dev(path, "--env", "web")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "error: web: the variable A_B_P1_HOST would be both that of 'a-b:1' and that of 'a.b:1': rename one\n"
    )


# -- running -----------------------------------------------------------------------------------------------------------


def test_the_banner_names_who_calls_whom_and_where(file: MeshFile, meshes: list[DevMesh]) -> None:
    result = dev(file.path)
    assert result.exit_code == 0
    web, job, api, db = map(file.name, ("web", "job", "api", "db"))
    assert (
        result.stdout
        == f"""\
shop.internal: 4 services, each behind its own sidecar; the CA is in memory

  {web}
    calls {api}:http at 127.0.0.1:{file.call("web", "api:http")}
    calls {db}:sql at 127.0.0.1:{file.call("web", "db:sql")}

  {job}
    calls {api}:http at 127.0.0.1:{file.call("job", "api:http")}

  {api}
    serves http from its app on 127.0.0.1:{file.app("api:http")}

  {db}
    serves sql from its app on 127.0.0.1:{file.app("db:sql")}
"""
    )
    assert len(meshes) == 1


def test_the_banner_is_not_in_the_way_of_a_json_log(file: MeshFile, meshes: list[DevMesh]) -> None:
    result = dev(file.path, "--log", "json")
    assert result.stdout == ""
    assert "4 services" in result.stderr


def test_without_a_file_it_is_mesh_yaml(file: MeshFile, meshes: list[DevMesh], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.path.parent)
    assert dev().exit_code == 0
    assert [mesh.path for mesh in meshes] == [Path("mesh.yaml")]


def test_a_broken_file_and_a_missing_one(tmp_path: Path) -> None:
    path = tmp_path / "mesh.yaml"
    result = dev(path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: {path}: cannot be read: No such file or directory\n"
    path.write_text(MESH + "polices: []\n")
    assert dev(path).stderr == f"error: {path}:10: unknown key 'polices' (did you mean 'policy'?)\n"


def test_a_port_that_is_taken(file: MeshFile) -> None:
    taken = file.call("job", "api:http")
    with socket.create_server(("127.0.0.1", taken)):
        result = dev(file.path)
        assert (result.exit_code, result.stdout) == (2, "")
        assert len(result.stderr.splitlines()) == 1
        assert f"cannot listen on 127.0.0.1:{taken}: Address already in use" in result.stderr
    assert all(map(is_free, file.ports))
