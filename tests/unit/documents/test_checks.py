"""Checks of single values, each with what it refuses, in words for people."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.documents.checks import Check, Fault, Info, ShapeError, as_text, instance, items, mapping, number, word

NO_LIST = "must be a list, not "
A_FILE = Info("a file")


@pytest.mark.parametrize(
    ("check", "value"),
    [
        (instance(str), "x"),
        (instance(int), 7),
        (instance(bool), False),
        (instance(int, str), "x"),
        (number, 1.5),
        (word(("yes", "no")), "no"),
        (items(instance(int)), (1, 2)),
        (items(instance(int)), ()),
        (mapping(instance(str), instance(int)), {"a": 1}),
    ],
)
def test_what_is_right_stays_as_it_is(check: Check, value: Any) -> None:
    made = check(value, A_FILE)
    assert (made, type(made)) == (value, type(value))


@pytest.mark.parametrize(
    ("check", "value", "what"),
    [
        (instance(str), 1, "must be text, not 1 (quote it)"),
        (instance(str), 1.5, "must be text, not 1.5 (quote it)"),
        (instance(str), b"x", "must be text, not bytes"),
        (instance(int), True, "must be a whole number, not true"),
        (instance(int), "1", "must be a whole number, not '1'"),
        (instance(int), 1.0, "must be a whole number, not 1"),
        (instance(bool), 1, "must be true or false, not 1"),
        (instance(bytes), None, "must be something else, not nothing"),
        (number, True, "must be something else, not true"),
        (number, "1.5", "must be something else, not '1.5'"),
        (word(("yes", "no")), "yse", "must be yes or no, not 'yse' (did you mean 'yes'?)"),
        (word(("yes", "no")), {}, "must be yes or no, not a mapping"),
        (items(instance(int)), "ab", NO_LIST + "'ab'"),
        (items(instance(int)), {}, NO_LIST + "a mapping"),
        (items(instance(int)), [1], NO_LIST + "a list"),  # as in a file; it becomes a tuple before
        (mapping(instance(str), instance(int)), (), "must be a mapping (key: value), not tuple"),
        (instance(str), 2**63, "must be text, not 9223372036854775808 (quote it)"),
        (instance(str), 2**64, "must be text, not a number that large (quote it)"),
        (mapping(instance(str), instance(int)), 10**30, "must be a mapping (key: value), not a number that large"),
    ],
)
def test_what_is_not_is_told_with_what_is_expected(check: Check, value: Any, what: str) -> None:
    with pytest.raises(ShapeError) as raised:
        check(value, A_FILE)
    assert [(fault.at, fault.what) for fault in raised.value.faults] == [((), what)]


def test_a_number_may_be_whole() -> None:
    assert (number(1, A_FILE), type(number(1, A_FILE))) == (1.0, float)


def quoting(value: Any, _info: Info) -> Any:
    if value == "bad":
        raise ValueError("'bad' is no good")
    return value


def test_each_item_that_is_wrong_is_told_and_where_it_is() -> None:
    with pytest.raises(ShapeError, match="'bad' is no good; must be text") as raised:
        items(mapping(quoting, instance(str)))(({"a": "x"}, {"bad": "x", "b": 1}), A_FILE)
    assert raised.value.faults == (
        Fault((1, "bad"), "'bad' is no good", is_quoted=True),
        Fault((1, "b"), "must be text, not 1 (quote it)"),
    )


def test_text_is_text() -> None:
    assert as_text("x") == "x"
    with pytest.raises(ShapeError, match="must be text, not nothing"):
        as_text(None)
