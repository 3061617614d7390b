"""Where everything is drawn: nothing on anything else, callers left of what they call, the same for the same mesh."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.dashboard.layout import LAYER, NEAREST, ROW, layout

NAMES = [f"s{at}" for at in range(9)]
PAIRS = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), max_size=25)


def test_callers_are_on_the_left() -> None:
    at = layout(["web", "api", "db"], [("web", "api"), ("api", "db")])["nodes"]
    assert [at[name][0] for name in ("web", "api", "db")] == [108, 108 + LAYER, 108 + 2 * LAYER]
    assert len({at[name][1] for name in at}) == 1


def test_the_order_does_not_count() -> None:
    pairs = [("web", "api"), ("api", "db"), ("job", "db"), ("job", "api")]
    assert layout(["web", "api", "db", "job"], pairs) == layout(["job", "db", "api", "web"], pairs[::-1])


def test_a_long_line_passes_between_services() -> None:
    lines = layout(["a", "b", "c"], [("a", "b"), ("b", "c"), ("a", "c")])["lines"]
    assert len(lines["a>c"]) == 3
    assert len(lines["a>b"]) == 2


def test_services_that_nobody_calls_do_not_lie_on_a_line() -> None:
    names, pairs = [f"s{at}" for at in range(9)], [("s0", "s1"), ("s0", "s2"), ("s1", "s2"), ("s7", "s8")]
    assert set(layout(names, pairs)["lines"]) == {f"{a}>{b}" for a, b in pairs}


def test_both_ways_are_one_line_there_and_back() -> None:
    lines = layout(["a", "b"], [("a", "b"), ("b", "a")])["lines"]
    assert lines["a>b"] == lines["b>a"][::-1]


def test_a_ring_ends_somewhere() -> None:
    lines = layout("abc", [("a", "b"), ("b", "c"), ("c", "a")])["lines"]
    assert set(lines) == {"a>b", "b>c", "c>a"}


def test_who_calls_nobody_stands_below() -> None:
    at = layout(["a", "b", "x"], [("a", "b"), ("x", "x")])["nodes"]
    assert at["x"][1] >= max(at["a"][1], at["b"][1]) + ROW


def test_an_empty_mesh() -> None:
    assert layout([], [])["nodes"] == {}


def test_a_pair_of_an_unknown_service_has_no_line() -> None:
    assert layout(["a"], [("a", "b")])["lines"] == {}


@settings(max_examples=60, deadline=None)
@given(PAIRS)
def test_nothing_is_on_anything_else(pairs: list[tuple[str, str]]) -> None:
    found = layout(NAMES, pairs)
    assert set(found["nodes"]) == set(NAMES)
    for (ax, ay), (bx, by) in combinations(found["nodes"].values(), 2):
        assert abs(ax - bx) >= LAYER * 0.9 or abs(ay - by) >= NEAREST - 1
    assert set(found["lines"]) == {f"{a}>{b}" for a, b in pairs if a != b}
    for key, points in found["lines"].items():
        caller, callee = key.split(">")
        assert (points[0], points[-1]) == (found["nodes"][caller], found["nodes"][callee])
    assert all(0 < x < found["width"] and 0 < y < found["height"] for x, y in found["nodes"].values())
