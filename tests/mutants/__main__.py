"""``make mutants``: removes each security check in turn and shows that tests turn red. See ``python -m tests.mutants
--help``."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from time import monotonic

import pytest

from tests.mutants import mutant as mutants
from tests.mutants import tables
from tests.mutants.modules import ROOT
from tests.mutants.mutant import Mutant
from tests.mutants.run import Outcome, Runner

MAX_EQUIVALENT = 0.05


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("words", nargs="*", help="only mutants whose id or name contains one of these")
    parser.add_argument(
        "--list", action="store_true", help="print the mutants and run none; with words: all places too"
    )
    parser.add_argument("--record", action="store_true", help="write what killed each into kills.txt")
    parser.add_argument(
        "--rekey", action="store_true", help="write the ids in the tables as RENAMED says, and run none"
    )
    parser.add_argument("--doubt", action="store_true", help="run those too that are said to be equivalent")
    options = parser.parse_args()
    if options.rekey:
        tables.rekey()
        return 0
    everything = mutants.all_mutants()
    wanted = [one for one in everything if not options.words or any(w in f"{one.id} {one.name}" for w in options.words)]
    unseen = mutants.awaited() - {*options.words}
    wanted = [one for one in wanted if one.id not in unseen]
    if options.list:
        tables.print_list(wanted, options.words)
        return 0
    known = {one.id for one in everything}
    keep = (lambda found: tables.record(found, known)) if options.record else lambda _: None
    outcomes = run(wanted, keep, doubting=options.doubt)
    return show(outcomes, len(everything))


def run(wanted: Sequence[Mutant], keep: Callable[[Sequence[Outcome]], None], *, doubting: bool) -> list[Outcome]:
    runner = Runner(wanted, mutants.kills(), mutants.equivalent(), keep, doubting=doubting)
    # Every child has its own; what hypothesis remembers of another mutant is nobody's.
    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = place
        os.environ["TEST_PATIENCE"] = "10"  # with a mutant a test waits in vain most of the time
        os.environ["PYTHONPATH"] = str(ROOT)
        os.chdir(ROOT)
        # Nobody reads tracebacks, and to write one costs more than twice the test.
        options = ["-q", "-s", "--no-header", "--tb=no"]
        code = pytest.main([*options, *(f"tests/{file}" for file in runner.files())], [runner])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise SystemExit(f"the tests could not be collected: {code!r}")
    return runner.outcomes


def show(outcomes: Sequence[Outcome], total: int) -> int:
    """Prints the table. Returns the exit code: 1 if one survived, or too many are called equivalent."""
    width = max((len(outcome.mutant.id) for outcome in outcomes), default=0)
    for outcome in sorted(outcomes, key=lambda one: (one.word != "killed", one.mutant.id)):
        mutant = outcome.mutant
        how = f"by {outcome.why}" + (" (hangs)" if outcome.hangs else "") if outcome.word == "killed" else outcome.why
        print(f"{outcome.word:<10}  {mutant.id:<{width}}  {mutant.what}  {how}")
    counts = {
        word: sum(outcome.word == word for outcome in outcomes)
        for word in ("killed", "survived", "equivalent", "broken")
    }
    print(f"{len(outcomes)} of {total} mutants: " + ", ".join(f"{count} {word}" for word, count in counts.items()))
    too_many = counts["equivalent"] > MAX_EQUIVALENT * total
    if too_many:
        print(f"more than {MAX_EQUIVALENT:.0%} are said to be equivalent")
    return 1 if counts["survived"] or counts["broken"] or too_many else 0


if __name__ == "__main__":
    began = monotonic()
    code = main()
    print(f"{monotonic() - began:.0f} s", file=sys.stderr)
    sys.exit(code)
