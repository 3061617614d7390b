"""Where each service and each line between two of them is drawn: in layers, callers on the left. Pure.

The layers, and the order in them with few crossings, are found by fast-sugiyama (the method of Sugiyama, Tagawa and Toda,
1981). It is an extra of this package, so it is imported when it is needed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

LAYER, ROW = 300, 96
"""From one layer to the next, and from one service to the next in a layer, in the page's units."""

NEAREST = 72
"""What two services of a layer are apart at least."""

MARGIN_X, MARGIN_Y = 108, 52
IN_A_ROW = 6
"""Services without a call stand below the others, so many in a row."""

NARROW_LAYER = 230
"""The same where there are so many lines that no label stands on them."""

FEW, FEW_ROOM, MANY_ROOM = 60, 0.3, 0.1
"""How much of a row a line has that passes between services: more while there are few lines."""

Point = tuple[float, float]


def layout(names: Collection[str], pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """``nodes``: by name, the middle of each. ``lines``: by ``caller>callee``, the points that a line passes, its ends
    included. ``width`` and ``height``. The same for the same services and pairs, whatever their order."""
    from fast_sugiyama import from_edges

    order = sorted(set(names))
    wanted = sorted({pair for pair in pairs if pair[0] != pair[1] and {*order} >= {*pair}})
    # A pair that calls in both directions is one edge here, and two lines beside each other in the page.
    edges = [(a, b) for a, b in wanted if (b, a) not in wanted or a < b]
    nodes: dict[str, Point] = {}
    lines: dict[str, list[Point]] = {}
    top = float(MARGIN_Y)
    room, step = (FEW_ROOM, LAYER) if len(edges) <= FEW else (MANY_ROOM, NARROW_LAYER)
    for group in sorted(_connected(edges), key=lambda group: (-len(group), group)):
        # The library numbers what a line passes from behind the vertices, so these have no gaps.
        number = {name: at for at, name in enumerate(group)}
        numbered = [(number[a], number[b]) for a, b in edges if a in number]
        [(positions, _, _, made)] = from_edges(numbered, vertex_spacing=1, dummy_vertices=True, dummy_size=room)
        found: dict[int, Point] = {int(vertex): (float(x), float(y)) for vertex, (x, y) in positions}
        height = max(y for _, y in found.values())
        lowest = min(x for x, _ in found.values())
        place = {v: (MARGIN_X + (height - y) * step, top + (x - lowest) * ROW) for v, (x, y) in found.items()}
        _part(place, len(group))
        nodes |= {name: place[v] for name, v in number.items()}
        for a, b, points in _routes(len(group), [(int(a), int(b)) for a, b in made or ()]):
            lines[f"{group[a]}>{group[b]}"] = [place[v] for v in points]
        top = max(y for _, y in place.values()) + ROW
    alone = [name for name in order if name not in nodes]
    for place_in_rows, name in enumerate(alone):
        nodes[name] = (MARGIN_X + place_in_rows % IN_A_ROW * LAYER, top + place_in_rows // IN_A_ROW * ROW)
    for caller, callee in wanted:
        if f"{caller}>{callee}" not in lines:
            back = lines.get(f"{callee}>{caller}")
            lines[f"{caller}>{callee}"] = back[::-1] if back else [nodes[caller], nodes[callee]]
    places = [*nodes.values(), *(point for points in lines.values() for point in points)]
    return {
        "nodes": {name: [round(x), round(y)] for name, (x, y) in nodes.items()},
        "lines": {key: [[round(x), round(y)] for x, y in points] for key, points in lines.items()},
        "width": round(max((x for x, _ in nodes.values()), default=0) + MARGIN_X),
        "height": round(max((y for _, y in places), default=0) + MARGIN_Y),
    }


def _connected(edges: Iterable[tuple[str, str]]) -> list[list[str]]:
    """The services that are connected by calls, group by group, each in order."""
    groups: dict[str, set[str]] = {}
    for a, b in edges:
        one, other = groups.get(a, {a}), groups.get(b, {b})
        together = one | other
        groups |= dict.fromkeys(together, together)
    return [sorted(group) for group in {id(group): group for group in groups.values()}.values()]


def _part(place: dict[int, Point], services: int) -> None:
    """Moves services of one layer down that came too near to each other."""
    columns: dict[float, list[int]] = {}
    for vertex in place:
        if vertex < services:
            columns.setdefault(place[vertex][0], []).append(vertex)
    for x, column in columns.items():
        lowest = float("-inf")
        for vertex in sorted(column, key=lambda one: (place[one][1], one)):
            lowest = max(place[vertex][1], lowest + NEAREST)
            place[vertex] = (x, lowest)


def _routes(services: int, made: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int, list[int]]]:
    """The edges again, each with the vertices that it passes: those from ``services`` on are no services."""
    after: dict[int, list[int]] = {}
    for a, b in made:
        after.setdefault(a, []).append(b)
    for first in [vertex for vertex in after if vertex < services]:
        for second in after[first]:
            points = [first, second]
            while points[-1] >= services and len(points) <= len(after) + 1:
                points.append(after[points[-1]][0])
            yield first, points[-1], points
