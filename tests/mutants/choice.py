"""What CI runs: every named mutant, all recorded ones in functions that changed, and a sample of the rest by the commit's
hash. `make mutants` runs all."""

from __future__ import annotations

import ast
import random
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.mutants import modules
from tests.mutants.modules import ROOT
from tests.mutants.mutant import Mutant, awaited

SAMPLE = 0.02


def choose(mutants: Sequence[Mutant]) -> list[Mutant]:
    mutants = [one for one in mutants if one.id not in awaited()]
    changed = changed_functions({module for mutant in mutants for module in mutant.modules})
    sure = [one for one in mutants if one.name or changed & set(one.functions)]
    rest = [one for one in mutants if one not in set(sure)]
    return sure + sample(rest, _git("rev-parse", "HEAD").strip())


def sample(mutants: Sequence[Mutant], seed: str) -> list[Mutant]:
    """Some of them: for one seed always the same, whatever their order."""
    in_order = sorted(mutants, key=lambda mutant: mutant.id)
    return random.Random(seed).sample(in_order, round(SAMPLE * len(in_order)))  # noqa: S311  # no secret


def changed_functions(names: set[str]) -> set[str]:
    """``module:function`` of all that is not as it was before the last commit; of all modules nothing if there is no
    git."""
    before = base()
    return {f"{name}:{function}" for name in names for function in _changed_in(name, before)} if before else set()


def base() -> str:
    """The commit that is compared with: where this branch left the main one, or the first parent; "" without git."""
    head = _git("rev-parse", "HEAD").strip()
    for main in ("origin/main", "main"):
        common = _git("merge-base", "HEAD", main).strip()
        if common and common != head:
            return common
    return _git("rev-parse", "HEAD^1").strip()


def _changed_in(name: str, before: str) -> Iterator[str]:
    path = modules.find(name)
    former = former_text(path, before)
    old = functions(ast.parse(former)) if former else {}
    for function, text in functions(ast.parse(path.read_text())).items():
        if old.get(function) != text:
            yield function


def former_text(path: Path, before: str) -> str:
    """A file's text in another commit, also if it was in another directory there; "" if it was not."""
    here = path.relative_to(ROOT).as_posix()
    text = _git("show", f"{before}:{here}")
    if text:
        return text
    files = _git("ls-tree", "-r", "--name-only", before).splitlines()
    found = [file for file in files if file.startswith(here.split("/")[0] + "/") and Path(file).name == path.name]
    return _git("show", f"{before}:{found[0]}") if len(found) == 1 else ""


def functions(tree: ast.Module) -> dict[str, str]:
    """What is in each function, by qualified name, without what is in functions within it; "<module>" for the rest."""
    found: dict[str, str] = {}

    def visit(node: ast.AST, scope: str) -> str:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            scope = ".".join(filter(None, (scope, node.name)))
            inner = "".join(visit(child, scope) for child in ast.iter_child_nodes(node))
            found[scope] = inner
            return ""
        if not list(ast.iter_child_nodes(node)):
            return ast.dump(node)
        return (
            f"{type(node).__name__}({''.join(visit(child, scope) for child in ast.iter_child_nodes(node))})"
            + _plain(node)
        )

    found["<module>"] = visit(tree, "")
    return found


def _plain(node: ast.AST) -> str:
    """The fields of a node that are no nodes: names, operators' attributes."""
    return repr([value for _, value in ast.iter_fields(node) if isinstance(value, str | int)])


def _git(*words: str) -> str:
    """What git says; "" if it is not there or does not know."""
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""
