"""Where a module can be mutated, found in its syntax tree, and what a mutation does to the tree.

How it works. :func:`sites` walks one module and yields a :class:`Site` for every place that a *kind* of mutation fits.
A site has an id, ``module:function:kind:ordinal``: the module's basename (``certs/`` before it for the CA's package),
the qualified name of the function (``<module>`` outside any), the kind, and the position among the sites of that kind
in that function, from 1. A kind that aims at something with a name carries it, ``call[check_csr]``, so that other calls
in the same function do not shift it. There is no hash of the condition in the id: it would change with every renamed
variable, and what an insertion shifts stays within one function, where the next run finds the new killer by itself.
:meth:`Site.apply` changes the tree in place; the ids of several sites are taken from one walk and applied one after the
other (a combination).

The kinds of :data:`AUTOMATIC` make a mutant wherever they fit. The others have far too many places (every call, every
keyword), so that only the chosen ones run (``chosen.txt``).
"""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.mutants import kinds
from tests.mutants.slots import Slot, slots

AUTOMATIC = {
    "guard": "the condition of an `if` that refuses becomes False",
    "operand": "one operand of `and` or `or` is dropped, in a guard or in a verdict",
    "boundary": "`<` becomes `<=` and so on, in a guard or in a verdict; `!=` with a number becomes `<`",
    "negated": "`==`, `in`, `is` become their opposite, where neither `guard` nor `operand` removes them",
}
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
VERDICT_CALLS = {"isinstance", "any", "all", "startswith", "endswith", "fullmatch", "match", "compare_digest"}
REFUSING_CALLS = {"Decision", "Response", "error"}
COLLECTING_CALLS = {"append", "add"}


@dataclass(frozen=True)
class Site:
    """One place and one change. ``what`` says it for people."""

    id: str
    line: int
    what: str
    apply: Callable[[], None] = field(repr=False, compare=False)

    @property
    def kind(self) -> str:
        return kind_of(self.id)

    @property
    def is_automatic(self) -> bool:
        return self.kind in AUTOMATIC


def kind_of(id: str) -> str:  # noqa: A002  # it is the id
    return id.rsplit(":", 2)[1].partition("[")[0]


def sites(module: str, tree: ast.Module) -> list[Site]:
    """All sites of a module in the order of its text. ``module`` is the first part of their ids."""
    found: list[Site] = []
    ordinals: Counter[str] = Counter()

    def add(scope: str, kind: str, line: int, what: str, apply: Callable[[], None]) -> None:
        prefix = f"{module}:{scope or '<module>'}:{kind}"
        ordinals[prefix] += 1
        found.append(Site(f"{prefix}:{ordinals[prefix]}", line, what, apply))

    def visit(slot: Slot, scope: str, judged: bool, path: tuple[Slot, ...]) -> None:
        node = slot.node
        line = getattr(node.target if isinstance(node, ast.comprehension) else node, "lineno", 0)
        inner = ".".join(filter(None, (scope, node.name))) if isinstance(node, SCOPES) else scope
        for kind, what, apply in _of_a_condition(slot, path):
            if judged:
                add(scope, kind, line, what, apply)
            elif kind == "operand":
                add(scope, "part", line, what, apply)
        if isinstance(node, ast.If):
            text = ast.unparse(node.test)
            kind = "guard" if is_refusal(node.body) else "branch"
            add(scope, kind, line, f"if {text}: never", Slot(node, "test").setter(ast.Constant(False)))
            add(scope, "always", line, f"if {text}: always", Slot(node, "test").setter(ast.Constant(True)))
        for kind, what, apply in kinds.chosen(slot, path):
            add(scope, kind, line, what, apply)
        for child in slots(node):
            visit(child, inner, _is_judged(node, child, judged), (*path, slot))

    for child in slots(tree):
        visit(child, "", False, ())
    return found


