"""Runs mutants: the recorded killer first, then everything that ought to notice. A pytest plugin, since it needs
collected tests.

How it works. First the tests run with nothing changed: one that is red is used by nobody, and how long each takes gives
the limits of time, and which functions it enters. Then each mutant meets the one test that killed it last time. What is
left meets all tests of its modules (``modules.py``) that enter its function, those first that kill others there, and at
last, in a copy of the project, those files that start processes. Those that are said to be equivalent
are run only if that is asked for: half of the time would be theirs, and a test that kills one would be no loss.
A mutant whose test does not end in time is killed, by the test that hung.
"""

from __future__ import annotations

import math
import os
import re
import selectors
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from time import monotonic

import pytest

from tests.mutants import modules
from tests.mutants.bed import Bed, Child
from tests.mutants.mutant import Mutant

WIDTH = 2 * (os.cpu_count() or 2)
"""So many at once that go on from test to test."""
MOST = 4 * WIDTH
"""So many at once with those that wait, for what does not come any more: they need no processor."""
WAITS_AFTER_SECONDS = 5.0
"""In one test."""
PATIENCE_SECONDS = 20.0
PATIENCE_IN_A_TREE_SECONDS = 90.0
SLOWER = 8.0
"""A test with a mutant may take so many times as long as without, before it counts as hanging."""
KEEP_EVERY = 50
STARTS_PROCESSES = re.compile(r"\b(subprocess|run_process|open_process|sys\.executable)\b")


@dataclass(frozen=True)
class Outcome:
    """``word`` is killed, survived, equivalent or broken. ``why``: the test that killed it, or what is to be said."""

    mutant: Mutant
    word: str
    why: str
    hangs: bool = False


@dataclass(frozen=True)
class Job:
    mutant: Mutant | None
    tests: Sequence[str]
    in_tree: bool = False


