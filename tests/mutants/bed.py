"""Where a mutant meets its tests: a process of its own, forked from one that has imported everything and collected all
tests.

How it works. Starting pytest costs seconds, a test of this project mostly milliseconds. So pytest collects once, and
for each mutant this process forks; the child exchanges the code of the changed functions (``patch.py``) and runs the
tests that it was given until one fails. What it does, it writes to a pipe, a line each: ``began``, ``passed``,
``failed`` with the test, at the end ``done``. For what cannot be exchanged so, and for tests that start processes of
the project, :func:`in_a_tree` starts a new pytest in a copy of the project (hard links, so a copy costs milliseconds)
in which one file is the mutant's.

Each child leads its own process group, so that it is ended with all that it started, has a directory of its own for
temporary files, and may take MAX_DATA_BYTES of memory.
"""

from __future__ import annotations

import ast
import gc
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from types import CodeType, FrameType

import pytest

from tests.mutants import modules
from tests.mutants.modules import ROOT
from tests.mutants.mutant import Mutant
from tests.mutants.patch import Functions, exchange, living_functions

MAX_DATA_BYTES = 2 << 30
COPIED = ("sidecar", "certs", "tests", "pyproject.toml", "README.md")


@dataclass
class Child:
    """One forked process, as seen by the one that forked it."""

    pid: int
    pipe: int
    deadline: float
    place: Path
    heard: float = field(default_factory=monotonic)
    began: str = ""
    failed: str = ""
    all_failed: list[str] = field(default_factory=list)
    note: str = ""
    passed: dict[str, float] = field(default_factory=dict)
    entered: dict[str, set[str]] = field(default_factory=dict)
    is_done: bool = False
    _rest: bytes = b""

    def read(self) -> bool:
        """Takes in what it wrote. False: it ended."""
        got, self.heard = os.read(self.pipe, 1 << 16), monotonic()
        *lines, self._rest = (self._rest + got).split(b"\n")
        for line in lines:
            word, _, rest = line.decode().partition("\t")
            if word == "began":
                self.began = rest
            elif word == "passed":
                seconds, _, test = rest.partition("\t")
                self.passed[test] = float(seconds)
            elif word == "entered":
                test, *functions = rest.split("\t")
                self.entered[test] = set(functions)
            elif word == "failed":
                self.failed = rest
                self.all_failed.append(rest)
            elif word == "note":
                self.note = rest
            self.is_done |= word == "done"
        return bool(got)

    def end(self) -> None:
        """Ends it and all that it started, if they have not ended, and removes its files."""
        for kill in (os.kill, os.killpg):  # the group is there as soon as the child has made it
            with suppress(ProcessLookupError):
                kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.pipe)
        shutil.rmtree(self.place, ignore_errors=True)


