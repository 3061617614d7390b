"""The practice of a stolen issuing key, as an operator runs it: on a copy of a CA that is in use, which stays as it is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio

from tests.beds.ca_processes import CALLS_API, CaSite
from tests.beds.processes import clean_environment

MESH = CALLS_API.replace("  job: {}\n", "").replace("[web, job]", "web")
PRACTISE = Path(__file__).parents[2] / "compose" / "key-drill" / "practise.py"


async def practised(*words: str, **variables: str) -> tuple[int, str]:
    with trio.fail_after(120):
        done = await trio.run_process(
            [sys.executable, str(PRACTISE), *words],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env={**clean_environment(), **variables},
        )
    return done.returncode, (done.stdout + done.stderr).decode()


def held(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_from_the_discovery_to_the_last_sidecar_on_the_new_key(tmp_path: Path, elsewhere: bool) -> None:
    """``elsewhere``: the root's key is not in the CA's directory, and encrypted."""
    vault = tmp_path / "vault"
    init = ("--root-key-out", str(vault), "--encrypt") if elsewhere else ()
    site = CaSite.make(tmp_path, MESH, init=init, variables={"CERTS_NEW_PASSPHRASE": "correct horse"})
    before = held(tmp_path)
    words, variables = [str(site.directory), str(site.path / "mesh.yaml")], {}
    if elsewhere:
        words += ["--root-key", str(vault / "root.key")]
        variables = {"CERTS_ROOT_PASSPHRASE": "correct horse"}
    code, text = await practised(*words, **variables)
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
    assert held(tmp_path) == before


async def test_the_root_s_key_must_be_there_and_its_passphrase_right(tmp_path: Path) -> None:
    vault = tmp_path / "vault"
    init = ("--root-key-out", str(vault), "--encrypt")
    site = CaSite.make(tmp_path, MESH, init=init, variables={"CERTS_NEW_PASSPHRASE": "correct horse"})
    words = str(site.directory), str(site.path / "mesh.yaml")
    code, text = await practised(*words)
    assert (code, text.splitlines()) == (
        1,
        [
            f"FAILED: {site.directory}/root.key does not exist: the root's key is needed; give its place: --root-key FILE"
        ],
    )
    key = str(vault / "root.key")
    code, text = await practised(*words, "--root-key", key, CERTS_ROOT_PASSPHRASE="wrong")
    assert code == 1
    assert f"FAILED: certs renew-issuing ca --distrust --root-key {key} ended with exit code 2; see above" in text
    assert key in text.partition("FAILED")[0], "certs says why"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["ca"], "both the CA's directory and its mesh.yaml are needed, or neither"),
        (["--root-key", "root.key"], "--root-key goes with a CA's directory and its mesh.yaml"),
    ],
)
async def test_a_ca_without_its_mesh_is_a_mistake(words: list[str], why: str) -> None:
    code, text = await practised(*words)
    assert code == 2
    assert text.endswith(f"practise.py: error: {why}\n")
