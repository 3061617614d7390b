"""The practice of a stolen issuing key, as an operator runs it: on a copy of a CA that is in use, which stays as it is."""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from tests.beds.ca_processes import CALLS_API, CaSite
from tests.beds.processes import clean_environment

PRACTISE = Path(__file__).parents[2] / "compose" / "key-drill" / "practise.py"


async def practised(*words: str) -> tuple[int, str]:
    with trio.fail_after(120):
        done = await trio.run_process(
            [sys.executable, str(PRACTISE), *words],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=clean_environment(),
        )
    return done.returncode, (done.stdout + done.stderr).decode()


def held(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


async def test_from_the_discovery_to_the_last_sidecar_on_the_new_key(tmp_path: Path) -> None:
    site = CaSite.make(tmp_path, CALLS_API.replace("  job: {}\n", "").replace("[web, job]", "web"))
    before = held(site.directory)
    code, text = await practised(str(site.directory), str(site.path / "mesh.yaml"))
    assert code == 0, text
    steps = [line.partition(" s  ")[2] for line in text.splitlines() if " s  " in line]
    assert [step.partition(":")[0] for step in steps if "is on" not in step or "last" in step] == [
        "discovered",
        "certs renew-issuing --distrust",
        "the last sidecar is on the new key",
        "the thief is refused",
        "certs enrolment",
    ]
    assert {"web is on the new key", "api is on the new key"} < set(steps)
    assert held(site.directory) == before


async def test_a_ca_without_its_mesh_is_a_mistake(tmp_path: Path) -> None:
    code, text = await practised(str(tmp_path))
    assert (code, text) == (2, "usage: practise.py [CA-DIRECTORY MESH.YAML]\n")