def is_refusal(body: list[ast.stmt]) -> bool:
    """Whether the body of an ``if`` refuses something: raises, returns nothing or a fault, collects one, or passes over
    what it was about after doing something to it."""
    match body[-1]:
        case ast.Raise():
            return True
        case ast.Return(value=None):
            return True
        case ast.Return(value=ast.Constant(value=value)):
            return not value or isinstance(value, str)
        case ast.Return(value=ast.Tuple(elts=[ast.Constant(value=int(status)), *_])):
            return status >= 400  # of HTTP
        case ast.Return(value=ast.JoinedStr() | ast.Attribute(value=ast.Name(id="Reason" | "Denial"))):
            return True
        case ast.Continue():
            return len(body) > 1
        case ast.Return(value=ast.Call(func=called)):
            return kinds.name_of(called) in REFUSING_CALLS
        case ast.Expr(value=ast.Call(func=called)):
            return kinds.name_of(called) in COLLECTING_CALLS
        case ast.Expr(value=ast.Yield(value=ast.JoinedStr() | ast.Constant() | ast.Call())):
            return True
    return False


def _is_judged(node: ast.AST, child: Slot, judged: bool) -> bool:
    """Whether ``child`` is (part of) a condition that decides: the test of a guard, or a truth value returned or
    assigned."""
    if isinstance(child.node, (ast.stmt, ast.Lambda)):
        return False
    if isinstance(node, ast.If):
        return child.field == "test" and is_refusal(node.body)
    if isinstance(node, (ast.Return, ast.Assign)):
        return child.field == "value" and _is_verdict(child.node)
    if isinstance(node, ast.comprehension):
        return judged or child.field == "ifs"
    return judged


def _is_verdict(value: ast.AST) -> bool:
    match value:
        case ast.Compare() | ast.UnaryOp(op=ast.Not()):
            return True
        case ast.BoolOp(values=values):
            return any(map(_is_verdict, values))
        case ast.Call(func=called):
            return kinds.name_of(called) in VERDICT_CALLS
        case ast.IfExp(test=test):
            return _is_verdict(test)
        case ast.Await(value=inner):
            return _is_verdict(inner)
    return False


def _of_a_condition(slot: Slot, path: tuple[Slot, ...]) -> Iterator[tuple[str, str, Callable[[], None]]]:
    node = slot.node
    if isinstance(node, ast.BoolOp):
        for index, value in enumerate(node.values):
            rest = [copy.deepcopy(other) for at, other in enumerate(node.values) if at != index]
            weaker = rest[0] if len(rest) == 1 else ast.BoolOp(copy.deepcopy(node.op), rest)
            yield "operand", f"`{ast.unparse(value)}` is dropped from `{ast.unparse(node)}`", slot.setter(weaker)
    if isinstance(node, ast.Compare):
        for index, (kind, op) in enumerate(_other_comparison(node, path[-1].node)):
            if op is not None:
                changed = copy.deepcopy(node)
                changed.ops[index] = op
                yield kind, f"`{ast.unparse(node)}` becomes `{ast.unparse(changed)}`", slot.setter(changed)


_MOVED: dict[type[ast.cmpop], type[ast.cmpop]] = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
_OPPOSITE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}


def _other_comparison(node: ast.Compare, parent: ast.AST) -> Iterator[tuple[str, ast.cmpop | None]]:
    """For each operator of a comparison what it becomes. One that ``guard`` or ``operand`` removes whole is not negated
    too: that would refuse what is right, which any test of an acceptance notices."""
    is_removed = isinstance(parent, (ast.If, ast.BoolOp)) and len(node.ops) == 1
    for op, right in zip(node.ops, node.comparators, strict=True):
        if type(op) in _MOVED:
            yield "boundary", _MOVED[type(op)]()
        elif isinstance(op, ast.NotEq) and isinstance(right, ast.Constant) and type(right.value) is int:
            yield "boundary", ast.Lt()
        else:
            yield "negated", None if is_removed else _OPPOSITE[type(op)]()
