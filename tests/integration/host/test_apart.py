"""A large mesh.yaml is parsed by a child: the mesh and the mistakes are the same, and nothing depends on the child."""

from __future__ import annotations

import io
import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.host import apart
from sidecar.host.apart import NICE, PIECE, parse_apart
from sidecar.identity.reasons import UsageError
from sidecar.policy.mesh import parse_mesh

RULES = "".join(f"  - {{from: [web], to: ['api:http'], name: rule-{number}}}\n" for number in range(800))
LARGE = f"trust_domain: shop.internal\nservices:\n  web: {{}}\n  api: {{ports: {{http: 8080}}}}\npolicy:\n{RULES}"
SMALL = "trust_domain: shop.internal\nservices: {web: {}}\n"
WRONG = LARGE.replace("rule-7}", "rule-7, form: x}").replace("'api:http'], name: rule-9}", "'api:htp'], name: rule-9}")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that were parsed in this process."""
    parsed: list[str] = []

    def parse(text: str, filename: str) -> object:
        parsed.append(text)
        return parse_mesh(text, filename)

    monkeypatch.setattr(apart, "parse_mesh", parse)
    return parsed


def test_a_large_mesh_is_made_by_the_child(here: list[str]) -> None:
    mesh = parse_apart(LARGE, "mesh.yaml")
    assert here == []
    assert mesh == parse_mesh(LARGE, "mesh.yaml")
    assert len(mesh.rules) == 800
    with pytest.raises(TypeError):
        mesh.services["db"] = mesh.services["api"]  # type: ignore[index]  # read-only, as it was


def test_it_comes_in_pieces_that_hold_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call of ``load`` keeps every other thread waiting."""
    sizes: list[int] = []
    real = pickle.Unpickler

    class Unpickler:
        def __init__(self, file: io.BytesIO) -> None:
            self._file, self._real = file, real(file)

        def load(self) -> object:
            before = self._file.tell()
            found: object = self._real.load()
            sizes.append(self._file.tell() - before)
            return found

    monkeypatch.setattr(pickle, "Unpickler", Unpickler)
    assert parse_apart(LARGE, "mesh.yaml") == parse_mesh(LARGE, "mesh.yaml")
    assert len(sizes) > 800 // PIECE
    assert max(sizes) < sum(sizes) / 4


def test_a_small_one_is_made_here(here: list[str]) -> None:
    assert set(parse_apart(SMALL, "mesh.yaml").services) == {"web"}
    assert here == [SMALL]


def test_its_mistakes_are_told_by_the_child_as_they_are_told_here(here: list[str]) -> None:
    with pytest.raises(UsageError) as there:
        parse_apart(WRONG, "mesh.yaml")
    assert here == []
    with pytest.raises(UsageError) as expected:
        parse_mesh(WRONG, "mesh.yaml")
    assert str(there.value) == str(expected.value)
    assert "mesh.yaml:" in str(there.value)


def program(directory: Path, script: str) -> str:
    path = directory / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(
    "script", ["exit 1", "cat > /dev/null; echo garbage", "exec cat", "kill -9 $$", "exec sleep 60"]
)
def test_a_child_that_fails_changes_nothing(
    script: str, tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", program(tmp_path, script))
    monkeypatch.setattr(apart, "PATIENCE", 1.0)
    assert len(parse_apart(LARGE, "mesh.yaml").rules) == 800
    assert here == [LARGE]


def test_a_child_that_cannot_be_started_changes_nothing(
    tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    assert len(parse_apart(LARGE, "mesh.yaml").rules) == 800
    assert here == [LARGE]


def test_the_child_leaves_the_core_to_others() -> None:
    code = f"{apart._CHILD.format(path=sys.path, filename='mesh.yaml')}; import os; print(os.nice(0), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-I", "-c", code], input=b"{}", capture_output=True, check=True)
    assert int(done.stderr) == min(19, os.nice(0) + NICE)


def test_the_child_takes_no_module_from_where_it_is_started(
    tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "yaml.py").write_text("raise SystemExit(1)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    parse_apart(LARGE, "mesh.yaml")
    assert here == []
