"""Shapes: what fits, and each finding of pydantic in words for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import pytest
from pydantic import BeforeValidator, Field, TypeAdapter

from sidecar.documents.problems import Problems
from sidecar.documents.schema import Between, Shape, as_items, bare_type, fit, frozen, keys_at, read_by
from sidecar.documents.yaml12 import parse_yaml
from sidecar.identity.reasons import UsageError


@frozen()
class Inner(Shape):
    number: int = 0
    length: Annotated[int, read_by(len)] | None = None


@frozen()
class Outer(Shape):
    from_: Annotated[str, Field(alias="from")]
    inner: Inner | None = None
    free: Mapping[str, Inner] = Field(default_factory=dict)
    flag: bool = False
    word: Literal["yes", "no"] = "no"
    few: Annotated[int, Between(1, 3, "a few are")] = 2
    parsed: Annotated[tuple[Annotated[float, read_by(float)], ...], BeforeValidator(as_items)] = ()
    odd: Annotated[float, Field(gt=1)] = 2.0


def fitted(text: str) -> Outer:
    document = parse_yaml(text, "f")
    return fit(Outer, document.data, Problems(document))


def test_what_fits() -> None:
    outer = fitted("{from: x, inner: {number: 7, length: abc}, parsed: ['1.5']}")
    assert outer == Outer(from_="x", inner=Inner(number=7, length=3), parsed=(1.5,))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[]", "f:1: must be a mapping (key: value), not a list"),
        ("{}", "f:1: 'from' is missing"),
        ("from: x\ninner:\n  numbr: 1", "f:3: inner: unknown key 'numbr' (did you mean 'number'?)"),
        ("from: 5", "f:1: from: must be text, not 5 (quote it)"),
        ("from: true", "f:1: from: must be text, not true (quote it)"),
        ("from:", "f:1: from: must be text, not nothing"),
        (f"from: {10**30}", "f:1: from: must be text, not a number that large (quote it)"),
        ("from: x\ninner:\n  number: 1.5", "f:3: inner.number: must be a whole number, not 1.5"),
        ("from: x\ninner: {length: 3}", "f:2: inner.length: must be text, not 3 (quote it)"),
        ("from: x\nfree: []", "f:2: free: must be a mapping (key: value), not a list"),
        ("from: x\nfree: {a: {number: x}}", "f:2: free.a.number: must be a whole number, not 'x'"),
        ("from: x\nflag: yes", "f:2: flag: must be true or false, not 'yes'"),
        ("from: x\nword: yse", "f:2: word: must be yes or no, not 'yse' (did you mean 'yes'?)"),
        ("from: x\nfew: 0", "f:2: few: a few are 1 to 3, not 0"),
        ("from: x\nfew: 4", "f:2: few: a few are 1 to 3, not 4"),
        ("from: x\nfew: '2'", "f:2: few: must be a whole number, not '2'"),
        ("from: x\nparsed: {}", "f:2: parsed: must be a list, not a mapping"),
        ("from: x\nparsed:\n- q", "f:3: parsed: could not convert string to float: 'q'"),
        ("from: x\nparsed: [[]]", "f:2: parsed[0]: must be text, not a list"),
        ("from: x\nodd: 0.5", "f:2: odd: must be something else, not 0.5"),
    ],
)
def test_what_does_not(text: str, line: str) -> None:
    with pytest.raises(UsageError) as raised:
        fitted(text)
    assert str(raised.value) == line


@pytest.mark.parametrize(("text", "more"), [("{from: x}", []), ("{}", ["f:1: 'from' is missing"])])
def test_problems_that_there_were_already_are_told_too(text: str, more: list[str]) -> None:
    document = parse_yaml(text, "f")
    problems = Problems(document)
    problems.add((), "was wrong before")
    with pytest.raises(UsageError) as raised:
        fit(Outer, document.data, problems)
    assert str(raised.value).splitlines() == ["f:1: was wrong before", *more]


def test_keys_of_a_shape() -> None:
    assert list(keys_at(Outer, ())) == ["from", "inner", "free", "flag", "word", "few", "parsed", "odd"]
    assert list(keys_at(Outer, ("inner",))) == list(keys_at(Outer, ("free", "any"))) == ["number", "length"]
    assert keys_at(Outer, ("free",)) == keys_at(Outer, ("from",)) == {}


def test_bare_types() -> None:
    assert bare_type(Annotated[int | None, "x"]) is bare_type(None | int) is bare_type(int) is int


@pytest.mark.parametrize("few", [1, 3])
def test_both_ends_are_between(few: int) -> None:
    assert fitted(f"{{from: x, few: {few}}}").few == few


def test_a_schema_has_both_ends_and_the_pattern() -> None:
    few = TypeAdapter(Annotated[int, Between(1, 3, "a few are")])
    assert few.json_schema() == {"type": "integer", "minimum": 1, "maximum": 3}
    assert TypeAdapter(Annotated[float, read_by(float, "^[0-9.]+$")]).json_schema() == {
        "type": "string", "pattern": "^[0-9.]+$",
    }  # fmt: skip
    assert TypeAdapter(Annotated[float, read_by(float)]).json_schema() == {"type": "string"}
