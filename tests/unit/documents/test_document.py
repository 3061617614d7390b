"""Plain data with its lines, and the way to a value in it."""

from __future__ import annotations

import pytest

from sidecar.documents.document import DataPath, Document, part, parts, path_text


def test_line_of_what_is_there_or_around_it() -> None:
    document = Document("f.yaml", {"a": ["x"]}, {(): 1, ("a",): 2, ("a", 0): 3})
    assert document.line(("a", 0)) == 3
    assert document.line(("a", 1, "gone")) == 2
    assert document.line(("nowhere",)) == 1


@pytest.mark.parametrize(
    ("path", "text"),
    [((), ""), (("policy", 2, "from"), "policy[2].from"), (("services", "a b\n", "ports"), "services['a b\\n'].ports")],
)
def test_path_text(path: DataPath, text: str) -> None:
    assert path_text(path) == text


def test_parts_of_data_of_any_shape() -> None:
    data = {"a": [{"b": 1}]}
    assert part(data, "a", 0, "b") == 1
    for path in [("x",), ("a", 1), ("a", "b"), ("a", 0, "b", "c")]:
        assert part(data, *path) is None
    assert list(parts(data)) == [("a", [{"b": 1}])]
    assert list(parts(["x"])) == [(0, "x")]
    assert list(parts("text")) == list(parts(None)) == []
