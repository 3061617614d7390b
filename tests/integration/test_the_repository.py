"""What a stranger looks for is there, and true: the files of ``.github``, README's examples, the commands in both."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from sidecar.cli.schema import metrics
from sidecar.config.reference import file_schema, reference
from sidecar.config.wiring import parse_config
from sidecar.documents.yaml12 import parse_yaml
from sidecar.policy.mesh import parse_mesh
from tests.beds.processes import needs

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [
    "README.md",
    ".github/SECURITY.md",
    ".github/CONTRIBUTING.md",
    ".github/reference.md",
    ".github/metrics.md",
]
MESHES = [
    *re.findall(r"cat > mesh\.yaml <<'EOF'\n(.*?)^EOF", README, re.MULTILINE | re.DOTALL),
    *re.findall(r"```yaml\n(trust_domain:.*?)```", README, re.DOTALL),
]
SIDECARS = re.findall(r"```yaml\n(service:.*?)```", README, re.DOTALL)


def test_the_reference_is_of_this_version() -> None:
    committed = (ROOT / ".github/reference.md").read_text(encoding="utf-8")
    assert committed == reference(), "make it anew: sidecar schema --reference >.github/reference.md"


def test_the_table_of_metrics_is_of_this_version() -> None:
    committed = (ROOT / ".github/metrics.md").read_text(encoding="utf-8")
    assert committed == metrics(), "make it anew: sidecar schema --metrics >.github/metrics.md"


def test_readme_has_both_kinds_of_file() -> None:
    assert (len(MESHES), len(SIDECARS)) == (2, 2)


@pytest.mark.parametrize("text", MESHES)
def test_a_mesh_of_readme(text: str) -> None:
    assert parse_mesh(text, "mesh.yaml").rules
    assert Draft202012Validator(file_schema("mesh")).is_valid(parse_yaml(text, "mesh.yaml").data)


@pytest.mark.parametrize("text", SIDECARS)
def test_a_sidecar_of_readme(text: str) -> None:
    assert parse_config(text, "sidecar.yaml", {}, parse_mesh(MESHES[-1], "mesh.yaml")).service
    assert Draft202012Validator(file_schema("sidecar")).is_valid(parse_yaml(text, "sidecar.yaml").data)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_a_document_links_to_is_there(name: str) -> None:
    document = ROOT / name
    for link in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        assert (document.parent / link).exists(), link


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_commands_that_a_document_names(name: str) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|\$ )make ([a-z][a-z0-9-]*)", (ROOT / name).read_text(encoding="utf-8")))
    assert named - targets == set()


def test_the_workflow_runs_what_everybody_runs() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert workflow["permissions"] == {"contents": "read"}
    assert [step["run"] for step in job["steps"] if "run" in step][-1].endswith(" .ci/run")
    used = [step["uses"] for step in job["steps"] if "uses" in step]
    assert all(re.fullmatch(r"actions/[a-z-]+@v[0-9]+", action) for action in used), used
    versions = [step["with"]["python-version"] for step in job["steps"] if "python" in step.get("uses", "")]
    project = (ROOT / "pyproject.toml").read_text()
    assert [f'requires-python = ">={version}"' in project for version in versions] == [True]


@pytest.mark.parametrize("name", ["runtime", "dev", "bench", "browser"])
def test_a_lock_names_no_index(name: str) -> None:
    assert "://" not in (ROOT / f".lock/{name}.txt").read_text()


@needs("bash")
@pytest.mark.parametrize(
    ("program", "words", "expected"),
    [
        ("sidecar", ["sch"], ["schema"]),
        ("sidecar", ["schema", "m"], ["mesh"]),
        ("sidecar", ["schema", "--ref"], ["--reference"]),
        ("sidecar", ["nonsense"], []),
        ("certs", ["re"], ["renew-issuing", "reports", "revoke"]),
        ("certs", ["init", "--trust"], ["--trust-domain"]),
    ],
)
def test_bash_completes(program: str, words: list[str], expected: list[str], tmp_path: Path) -> None:
    """The line of README, in a real bash, whose completion function is then called as bash calls it."""
    line = f'eval "$(_{program.upper()}_COMPLETE=bash_source {program})"'
    assert f"$ {line}\n" in README
    script = (
        f"{line}\ncomplete -p {program}\nCOMP_WORDS=({program} {' '.join(words)}) COMP_CWORD={len(words)}\n"
        f"_{program}_completion {program}\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    registered, *replies = done.stdout.splitlines()
    assert registered.endswith(f"-F _{program}_completion {program}")
    assert [f"{reply}" for reply in replies if reply] == expected
