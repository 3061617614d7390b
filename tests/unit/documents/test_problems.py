"""Mistakes told all at once: in order, once each, and not without end."""

from __future__ import annotations

import pytest

from sidecar.documents.document import Document
from sidecar.documents.problems import MAX_PROBLEMS, Problems, did_you_mean
from sidecar.documents.yaml12 import parse_yaml
from sidecar.identity.reasons import UsageError

DOCUMENT = Document("f.yaml", {"a": {"b": "x"}, "c": 1}, {(): 1, ("a",): 1, ("a", "b"): 2, ("c",): 3})


def mistake(text: str) -> str:
    with pytest.raises(UsageError) as raised:
        parse_yaml(text, "f.yaml")
    return str(raised.value)


def test_in_the_files_order_and_variables_last() -> None:
    problems = Problems(DOCUMENT, {("c",): "SIDECAR_C"})
    problems.add_variable("SIDECAR_X", "unknown")
    problems.add(("c",), "is odd")
    problems.add(("a", "b"), "is bad")
    problems.add(("a", "b"), "is bad")
    problems.add((), "is all wrong")
    problems.add(("a",), "is told of elsewhere", line=7)
    assert str(problems.error()).splitlines() == [
        "f.yaml:1: is all wrong",
        "f.yaml:2: a.b: is bad",
        "f.yaml:7: a: is told of elsewhere",
        "SIDECAR_C: c: is odd",
        "SIDECAR_X: unknown",
    ]


def test_a_variables_name_is_safe_to_print() -> None:
    problems = Problems(DOCUMENT)
    problems.add_variable("SIDECAR_x\n", "unknown")
    assert str(problems.error()) == "'SIDECAR_x\\n': unknown"


def test_none_raises_nothing() -> None:
    problems = Problems(DOCUMENT)
    problems.raise_any()
    problems.add((), "one")
    with pytest.raises(UsageError, match="one"):
        problems.raise_any()


def test_what_somebody_wrote() -> None:
    problems = Problems(DOCUMENT, {("v", "w"): "SIDECAR_V_W"})
    assert problems.written(("a", "b")) == problems.written(("a", "b", "[key]", 0)) == ("a", "b")
    assert problems.written(("v", "w", 0)) == ("v", "w")
    assert problems.written(("v", "x")) == ("v",)  # a variable made it
    assert problems.written(("u", "x")) == ()


def test_a_flood_of_problems_is_cut() -> None:
    lines = mistake("\n".join(["a: 1"] * 500)).splitlines()
    assert len(lines) == MAX_PROBLEMS + 1
    assert lines[-1] == "f.yaml: and 299 more problems"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("wbe", " (did you mean 'web'?)"),
        ("bd", " (did you mean 'db'?)"),
        ("xb", ""),
        ("xyz", ""),
        ("w" * 101, ""),
        ("", ""),
    ],
)
def test_did_you_mean(word: str, said: str) -> None:
    assert did_you_mean(word, ["web", "api", "db"]) == said
