"""The kinds of mutation of which only chosen places run: each has far more places than checks.

A kind that aims at something with a name has it in brackets: ``call[check_csr]``, ``drop[values.used_by]``.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator

from tests.mutants import modules
from tests.mutants.slots import Slot

Mutation = tuple[str, str, Callable[[], None]]
"""Kind, words for people, and what does it."""

WEAKER = {
    "TLS1_3_VERSION": "TLS1_2_VERSION",
    "SSL_TLSEXT_ERR_ALERT_FATAL": "SSL_TLSEXT_ERR_NOACK",
}
"""Constants of a library, each with one that allows more."""

LIMITS = {"Deadline", "Deadline.after"}
"""Ours, beside those of trio."""
ADDED = {"Context": ("unverified", True)}
"""Arguments that a call does not have and must not get."""

UNJUDGED = {
    "judge": "{0}.sent[0]",
    "judge_own": "{0}.chain[0].public_bytes(__import__('cryptography').hazmat.primitives.serialization.Encoding.DER)",
}
"""Functions that judge a certificate, and where in their first argument its DER is: the mutant only reads it."""
READER = ("spiffe", "parse_svid")
"""The module and the function that read a certificate and judge nothing."""

EMPTY: dict[str, bytes | str | int] = {"bytes": b"", "str": "", "bool": False, "int": 0}
FACTOR = 1000


def name_of(node: ast.AST) -> str:
    """The last part of a dotted name; "" for what has none."""
    if isinstance(node, ast.Await):
        return name_of(node.value)
    if isinstance(node, ast.Call):
        return name_of(node.func)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def chosen(slot: Slot, path: tuple[Slot, ...]) -> Iterator[Mutation]:
    """All that fits at this place."""
    node = slot.node
    if isinstance(node, ast.stmt):
        yield from _statements(slot, path)
    elif isinstance(node, ast.Call):
        yield from _calls(slot)
    elif isinstance(node, ast.BinOp):
        yield from _operators(slot)
    elif isinstance(node, ast.IfExp):
        yield "then", f"always `{ast.unparse(node.body)}`", slot.setter(copy.deepcopy(node.body))
        yield "else", f"always `{ast.unparse(node.orelse)}`", slot.setter(copy.deepcopy(node.orelse))
    elif isinstance(node, ast.comprehension) and node.ifs:
        yield "filter", f"`if {ast.unparse(node.ifs[0])}` is dropped", Slot(node, "ifs", 0).remover()
    elif isinstance(node, ast.Tuple | ast.List | ast.Set) and isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
        for index, element in enumerate(node.elts):
            yield "element", f"`{ast.unparse(element)}` is dropped", Slot(node, "elts", index).remover()
    elif isinstance(node, ast.Attribute) and node.attr in WEAKER:
        weaker = ast.Attribute(copy.deepcopy(node.value), WEAKER[node.attr], node.ctx)
        yield f"weaker[{node.attr}]", f"{node.attr} becomes {WEAKER[node.attr]}", slot.setter(weaker)
    elif isinstance(node, ast.Compare) and isinstance(getattr(node.comparators[0], "value", None), bytes):
        lenient = copy.deepcopy(node)
        lenient.left = ast.parse(f"({ast.unparse(node.left)}).strip().lower()", mode="eval").body
        yield "lenient", f"`{ast.unparse(node)}` in any case and with blanks", slot.setter(lenient)


def _statements(slot: Slot, path: tuple[Slot, ...]) -> Iterator[Mutation]:
    node = slot.node
    text = ast.unparse(node).partition("\n")[0]
    if isinstance(node, ast.Expr) and (name := name_of(node.value)):
        yield f"call[{name}]", f"`{text}` is dropped", slot.setter(ast.Pass())
        if (early := _early(slot, path)) is not None:
            yield f"early[{name}]", f"`{text}` already before what precedes it", early
    elif isinstance(node, ast.Assign):
        if name := name_of(node.value):
            yield f"result[{name}]", f"`{text}`: 0 instead", Slot(node, "value").setter(ast.Constant(0))
        yield "true", f"`{text}`: True instead", Slot(node, "value").setter(ast.Constant(True))
    elif isinstance(node, ast.While):
        yield "while", f"`{text}` never", Slot(node, "test").setter(ast.Constant(False))
    elif isinstance(node, ast.Return) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, int):
        opposite = not node.value.value if isinstance(node.value.value, bool) else int(not node.value.value)
        yield "return", f"`{text}` becomes `return {opposite}`", Slot(node, "value").setter(ast.Constant(opposite))
    elif isinstance(node, ast.Raise):
        empty = _empty(path)
        yield "raise", f"`{text}`: returns {empty!r} instead", slot.setter(ast.Return(ast.Constant(empty)))
    elif isinstance(node, ast.Break):
        yield "break", "`break` becomes `continue`", slot.setter(ast.Continue())


def _early(slot: Slot, path: tuple[Slot, ...]) -> Callable[[], None] | None:
    """A copy of a statement in front of the one before it, in the body of the function."""
    for inner, outer in zip((*path[1:], slot), path, strict=True):
        if isinstance(outer.node, ast.FunctionDef | ast.AsyncFunctionDef) and inner.key:
            body, before, extra = outer.node.body, outer.node.body[inner.key - 1], copy.deepcopy(slot.node)
            assert isinstance(extra, ast.stmt)
            return lambda: body.insert(body.index(before), extra)
    return None


def _empty(path: tuple[Slot, ...]) -> bytes | str | int | None:
    for outer in reversed(path):
        if isinstance(outer.node, ast.FunctionDef | ast.AsyncFunctionDef):
            return EMPTY.get(ast.unparse(outer.node.returns) if outer.node.returns else "")
    return None


def _calls(slot: Slot) -> Iterator[Mutation]:
    node = slot.node
    assert isinstance(node, ast.Call)
    name = name_of(node.func)
    text = ast.unparse(node)
    for index, keyword in enumerate(node.keywords):
        aim, where = f"{name}.{keyword.arg}", f"{keyword.arg}= in `{text}`"
        value = Slot(keyword, "value")
        yield f"drop[{aim}]", f"no {where}", Slot(node, "keywords", index).remover()
        yield from _values(aim, where, value)
    for index, _ in enumerate(node.args):
        value = Slot(node, "args", index)
        aim, where = f"{name}.{index + 1}", f"argument {index + 1} of `{text}`"
        if index == len(node.args) - 1:
            yield f"drop[{aim}]", f"no {where}", value.remover()
        yield from _values(aim, where, value)
    if name == "fullmatch":
        changed = copy.deepcopy(node.func)
        assert isinstance(changed, ast.Attribute)
        changed.attr = "match"
        aim = name_of(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        yield f"match[{aim}]", f"`{text}` matches a beginning", Slot(node, "func").setter(changed)
    if name in {"fail_after", "fail_at", "move_on_after", "move_on_at"} or ast.unparse(node.func) in LIMITS:
        unlimited = ast.parse("trio.CancelScope()", mode="eval").body
        yield f"deadline[{name}]", f"`{text}` without a deadline", slot.setter(unlimited)
    if name in ADDED and ADDED[name][0] not in {keyword.arg for keyword in node.keywords}:
        added = copy.deepcopy(node)
        added.keywords.append(ast.keyword(ADDED[name][0], ast.Constant(ADDED[name][1])))
        yield f"added[{name}]", f"`{text}` with {ADDED[name][0]}={ADDED[name][1]}", slot.setter(added)
    if name in UNJUDGED and node.args:
        leaf = UNJUDGED[name].format(f"({ast.unparse(node.args[0])})")
        module = modules.dotted(modules.find(modules.names(READER[0])[0]))
        read = ast.parse(f"__import__({module!r}, fromlist=['']).{READER[1]}({leaf})", mode="eval").body
        yield f"unjudged[{name}]", f"`{text}`: the certificate is read and not judged", slot.setter(read)


def _values(aim: str, where: str, value: Slot) -> Iterator[Mutation]:
    node = value.node
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield f"flip[{aim}]", f"{not node.value} as {where}", value.setter(ast.Constant(not node.value))
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        if 0o600 <= node.value <= 0o777:
            wider = node.value | 0o044
            yield f"mode[{aim}]", f"{wider:#o} as {where}", value.setter(ast.Constant(wider))
    else:
        yield f"none[{aim}]", f"None as {where}", value.setter(ast.Constant(None))
        if isinstance(node, ast.Name | ast.Attribute):
            more = ast.BinOp(copy.deepcopy(node), ast.Mult(), ast.Constant(FACTOR))
            yield f"scaled[{aim}]", f"{FACTOR} times {where}", value.setter(more)


def _operators(slot: Slot) -> Iterator[Mutation]:
    node = slot.node
    assert isinstance(node, ast.BinOp)
    for side, other in ((node.left, node.right), (node.right, node.left)):
        if isinstance(node.op, ast.BitOr) and name_of(side):
            yield f"flag[{name_of(side)}]", f"no {ast.unparse(side)}", slot.setter(copy.deepcopy(other))
        elif isinstance(node.op, ast.Add):
            yield "addend", f"no {ast.unparse(side)} in `{ast.unparse(node)}`", slot.setter(copy.deepcopy(other))
