"""The mutants there are: those that the code itself yields, and the named ones of ``named.txt``, which combine
sites."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.mutants import modules
from tests.mutants.modules import MissingError
from tests.mutants.sites import Site, sites

HERE = Path(__file__).parent
AND = " + "
"""Between the ids of a combination."""


@dataclass(frozen=True)
class Mutant:
    """``id`` is one site's, or several joined by ``AND``. ``name`` is how it was known before there were ids."""

    id: str
    what: str
    is_automatic: bool
    name: str = ""

    @property
    def parts(self) -> list[str]:
        return self.id.split(AND)

    @property
    def kind(self) -> str:
        return self.parts[0].rsplit(":", 2)[1].partition("[")[0]

    @property
    def modules(self) -> list[str]:
        return list(dict.fromkeys(part.split(":", 1)[0] for part in self.parts))

    @property
    def paths(self) -> list[Path]:
        return [modules.find(module) for module in self.modules]

    @property
    def functions(self) -> list[str]:
        """Module and qualified name of every function that it changes."""
        return [part.rsplit(":", 2)[0] for part in self.parts]

    def mutate(self) -> dict[Path, ast.Module]:
        """The changed modules. The change is made in the trees that :func:`all_sites` keeps: to be called in a process
        of its own, and once. Raises :class:`MissingError` for an id that there is not."""
        for part in self.parts:
            site(part).apply()
        return {
            path: ast.fix_missing_locations(tree_of(name)) for path, name in zip(self.paths, self.modules, strict=True)
        }


def all_mutants() -> list[Mutant]:
    """Every automatic one, and every named one that is none of them."""
    names = named()
    found = {}
    for module, _ in modules.security():
        for place in all_sites(module).values():
            if place.is_automatic:
                found[place.id] = Mutant(place.id, place.what, True, names.get(place.id, ""))
    for id_, name in names.items():
        if id_ not in found:
            found[id_] = Mutant(id_, "; ".join(site(part).what for part in id_.split(AND)), False, name)
    return list(found.values())


def site(id_: str) -> Site:
    return _get(all_sites(id_.split(":", 1)[0]), id_)


@cache
def all_sites(module: str) -> dict[str, Site]:
    """Of one module, by id; they share one tree."""
    return {found.id: found for found in sites(module, tree_of(module))}


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(modules.find(module).read_text())


def _get(known: dict[str, Site], id_: str) -> Site:
    if id_ not in known:
        scope, kind = id_.rsplit(":", 2)[0], id_.rsplit(":", 2)[1]
        near = [other for other in known if other.startswith(f"{scope}:")]
        at_hand = ", ".join(other for other in near if kind.partition("[")[0] in other) or f"{len(near)} of other kinds"
        raise MissingError(f"no mutant {id_!r} in the code; in that function there are: {at_hand}")
    return known[id_]


def known_ids(ids: Iterable[str]) -> set[str]:
    """All ids of the modules that ``ids`` may be in."""
    found: set[str] = set()
    for module in {id_.split(":", 1)[0] for id_ in ids}:
        for name in modules.names(module):
            found |= all_sites(name).keys()
    return found


def read_rows(name: str) -> list[tuple[str, list[str]]]:
    """A table of this directory: lines of columns between tabs, of which the first is an id (or a combination), as it
    is today."""
    text = (HERE / name).read_text() if (HERE / name).exists() else ""
    rows = [line.split("\t") for line in text.splitlines() if line and not line.startswith("#")]
    known = known_ids(part for row in rows for part in row[0].split(AND))
    return [(AND.join(modules.today(part, known) for part in row[0].split(AND)), row[1:]) for row in rows]


def named() -> dict[str, str]:
    """``named.txt``: ids, and what they are called. One may have several names."""
    found: dict[str, list[str]] = {}
    for id_, row in read_rows("named.txt"):
        found.setdefault(id_, []).append(row[0])
    return {id_: " / ".join(names) for id_, names in found.items()}


def equivalent() -> dict[str, str]:
    """``equivalent.txt``: ids of mutants that no test can notice, each with the reason."""
    return {id_: row[0] for id_, row in read_rows("equivalent.txt")}


def awaited() -> set[str]:
    """``awaited.txt``: ids of mutants that nobody has seen killed since their code was written anew. They are run only by
    their ids: the list may become shorter, and not longer."""
    return {id_ for id_, _row in read_rows("awaited.txt")}


def kills() -> dict[str, str]:
    """``kills.txt``: ids of killed mutants, and the test that kills each."""
    return {id_: row[1] for id_, row in read_rows("kills.txt") if row[0] == "killed"}
