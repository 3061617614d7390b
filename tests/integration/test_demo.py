"""``make demo`` succeeds, and only because the protection works: without a check, or a rule, it fails and says where."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def play(root: Path) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")}
    return subprocess.run(
        [sys.executable, "-m", "sidecar.demo"],
        cwd=root,
        env={**environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_demo_plays_to_its_end() -> None:
    played = play(ROOT)
    assert played.returncode == 0, played.stderr
    for reason in ("plaintext_refused", "unknown_ca", "policy_denied", "unexpected_peer", "truncated"):
        assert reason in played.stdout
    assert "checked against the sidecars' own logs" in played.stdout


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        pytest.param(
            "sidecar/identity/judge.py",
            "if params.expected is not None and svid.id != params.expected:",
            "if False:",
            "web's app got an answer",
            id="without the check of the expected peer",
        ),
        pytest.param(
            "sidecar/policy/decide.py",
            "    return _decision(mesh, source, target, Kind.NO_RULE, None, dry_run)",
            "    return _decision(mesh, source, target, Kind.ALLOWED, None, dry_run)",
            "reporting got an answer",
            id="with a policy that lets in whom no rule names",
        ),
        pytest.param(
            "sidecar/demo/story.py",
            '  - {from: web, to: "api:http"}\n',
            "",
            "the page says",
            id="without the rule that lets web call api",
        ),
    ],
)
def test_without_the_protection_it_fails_and_says_where(
    tmp_path: Path, file: str, old: str, new: str, said: str
) -> None:
    for package in ("sidecar", "certs"):
        shutil.copytree(ROOT / package, tmp_path / package)  # what is compiled too: it has dates, which are copied
    source = (tmp_path / file).read_text()
    assert source.count(old) == 1
    (tmp_path / file).write_text(source.replace(old, new))
    played = play(tmp_path)
    assert played.returncode == 1
    assert said in played.stderr
    assert "Traceback" not in played.stderr
