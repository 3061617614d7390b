"""The checkout's own image, run by hand as its first lines say: small, nobody's, and in need of nothing."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.engine import ROOT, EngineError, docker, run, until
from tests.e2e.figures import FIGURES

IMAGE, BARE = "sidecar-e2e-image", "sidecar-e2e-bare"
_BARE = "ARG FROM\nFROM ${FROM}\nRUN find / -xdev -name '*.pyc' -delete\n"
"""Python's own images come so: without compiled modules."""
HARDENED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "none")

MESH = """\
trust_domain: image.internal
services: {web: {}, cache: {ports: {redis: 6379}}}
policy: [{from: web, to: "cache:redis"}]
"""
SIDECAR = """\
service: cache
mesh: mesh.yaml
identity: {files: {certificate: cache/certificate.pem, key: cache/key.pem, bundle: cache/bundle.pem}}
inbound: [{port: redis, listen: "127.0.0.1:16379", app: "127.0.0.1:6379"}]
"""


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    base = BARE
    environ = os.environ | {"DOCKER_BUILDKIT": "0"}
    run("docker", "build", "--tag", BARE, "--build-arg", f"FROM={os.environ.get('MESH_BASE', 'python:3.14-slim')}", "-",
        env=environ, stdin=_BARE)  # fmt: skip
    run("docker", "build", "--file", "compose/Dockerfile", "--build-arg", f"BASE={base}", "--tag", IMAGE, ".",
        env=environ, cwd=ROOT)  # fmt: skip
    sizes = [int(docker("inspect", "--format", "{{.Size}}", name)) / 1e6 for name in (IMAGE, base)]
    FIGURES["the image"] = f"{sizes[0] - sizes[1]:.0f} MB on top of its base"
    yield IMAGE
    docker("rmi", IMAGE, BARE)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A sidecar's files, of whom the image runs as."""
    certs = (sys.executable, "-m", "certs")
    run(
        *certs,
        "init",
        "ca",
        "--trust-domain",
        "image.internal",
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    mine = tmp_path / "mine"
    mine.mkdir()
    run(*certs, "issue", "ca", "cache", "--out", "mine/cache", cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    (mine / "mesh.yaml").write_text(MESH)
    (mine / "sidecar.yaml").write_text(SIDECAR)
    for path in (mine, *mine.rglob("*")):
        shutil.chown(path, 65534, 65534)
    return mine


@pytest.fixture
def container(image: str, files: Path) -> Iterator[str]:
    name = docker("run", "--detach", *HARDENED, "--volume", f"{files}:/etc/mesh:ro", image).strip()
    yield name
    docker("rm", "--force", name)


def state(container: str, what: str) -> str:
    return docker("inspect", "--format", f"{{{{.State.{what}}}}}", container).strip()


def test_it_is_healthy_by_itself_and_ends_when_it_is_told(container: str) -> None:
    until("it is well", lambda: state(container, "Health.Status") == "healthy", 20)
    assert "spiffe://image.internal/cache" in docker("exec", container, "sidecar", "status")
    assert docker("exec", container, "sidecar", "health") == "well\n"
    with pytest.raises(EngineError, match="no sidecar answers at 127"):
        docker("exec", "--env", "SIDECAR_ADMIN_LISTEN=127.0.0.1:1", container, "sidecar", "health")
    docker("stop", "--time", "20", container)
    assert (state(container, "ExitCode"), state(container, "OOMKilled")) == ("0", "false"), "not killed: it ended"


def test_it_is_nobody_and_can_write_nothing(container: str) -> None:
    status = docker("exec", container, "cat", "/proc/1/status")
    assert {line.split()[1] for line in status.splitlines() if line.startswith("Cap")} == {"0" * 16}
    assert "Uid:\t65534\t65534" in status
    for command in ("touch /opt/mesh/x", "touch /tmp/x", "touch /etc/mesh/x", "touch /var/tmp/x"):
        with pytest.raises(EngineError):
            docker("exec", container, "sh", "-c", command)
    with pytest.raises(EngineError, match="No module named"):
        docker("exec", container, "python", "-m", "pip")


def test_a_start_compiles_nothing(image: str) -> None:
    """It could not write it, so each start would do it again, and take nearly twice as long."""
    loads = "import sys, sidecar.__main__, sidecar.cli.run, sidecar.observe.admin, certs.__main__, certs.cli.serve"
    told = docker("run", "--rm", *HARDENED, image, "sh", "-c", f"python -v -c '{loads}' 2>&1")
    compiled = [line for line in told.splitlines() if "code object from" in line and ".pyc" not in line]
    assert "matches /" in told, "it tells of compiled modules"
    assert not compiled, compiled


def test_without_files_it_says_so_and_ends(image: str) -> None:
    with pytest.raises(EngineError, match=r"exit code 2\n.*sidecar\.yaml"):
        docker("run", "--rm", *HARDENED, image)
