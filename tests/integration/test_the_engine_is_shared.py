"""`make e2e` and `make shop` may run beside each other: the engine that one started serves all, and the last stops it.

Of the engine there are stand-ins here: one that answers while its process lives, and one that asks it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "e2e/engine.sh"
DOCKERD = """#!/bin/bash
echo $$ >"$2"; echo begun >>"$2.told"
trap 'rm -f "$2"; echo ended >>"$2.told"; exit' TERM
while :; do sleep 0.1; done
"""
DOCKER = '#!/bin/bash\nkill -0 "$(cat "$E2E_ENGINE_DIRECTORY/pid" 2>/dev/null)" 2>/dev/null\n'

Start = Callable[[], "subprocess.Popen[str]"]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    for name, text in (("dockerd", DOCKERD), ("docker", DOCKER), ("mmdebstrap", "#!/bin/sh\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    more = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "E2E_ENGINE_DIRECTORY": str(tmp_path / "run"),
        "MESH_BASE": "any",
    }
    return os.environ | more


def begun(environ: dict[str, str]) -> subprocess.Popen[str]:
    """A run that goes on until something is written to it."""
    command = [str(SCRIPT), "run", "sh", "-c", "docker info && echo served; read word; docker info && echo served"]
    one = subprocess.Popen(command, env=environ, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert one.stdout is not None
    assert one.stdout.readline() == "served\n"
    return one


def told(tmp_path: Path) -> list[str]:
    return (tmp_path / "run/pid.told").read_text().split()


def test_the_first_to_end_leaves_the_engine_to_the_other(environ: dict[str, str], tmp_path: Path) -> None:
    first, second = begun(environ), begun(environ)
    assert first.communicate("end\n", timeout=60)[0] == "served\n"
    assert told(tmp_path) == ["begun"], "started once, and not ended under the other"
    assert second.communicate("end\n", timeout=60)[0] == "served\n"
    assert told(tmp_path) == ["begun", "ended"]


def test_a_run_that_was_killed_counts_no_more(environ: dict[str, str], tmp_path: Path) -> None:
    first, second = begun(environ), begun(environ)
    first.kill()
    first.communicate(timeout=60)
    second.communicate("end\n", timeout=60)
    assert told(tmp_path) == ["begun", "ended"]


def test_an_engine_of_somebody_else_is_not_stopped(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "docker").write_text("#!/bin/sh\n")
    begun(environ).communicate("end\n", timeout=60)
    assert not (tmp_path / "run/pid.told").exists()


@pytest.mark.parametrize(("others", "code", "engines"), [(0, 0, ["begun", "ended", "begun"]), (1, 3, ["begun"])])
def test_only_who_is_alone_restarts_it(
    environ: dict[str, str], tmp_path: Path, others: int, code: int, engines: list[str]
) -> None:
    running = [begun(environ) for _ in range(others)]
    command = [
        str(SCRIPT),
        "run",
        "sh",
        "-c",
        '"$E2E_ENGINE_RESTART" restart; echo $?; cat "$E2E_ENGINE_DIRECTORY/pid.told"',
    ]
    said = subprocess.run(command, env=environ, text=True, stdout=subprocess.PIPE, timeout=120, check=True).stdout
    assert said.split() == [str(code), *engines]
    for one in running:
        one.communicate("end\n", timeout=60)