class Runner:
    """``killers``: the test that killed a mutant before, by its id; ``reasons``: why some are equivalent.
    ``keep`` gets what is known so far, now and then: a run takes minutes. ``doubting``: these are run, too."""

    def __init__(
        self,
        mutants: Sequence[Mutant],
        killers: Mapping[str, str],
        reasons: Mapping[str, str],
        keep: Callable[[Sequence[Outcome]], None],
        *,
        doubting: bool = False,
    ) -> None:
        self.mutants = mutants
        self.outcomes: list[Outcome] = []
        self._killers, self._reasons, self._keep, self._doubting = killers, reasons, keep, doubting
        self._seconds: dict[str, float] = {}
        self._entered: dict[str, set[str]] = {}
        self._red: set[str] = set()
        self._at_import: set[Mutant] = set()
        self._kills: Counter[tuple[str, str]] = Counter()

    def files(self) -> list[str]:
        """The test files that are collected."""
        found = {file for mutant in self.mutants for file in tests_of(mutant)}
        found |= {file for mutant in self.mutants if (file := _file_of(self._killers.get(mutant.id, "")))}
        return sorted(found)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as place:
            self._bed = Bed(session, Path(place))
            self._run()
        return True

    def _run(self) -> None:
        if not self._doubting:
            self._call_equivalent()
        recorded: dict[Mutant, str] = {}
        for mutant in self._left():
            test = self._killers.get(mutant.id, "")
            where = (_file_of(test) or "") + test[test.find("::") :] if test else ""
            if where in self._bed.items:
                recorded[mutant] = where
        self._run_unchanged(set(recorded.values()))
        known = [Job(mutant, [test]) for mutant, test in recorded.items() if test not in self._red]
        self._batch("the tests that killed them before", known)
        left = set(self._left())
        cold = [replace(job, in_tree=True) for job in known if job.mutant in left and self._needs_a_tree(job)]
        self._batch("… in a copy", cold)
        self._meet("all their unit tests", _own_tests, self._left())
        without_reason = [one for one in self._left() if one.id not in self._reasons]
        self._meet("all other tests that ought to notice", _other_tests, without_reason)
        cold = [Job(one, self._cold_files(one), True) for one in self._left() if one.id not in self._reasons]
        self._batch("… in a copy", cold)
        self._call_equivalent()
        for mutant in self._left():
            self._settle(Outcome(mutant, "survived", f"{', '.join(tests_of(mutant))} are green"))
        self._keep(self.outcomes)

    def _call_equivalent(self) -> None:
        for mutant in self._left():
            if mutant.id in self._reasons:
                self._settle(Outcome(mutant, "equivalent", self._reasons[mutant.id]))

    def _left(self) -> list[Mutant]:
        done = {outcome.mutant for outcome in self.outcomes}
        return [mutant for mutant in self.mutants if mutant not in done]

    def _meet(self, what: str, files: Callable[[Mutant], Sequence[str]], left: Sequence[Mutant]) -> None:
        """Each mutant that is left, and the tests of these files that enter the functions that it changes."""
        self._run_unchanged({test for one in left for file in files(one) for test in self._bed.files.get(file, [])})
        jobs = []
        for one in left:
            changed = set(one.functions)
            tests = [test for file in files(one) for test in self._bed.files.get(file, []) if test not in self._red]
            jobs.append(Job(one, [test for test in tests if changed & self._entered.get(test, set())]))
        self._batch(what, jobs)

    def _in_order(self, job: Job) -> Sequence[str]:
        """A job's tests, those first that killed other mutants of the same function, or module."""
        if job.mutant is None or job.in_tree:
            return job.tests
        function, module = job.mutant.functions[0], job.mutant.modules[0]
        return sorted(job.tests, key=lambda test: (-self._kills[function, test], -self._kills[module, test]))

    def _needs_a_tree(self, job: Job) -> bool:
        return job.mutant in self._at_import or any(starts_processes(_file(test)) for test in job.tests)

    def _cold_files(self, mutant: Mutant) -> list[str]:
        files, changed = tests_of(mutant), set(mutant.functions)
        runs_at_import = not any(changed & functions for functions in self._entered.values())
        return (
            files if mutant in self._at_import or runs_at_import else [*files[:1], *filter(starts_processes, files[1:])]
        )

    def _run_unchanged(self, tests: Iterable[str]) -> None:
        by_file: dict[str, list[str]] = {}
        for test in sorted(set(tests) - self._seconds.keys() - self._red):
            by_file.setdefault(test.partition("::")[0], []).append(test)
        self._batch("nothing changed", [Job(None, tests) for tests in by_file.values()])

    def _batch(self, what: str, jobs: Sequence[Job]) -> None:
        jobs = [job for job in jobs if job.tests]
        if not jobs:
            return
        began = monotonic()
        if any(job.in_tree for job in jobs):
            self._bed.make_base()
        waiting = list(reversed(jobs))
        running: dict[int, tuple[Child, Job]] = {}
        with selectors.DefaultSelector() as selector:
            while waiting or running:
                while waiting and len(running) < MOST and _busy(running.values()) < WIDTH:
                    job = waiting.pop()
                    tests = self._in_order(job)
                    child = self._bed.start(self._patience(job, tests), job.mutant, tests, in_tree=job.in_tree)
                    running[child.pipe] = child, job
                    selector.register(child.pipe, selectors.EVENT_READ)
                soonest = min(min(child.deadline, _waits_from(child)) for child, _ in running.values())
                ready = {key.fd for key, _ in selector.select(max(0.0, soonest - monotonic()))}
                for pipe, (child, job) in list(running.items()):
                    has_ended = pipe in ready and (
                        not child.read() or bool(child.failed and job.mutant) or child.is_done
                    )
                    if has_ended or monotonic() > child.deadline:
                        selector.unregister(pipe)
                        del running[pipe]
                        child.end()
                        self._take(child, job, hangs=not has_ended)
        self._keep(self.outcomes)
        say(f"{what}: {len(jobs)} in {monotonic() - began:.0f} s, {len(self._left())} mutants left")

    def _patience(self, job: Job, tests: Sequence[str]) -> float:
        if job.in_tree:
            return PATIENCE_IN_A_TREE_SECONDS * len({test.partition("::")[0] for test in tests})
        if job.mutant is None:
            return 600.0
        return PATIENCE_SECONDS + SLOWER * sum(self._seconds[test] for test in tests)

    def _take(self, child: Child, job: Job, *, hangs: bool) -> None:
        if job.mutant is None:
            self._seconds |= child.passed
            self._entered |= child.entered
            self._red |= {test for test in child.all_failed if test not in child.passed}
            if not child.is_done:
                self._red.add(child.began)
            for test in child.all_failed or ([] if child.is_done else [child.began]):
                say(f"red with nothing changed: {test}")
            return
        if child.note == "at import":
            self._at_import.add(job.mutant)
        elif killer := child.failed or (child.began if not child.is_done else ""):
            # Neither failed nor done: it took too long, or the whole process died.
            self._kills[job.mutant.functions[0], killer] += 1
            self._kills[job.mutant.modules[0], killer] += 1
            self._settle(Outcome(job.mutant, "killed", killer, hangs or not child.failed))
        elif child.note:
            self._settle(Outcome(job.mutant, "broken", child.note))

    def _settle(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        if len(self.outcomes) % KEEP_EVERY == 0:
            self._keep(self.outcomes)


def _waits_from(child: Child) -> float:
    """When it is to be taken for one that waits; never, if it is already."""
    then = child.heard + WAITS_AFTER_SECONDS
    return then if then > monotonic() else math.inf


def _busy(running: Iterable[tuple[Child, Job]]) -> int:
    return sum(job.mutant is None or job.in_tree or _waits_from(child) < math.inf for child, job in running)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def tests_of(mutant: Mutant) -> list[str]:
    extra = dict(modules.security())
    return list(dict.fromkeys(t for name in mutant.modules for t in modules.tests_of(name, extra.get(name, ()))))


def _own_tests(mutant: Mutant) -> list[str]:
    return tests_of(mutant)[:1]


def _other_tests(mutant: Mutant) -> list[str]:
    return tests_of(mutant)[1:]


def _file(test: str) -> str:
    return test.partition("::")[0]


def _file_of(test: str) -> str | None:
    return modules.test_file(_file(test)) if test else None


@cache
def starts_processes(file: str) -> bool:
    """Whether a test file starts programs, itself or by a module of ``tests`` that it imports."""
    text = (modules.TESTS / file).read_text()
    if STARTS_PROCESSES.search(text):
        return True
    imported = re.findall(r"^from (tests[\w.]*) import ([\w, ]+)", text, re.MULTILINE)
    names = [
        name
        for module, what in imported
        for name in (module, *(f"{module}.{part.strip()}" for part in what.split(",")))
    ]
    paths = [Path(*name.split(".")[1:]).with_suffix(".py") for name in names if "." in name]
    return any(starts_processes(path.as_posix()) for path in paths if (modules.TESTS / path).is_file())
