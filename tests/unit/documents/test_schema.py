"""Shapes: what fits, and each finding in words for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import FrozenInstanceError, field
from typing import Annotated, Any, Literal

import pytest

from sidecar.documents.checks import Info, ShapeError
from sidecar.documents.problems import Problems
from sidecar.documents.schema import (
    After,
    Before,
    Between,
    Made,
    Named,
    Shape,
    as_items,
    bare_type,
    fit,
    frozen,
    keys_at,
    read_by,
)
from sidecar.documents.yaml12 import parse_yaml
from sidecar.identity.reasons import UsageError


@frozen()
class Inner(Shape):
    number: int = 0
    length: Annotated[int, read_by(len)] | None = None


@frozen()
class Outer(Shape):
    from_: Annotated[str, Named("from")]
    inner: Inner | None = None
    free: Mapping[str, Inner] = field(default_factory=dict)
    flag: bool = False
    word: Literal["yes", "no"] = "no"
    few: Annotated[int, Between(1, 3, "a few are")] = 2
    parsed: Annotated[tuple[Annotated[float, read_by(float)], ...], Before(as_items)] = ()
    odd: float = 2.0


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
        ("from: x\nodd: y", "f:2: odd: must be something else, not 'y'"),
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


# -- what the program makes --------------------------------------------------------------------------------------------


def test_what_the_program_makes_is_checked_and_not_parsed() -> None:
    assert Outer(from_="x", inner=Inner(length=3), parsed=(2.0,), odd=3).odd == 3.0
    for wrong in ({"from_": 1}, {"few": 4}, {"inner": {"number": 1}}, {"parsed": ("2",)}, {"word": "yse"}):
        given: dict[str, Any] = {"from_": "x", **wrong}
        with pytest.raises(ShapeError):
            Outer(**given)


def test_all_that_is_wrong_is_told() -> None:
    with pytest.raises(ShapeError) as raised:
        Outer(from_=1, few=4)  # type: ignore[arg-type]
    assert [fault.at for fault in raised.value.faults] == [("from_",), ("few",)]


def test_a_value_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Inner().number = 1  # type: ignore[misc]


@frozen()
class Resolved(Outer):
    """What the program made of it."""

    from_: str
    whole: Made[frozenset[int]] = frozenset()


def test_what_is_made_of_what_was_checked_is_not_checked_again() -> None:
    wrong: dict[str, Any] = {"from_": "x", "whole": frozenset("of text")}
    assert Resolved(**wrong).whole is wrong["whole"]
    with pytest.raises(ShapeError):
        Resolved(**{**wrong, "from_": 1})


def test_nothing_is_a_value_where_the_type_says_so_and_nowhere_else() -> None:
    @frozen()
    class Choice(Shape):
        one: int | None
        other: int | bytes

    assert Choice(None, b"x").one is None
    assert (Choice(1, 2).one, Choice(1, 2).other) == (1, 2)
    nothing: Any = None
    with pytest.raises(ShapeError, match=r"^must be a whole number, not nothing$"):
        Choice(None, nothing)
    with pytest.raises(ShapeError, match=r"^must be a whole number, not 'x'$"):
        Choice("x", 2)  # type: ignore[arg-type]


def test_a_type_that_no_file_needs_is_no_field() -> None:
    @frozen()
    class Odd(Shape):
        many: set[int]

    with pytest.raises(TypeError, match="no field of the type"):
        Odd(many={1})


def not_below(value: int, info: Info) -> int:
    if value < info.data.get("low", 0):
        raise ValueError("is below `low`")
    return value


def test_a_mark_may_look_at_the_fields_before_it_and_where_one_is_wrong_it_is_not_there() -> None:
    @frozen()
    class Span(Shape):
        low: int = 1
        high: Annotated[int, After(not_below)] = 9

    assert Span(1, 2).high == 2
    with pytest.raises(ShapeError, match="is below"):
        Span(3, 2)
    wrong: Any = "3"
    with pytest.raises(ShapeError, match=r"^must be a whole number, not '3'$"):
        Span(wrong, 0)
