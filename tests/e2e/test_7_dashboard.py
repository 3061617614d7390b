"""`sidecar dashboard` where `sidecar inject` was run: how it reaches the CA, and what that costs the CA's container."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile

from tests.e2e.engine import ROOT, Application, EngineError, docker, until


@contextmanager
def dashboard(mesh: Application) -> Iterator[str]:
    """What it says besides its address, once it has that: then it has looked."""
    command = (sys.executable, "-m", "sidecar", "dashboard")
    environ = mesh.environ | {"PYTHONPATH": str(ROOT)}
    with (
        TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, env=environ, cwd=mesh.directory, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as program,
    ):
        try:
            address = program.stdout.readline() if program.stdout is not None else ""
            errors.seek(0)
            said = errors.read()
            if not address.startswith("http://127.0.0.1:"):
                raise EngineError(f"sidecar dashboard: {said}")
            yield said
        finally:
            program.terminate()


def asking(mesh: Application) -> list[str]:
    """Processes in the CA's container that ask for a dashboard."""
    processes = docker("top", mesh.container("mesh-ca"), "-eo", "pid,args").splitlines()
    return [line for line in processes if "certs.protocol.looking" in line]


def test_the_ca_is_asked_by_its_socket_and_by_a_process_only_where_that_is_out_of_reach(mesh: Application) -> None:
    with dashboard(mesh) as said:
        assert (said, asking(mesh)) == ("", [])
    directory = mesh.state / "ca"
    directory.chmod(0o711)  # others may enter it now: who listens there might not be the CA
    try:
        with dashboard(mesh) as said:
            assert said.startswith("asks by a process in the CA's container: ")
            assert len(asking(mesh)) == 1
    finally:
        directory.chmod(0o700)
    until("the process in the CA's container ends with the dashboard", lambda: not asking(mesh), 20)
