"""A place in a syntax tree that can hold another node: the field of a parent, or an element of one of its lists."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Slot:
    parent: ast.AST
    field: str
    key: int | None = None

    @property
    def node(self) -> ast.AST:
        found = getattr(self.parent, self.field)
        node = found if self.key is None else found[self.key]
        assert isinstance(node, ast.AST)
        return node

    def setter(self, new: ast.AST) -> Callable[[], None]:
        """What puts ``new`` here. An element is found again by itself: what was applied before may have moved it."""
        old = self.node

        def put() -> None:
            ast.fix_missing_locations(ast.copy_location(new, old) if hasattr(old, "lineno") else new)
            if self.key is None:
                setattr(self.parent, self.field, new)
            else:
                siblings = getattr(self.parent, self.field)
                siblings[_index(siblings, old)] = new

        return put

    def remover(self) -> Callable[[], None]:
        """What takes the element out of its list."""
        old = self.node

        def take() -> None:
            siblings = getattr(self.parent, self.field)
            del siblings[_index(siblings, old)]

        return take


def _index(siblings: list[ast.AST], node: ast.AST) -> int:
    return next(index for index, other in enumerate(siblings) if other is node)


def slots(node: ast.AST) -> Iterator[Slot]:
    """The places right below ``node`` that hold nodes, in the order of the text."""
    for name, value in ast.iter_fields(node):
        if isinstance(value, ast.AST):
            yield Slot(node, name)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, ast.AST):
                    yield Slot(node, name, index)
