"""Checks of the values of a file: text, numbers, words, lists, mappings; and what does not fit, as messages. Pure.

Fails closed. Types are strict: text is not read as a number, and ``1`` is not ``true``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from sidecar.documents.document import DataPath
from sidecar.documents.problems import did_you_mean
from sidecar.identity.spiffe import shown

_T = TypeVar("_T")


@dataclass(slots=True)
class Info:
    """What the function of a mark may ask for. ``context`` is that of the file, and None where the program makes the value;
    ``data`` holds the fields of the same shape that are good, of those declared before this one."""

    context: Any
    data: dict[str, Any] = field(default_factory=dict)


Check = Callable[[Any, Info], Any]
"""Takes what a file or the program has, and returns the value of the field. Raises :class:`ValueError`."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What does not fit. ``at`` is the path of what is wrong. ``key``: that this key of it is, which is missing or unknown.
    ``is_quoted``: whether the message quotes the value, so that it needs no number in a list."""

    at: DataPath
    what: str
    key: str | None = None
    is_quoted: bool = False


class ShapeError(ValueError):
    """All that does not fit."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(fault.what for fault in self.faults))

    def within(self, step: str | int) -> Iterator[Fault]:
        """The faults, as those of a value around this one."""
        for one in self.faults:
            yield dataclasses.replace(one, at=(step, *one.at))


# --- checks ----------------------------------------------------------------------------------------------------------


def anything(value: Any, _info: Info) -> Any:
    return value


def instance(*kinds: type) -> Check:
    """An instance of one of these. ``True`` is an int for Python, and not for a file."""
    expected = {str: "text", int: "a whole number", bool: "true or false"}.get(kinds[0], "something else")
    no_bool = kinds == (int,)

    def check(value: Any, _info: Info) -> Any:
        if not isinstance(value, kinds) or (no_bool and isinstance(value, bool)):
            mismatch(expected, value)
        return value

    return check


def number(value: Any, _info: Info) -> float:
    """Only the program has one: in a file each is read from text."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        mismatch("something else", value)
    return float(value)


def word(words: tuple[str, ...]) -> Check:
    def check(value: Any, _info: Info) -> Any:
        if value not in words:
            hint = did_you_mean(str(value), words)
            raise ShapeError([Fault((), f"must be {' or '.join(words)}, not {_value_text(value)}{hint}")])
        return value

    return check


def items(check: Check) -> Check:
    def checked(value: Any, info: Info) -> Any:
        if not isinstance(value, tuple):
            mismatch("a list", value)
        faults: list[Fault] = []
        made = tuple([collect(index, check, item, info, faults) for index, item in enumerate(value)])
        return good(made, faults)

    return checked


def mapping(check_key: Check, check: Check) -> Check:
    def checked(value: Any, info: Info) -> Any:
        if not isinstance(value, Mapping):
            mismatch("a mapping (key: value)", value)
        faults: list[Fault] = []
        made = {
            collect(key, check_key, key, info, faults): collect(key, check, item, info, faults)
            for key, item in value.items()
        }
        return good(made, faults)

    return checked


def collect(step: str | int, check: Check, value: Any, info: Info, faults: list[Fault]) -> Any:
    """The checked value; None if it is wrong, which is added to ``faults``."""
    try:
        return check(value, info)
    except ShapeError as error:
        faults += error.within(step)
    except ValueError as error:
        faults.append(Fault((step,), str(error), is_quoted=True))
    return None


def good(made: _T, faults: list[Fault]) -> _T:
    if faults:
        raise ShapeError(faults)
    return made


# --- messages --------------------------------------------------------------------------------------------------------


def as_text(value: object) -> str:
    """Returns the value, which must be text."""
    return value if isinstance(value, str) else mismatch("text", value)


def mismatch(expected: str, value: Any) -> NoReturn:
    quote = " (quote it)" if expected == "text" and isinstance(value, bool | int | float) else ""
    raise ShapeError([Fault((), f"must be {expected}, not {_value_text(value)}{quote}")])


def _value_text(value: Any) -> str:
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if value.bit_length() <= 64 else "a number that large"
    return f"{value:g}" if isinstance(value, float) else type(value).__name__