class Bed:
    """``items``: every collected test by its id, relative to ``tests/``."""

    def __init__(self, session: pytest.Session, place: Path) -> None:
        self.items = {item.nodeid.removeprefix("tests/"): item for item in session.items}
        self.files: dict[str, list[str]] = {}
        for test in self.items:
            self.files.setdefault(test.partition("::")[0], []).append(test)
        self._config = session.config
        self._place = place
        self._functions: Functions = living_functions(ROOT)
        self._base = place / "base"
        gc.collect()
        gc.freeze()

    def start(self, seconds: float, mutant: Mutant | None, tests: Sequence[str], *, in_tree: bool = False) -> Child:
        """Forks a child that runs ``tests``: ids as in ``items``, or names of files if ``in_tree``."""
        reading, writing = os.pipe()
        place = Path(tempfile.mkdtemp(dir=self._place))
        pid = os.fork()
        if pid:
            os.close(writing)
            return Child(pid, reading, monotonic() + seconds, place)
        status = 70
        try:
            os.close(reading)
            os.setpgrp()  # no session of its own: Linux gives each session its share, whatever its processes' niceness
            resource.setrlimit(resource.RLIMIT_DATA, (MAX_DATA_BYTES, MAX_DATA_BYTES))
            quiet = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(quiet, number)

            def tell(*words: object) -> None:
                os.write(writing, ("\t".join(map(str, words)) + "\n").encode())

            if in_tree:
                in_a_tree(self._base, place, mutant.mutate() if mutant else {}, tests, tell)
            else:
                self._in_here(mutant, [self.items[test] for test in tests], place, tell)
            status = 0
        finally:
            os._exit(status)

    def make_base(self) -> None:
        """The copy of the project that the trees link to."""
        if not self._base.exists():
            for name in COPIED:
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, self._base / name, ignore=shutil.ignore_patterns(".*", "*.pyc.*"))
                else:
                    shutil.copy2(ROOT / name, self._base / name)

    def _in_here(
        self, mutant: Mutant | None, items: Sequence[pytest.Item], place: Path, tell: Callable[..., None]
    ) -> None:
        if mutant is not None:
            changes = []
            originals = {path: compiled(ast.parse(path.read_text()), path) for path in mutant.paths}
            for path, tree in mutant.mutate().items():
                found = exchange(self._functions, originals[path], compiled(tree, path))
                if found is None:
                    tell("note", "at import")
                    return
                changes += found
            for function, code in changes:
                function.__code__ = code
        self._config._tmp_path_factory._basetemp = place / "basetemp"  # type: ignore[attr-defined]
        (place / "basetemp").mkdir()
        reports = Reports()
        self._config.pluginmanager.register(reports)
        watch = Watch() if mutant is None else None
        for item, following in zip(items, (*items[1:], None), strict=True):
            test = item.nodeid.removeprefix("tests/")
            tell("began", test)
            began = monotonic()
            with watch or nullcontext():
                self._config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if watch:
                tell("entered", test, *watch.functions())
            if reports.failed:
                tell("failed", test)
                if mutant is not None:
                    return
                reports.failed = False
            else:
                tell("passed", monotonic() - began, test)
        tell("done")


class Watch:
    """Notes which functions of the security modules run: only tests that enter a function can notice its mutants."""

    def __init__(self) -> None:
        self._names = {str(modules.find(name)): name for name, _ in modules.security()}
        self._seen: dict[int, CodeType] = {}

    def __enter__(self) -> None:
        self._seen.clear()
        threading.setprofile(self._note)
        sys.setprofile(self._note)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _note(self, frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code.co_filename in self._names:
            self._seen[id(frame.f_code)] = frame.f_code

    def functions(self) -> set[str]:
        """As ids have them: without comprehensions and lambdas, which are part of their function."""
        return {f"{self._names[code.co_filename]}:{plain_name(code.co_qualname)}" for code in self._seen.values()}


def plain_name(qualified: str) -> str:
    return ".".join(part for part in qualified.replace(".<locals>", "").split(".") if not part.startswith("<"))


class Reports:
    def __init__(self) -> None:
        self.failed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed |= report.failed


def in_a_tree(
    base: Path, place: Path, changed: Mapping[Path, ast.Module], tests: Sequence[str], tell: Callable[..., None]
) -> None:
    """Runs test files in a copy of the project in which some modules are others."""
    copied = place / "tree"
    shutil.copytree(base, copied, copy_function=os.link)
    for path, tree in changed.items():
        file = copied / path.relative_to(ROOT)
        file.unlink()
        file.write_text(ast.unparse(tree))
        for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
            compiled.unlink()
    tell("began", tests[0])
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--tb=no", f"--basetemp={place / 'basetemp'}"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "300", "PYTHONPATH": str(copied)}
    done = subprocess.run(
        [*command, *(f"tests/{test}" for test in tests)],
        cwd=copied,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)( - |$)", done.stdout, re.MULTILINE)
    if failed:
        tell("failed", failed[1].removeprefix("tests/"))
    elif done.returncode == 0:
        tell("done")
    else:
        tell("note", (done.stdout + done.stderr).strip().splitlines()[-1])


def compiled(tree: ast.Module, path: Path) -> CodeType:
    return compile(tree, str(path), "exec", dont_inherit=True)
