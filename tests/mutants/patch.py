"""A mutation put into modules that are imported already: the code of the changed functions is exchanged.

Every object that refers to such a function (a decorator's wrapper, a bound method, a mark of a shape) refers to
the same function object, so that all of them run the changed code. What is not in a function (a constant, a default, a
class's body) ran when it was imported, and cannot be changed so.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType

Functions = Mapping[tuple[str, str, int], list[FunctionType]]


def living_functions(root: Path) -> Functions:
    """All functions of files below ``root``, by file, qualified name and line."""
    found: dict[tuple[str, str, int], list[FunctionType]] = {}
    for thing in gc.get_objects():
        if type(thing) is FunctionType and thing.__code__.co_filename.startswith(f"{root}/"):
            found.setdefault(_key(thing.__code__), []).append(thing)
    return found


def exchange(functions: Functions, original: CodeType, mutated: CodeType) -> list[tuple[FunctionType, CodeType]] | None:
    """Which functions get which code, if ``mutated`` takes the place of the module ``original``. None: it cannot be
    done so."""
    try:
        pairs = list(_changed(original, mutated))
    except ValueError:
        return None
    changes = []
    for before, after in pairs:
        living = [one for one in functions.get(_key(before), []) if one.__code__.co_freevars == after.co_freevars]
        if not living:
            return None
        changes += [(one, after) for one in living]
    return changes


def _key(code: CodeType) -> tuple[str, str, int]:
    return code.co_filename, code.co_qualname, code.co_firstlineno


def _changed(before: CodeType, after: CodeType) -> Iterator[tuple[CodeType, CodeType]]:
    """The outermost functions that differ. Raises ValueError if what is around them does."""
    old, new = _inner(before), _inner(after)
    if _without_inner(before) != _without_inner(after) or len(old) != len(new):
        raise ValueError("what differs runs at import")
    for one, other in zip(old, new, strict=True):
        if one == other:
            continue
        if one.co_flags & 0x02:  # CO_NEWLOCALS: a function; a class's body has none
            yield one, other
        else:
            yield from _changed(one, other)


def _inner(code: CodeType) -> list[CodeType]:
    return [const for const in code.co_consts if isinstance(const, CodeType)]


def _without_inner(code: CodeType) -> tuple[object, ...]:
    constants = [repr(const) for const in code.co_consts if not isinstance(const, CodeType)]
    return code.co_code, constants, code.co_names, code.co_varnames
