"""The tables of this directory, written: kills, names and reasons, and their ids after something was renamed."""

from __future__ import annotations

from collections.abc import Sequence, Set

from tests.mutants import mutant as mutants
from tests.mutants.mutant import HERE, Mutant, read_rows
from tests.mutants.run import Outcome

TABLES = ("kills.txt", "named.txt", "equivalent.txt")
HEADINGS = {
    "kills.txt": "# What became of each mutant, and what kills it. Written by `python -m tests.mutants --record`.\n",
}


def record(outcomes: Sequence[Outcome], known: Set[str]) -> None:
    """Puts what was found into ``kills.txt``; what there is no more leaves it."""
    rows = {id_: row for id_, row in read_rows("kills.txt") if id_ in known}
    for outcome in outcomes:
        if outcome.word == "killed":
            rows[outcome.mutant.id] = ["killed", outcome.why]
        elif outcome.word == "equivalent":
            rows[outcome.mutant.id] = ["equivalent"]
        else:
            rows.pop(outcome.mutant.id, None)
    _write("kills.txt", sorted(rows.items()))


def rekey() -> None:
    """Writes every table with the ids of today, as RENAMED and RENAMED_NAMES have them."""
    for name in TABLES:
        _write(name, read_rows(name))


def _write(name: str, rows: Sequence[tuple[str, list[str]]]) -> None:
    path = HERE / name
    before = path.read_text() if path.exists() else ""
    heading = "".join(line + "\n" for line in before.splitlines() if line.startswith("#")) or HEADINGS.get(name, "")
    path.write_text(heading + "".join("\t".join((id_, *row)) + "\n" for id_, row in rows))


def print_list(wanted: Sequence[Mutant], words: Sequence[str]) -> None:
    for one in wanted:
        print(f"{one.id}\t{one.name}\t{one.what}")
    if words:
        for module in sorted({word for word in words if ":" not in word}):
            for place in mutants.all_sites(module).values():
                if not place.is_automatic:
                    print(f"{place.id}\t(not chosen)\t{place.what}")
