"""Roots of Debian suites that this machine does not run, for peers and Pythons of today: unpacked once, into ``.bench``.

``mmdebstrap`` unpacks the packages and configures nothing. A program is then started by its root's own dynamic loader, with
its root's libraries: no chroot, no mounts, no privileges, and a process as any other to :mod:`tests.bench.procfs`.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.contestants import Missing

PROJECT = Path(__file__).parents[2]
HOME = PROJECT / ".bench"
"""``make clean`` removes it."""

MAKE_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Root:
    """A suite with some packages of it, and all that they depend on."""

    suite: str
    packages: tuple[str, ...]
    home: Path = HOME

    @property
    def path(self) -> Path:
        return self.home / self.suite

    def missing(self) -> Missing | None:
        """Unpacks it if that was not done yet; says why if that cannot be done."""
        wanted, made = " ".join(self.packages), self.home / f"{self.suite}.made"
        if made.is_file() and made.read_text() == wanted:
            return None
        if shutil.which("mmdebstrap") is None:
            return Missing(f"mmdebstrap, which unpacks {wanted} of Debian {self.suite}", "mmdebstrap")
        print(f"unpacking {wanted} of Debian {self.suite} into {self.path}, once", file=sys.stderr, flush=True)
        shutil.rmtree(self.path, ignore_errors=True)
        self.home.mkdir(parents=True, exist_ok=True)
        # A snapshot's lists may be older than their own date allows.
        options = ("--quiet", "--variant=extract", '--aptopt=Acquire::Check-Valid-Until "false"')
        failure = _failure(
            ["mmdebstrap", *options, f"--include={','.join(self.packages)}", self.suite, str(self.path), *_mirror()]
        )
        if failure is not None:
            return Missing(f"{wanted} of Debian {self.suite}; mmdebstrap failed: {failure}")
        made.write_text(wanted)
        return None

    def command(self, program: str) -> tuple[str, ...]:
        """How a program of it is started, such as ``usr/sbin/nginx``."""
        libraries = next(self.path.glob("usr/lib/*-linux-gnu*/ld-linux*.so.*"), self.path / "ld.so")
        path = str(self.path / program)
        return (str(libraries), "--library-path", str(libraries.parent), "--argv0", path, path)


@dataclass(frozen=True, slots=True)
class Python:
    """An interpreter with the locked packages: the one that we run on if it has that version, else that of a suite."""

    version: str
    suite: str
    home: Path = HOME
    lock: Path = PROJECT / ".lock/runtime.txt"

    @property
    def path(self) -> Path:
        return Path(sys.executable) if self._is_ours else self._environment / "bin/python"

    def missing(self) -> Missing | None:
        """Makes it if that was not done yet; says why if that cannot be done."""
        if self._is_ours:
            return None
        missing = self._root.missing()
        made, wanted = self._environment / "made", hashlib.sha256(self.lock.read_bytes()).hexdigest()
        if missing is not None or (made.is_file() and made.read_text() == wanted):
            return missing
        print(f"installing the locked packages for Python {self.version}, once", file=sys.stderr, flush=True)
        shutil.rmtree(self._environment, ignore_errors=True)
        self._write_environment()
        pip = (sys.executable, "-m", "pip", "--python", str(self.path), "--quiet", "--disable-pip-version-check")
        failure = _failure([*pip, "install", "--require-hashes", "--requirement", str(self.lock)])
        if failure is not None:
            return Missing(f"Python {self.version} with the locked packages; pip failed: {failure}")
        made.write_text(wanted)
        return None

    def _write_environment(self) -> None:
        """A virtual environment whose ``python`` is a script, because the loader is what has to be started."""
        root = self._root
        (self._environment / "bin").mkdir(parents=True)
        (self._environment / f"lib/python{self.version}/site-packages").mkdir(parents=True)
        (self._environment / "pyvenv.cfg").write_text(f"home = {root.path / 'usr/bin'}\nversion = {self.version}\n")
        *loader, _, program = root.command(f"usr/bin/python{self.version}")
        self.path.write_text(f'#!/bin/sh\nexec {shlex.join(loader)} "$0" {shlex.quote(program)} "$@"\n')
        self.path.chmod(0o755)

    @property
    def _is_ours(self) -> bool:
        return self.version == f"{sys.version_info.major}.{sys.version_info.minor}"

    @property
    def _root(self) -> Root:
        return Root(self.suite, (f"python{self.version}",), self.home)

    @property
    def _environment(self) -> Path:
        return self.home / f"python{self.version}"


def _mirror() -> Sequence[str]:
    """From where this machine's own packages come, if it is a Debian; mmdebstrap knows one otherwise."""
    options = ("--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian", "Component: main")
    try:
        done = subprocess.run(["apt-get", "indextargets", *options], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return ()
    return done.stdout.split()[:1]


def _failure(command: Sequence[str]) -> str | None:
    """The last line that a command printed, if it failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MAKE_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    if done.returncode == 0:
        return None
    return (done.stderr + done.stdout).strip().rpartition("\n")[2] or f"it ended with {done.returncode}"
