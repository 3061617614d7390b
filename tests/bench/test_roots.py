"""Roots of Debian: unpacked once, started by their own loader, and a clear word where they cannot be made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench.roots import Python, Root

Called = list[list[str]]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Called:
    """What would have been run; all of it succeeds."""
    commands: Called = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append([*map(str, command)])
        return subprocess.CompletedProcess(command, 0, "mirror\nanother\n", "")

    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("subprocess.run", run)
    return commands


def unpacked(home: Path) -> Root:
    root = Root("trixie", ("nginx", "haproxy"), home)
    libraries = root.path / "usr/lib/x86_64-linux-gnu"
    libraries.mkdir(parents=True)
    (libraries / "ld-linux-x86-64.so.2").touch()
    return root


def test_a_root_is_unpacked_once(tmp_path: Path, called: Called) -> None:
    root = Root("trixie", ("nginx", "haproxy"), tmp_path)
    assert root.missing() is None
    assert called[-1][-3:] == ["trixie", str(tmp_path / "trixie"), "mirror"]
    assert "--include=nginx,haproxy" in called[-1]
    called.clear()
    assert root.missing() is None
    assert called == []


def test_with_other_packages_it_is_unpacked_again(tmp_path: Path, called: Called) -> None:
    assert Root("trixie", ("nginx",), tmp_path).missing() is None
    called.clear()
    assert Root("trixie", ("nginx", "haproxy"), tmp_path).missing() is None
    assert called[-1][0] == "mmdebstrap"


def test_without_mmdebstrap_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    missing = Root("trixie", ("nginx",), tmp_path).missing()
    assert missing is not None
    assert (missing.what, missing.package) == ("mmdebstrap, which unpacks nginx of Debian trixie", "mmdebstrap")


def test_what_failed_is_said_and_tried_again_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 25, "", "I: extracting\nE: no such suite\n")

    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("subprocess.run", fail)
    root = Root("trixie", ("nginx",), tmp_path)
    for _ in range(2):
        missing = root.missing()
        assert missing is not None
        assert missing.what == "nginx of Debian trixie; mmdebstrap failed: E: no such suite"


def test_a_program_is_started_by_its_own_loader(tmp_path: Path) -> None:
    root = unpacked(tmp_path)
    program, libraries = f"{root.path}/usr/sbin/nginx", f"{root.path}/usr/lib/x86_64-linux-gnu"
    assert root.command("usr/sbin/nginx") == (
        f"{libraries}/ld-linux-x86-64.so.2", "--library-path", libraries, "--argv0", program, program,
    )  # fmt: skip


def test_our_own_interpreter_is_taken_if_it_has_the_version(tmp_path: Path) -> None:
    python = Python(f"{sys.version_info.major}.{sys.version_info.minor}", "sid", tmp_path)
    assert python.missing() is None
    assert python.path == Path(sys.executable)
    assert list(tmp_path.iterdir()) == []


def test_another_is_an_environment_with_the_locked_packages(tmp_path: Path, called: Called) -> None:
    lock = tmp_path / "runtime.txt"
    lock.write_text("trio==1\n")
    python = Python("3.99", "sid", tmp_path, lock)
    assert python.missing() is None
    assert called[-1][-4:] == ["install", "--require-hashes", "--requirement", str(lock)]
    assert f"home = {tmp_path}/sid/usr/bin" in (tmp_path / "python3.99/pyvenv.cfg").read_text()
    assert '--argv0 "$0"' in python.path.read_text()
    assert python.path.stat().st_mode & 0o111
    called.clear()
    assert python.missing() is None
    assert called == []
    lock.write_text("trio==2\n")
    assert python.missing() is None
    assert called[-1][-1] == str(lock)


def test_without_its_root_there_is_no_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    missing = Python("3.99", "sid", tmp_path).missing()
    assert missing is not None
    assert missing.package == "mmdebstrap"
