"""A table as plain text. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The headings, a line, and the rows: the first column to the left, the others to the right. A heading may have lines;
    a row may have fewer cells than there are headings."""
    cells = [tuple(row) + ("",) * (len(headings) - len(row)) for row in rows]
    tops = [heading.split("\n") for heading in headings]
    height = max(map(len, tops))
    above = list(zip(*([*top, *("",) * (height - len(top))] for top in tops), strict=True))
    widths = [max(map(len, column)) for column in zip(*above, *cells, strict=True)]
    lines = [_line(row, widths) for row in above]
    return "\n".join([*lines, "-" * (sum(widths) + 2 * (len(widths) - 1)), *(_line(row, widths) for row in cells), ""])


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    others = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
    return "  ".join([row[0].ljust(widths[0]), *others]).rstrip()
