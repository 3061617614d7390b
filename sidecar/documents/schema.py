"""The shapes of the mappings in a file, as frozen dataclasses, and what does not fit into them, as messages. Pure.

How this works. A shape is declared once and used twice: for what a mapping of a file may hold, and for the value that the
program reads. The annotation of each field says all about its key, and becomes a function, its :data:`Check`, when the first
value of the shape is made: the type gives the innermost check, and each mark of an ``Annotated`` wraps what is before it.
There are checks for the kinds of types that files need, and none for others (:func:`_check`).

Fails closed. Types are strict: text is not read as a number, nor ``1`` as ``true``. A mark of a :class:`Shape` raises
:class:`ValueError`, whose text is reported as it is. Where the program itself makes a value, ``info.context`` is None: then
nothing is parsed, but types and ranges are checked.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    TypeVar,
    Union,
    cast,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from sidecar.documents.checks import (
    Check,
    Fault,
    Info,
    ShapeError,
    anything,
    as_text,
    collect,
    good,
    instance,
    items,
    mapping,
    mismatch,
    number,
    word,
)
from sidecar.documents.document import DataPath
from sidecar.documents.problems import Problems, did_you_mean
from sidecar.identity.spiffe import shown

_S = TypeVar("_S", bound="Shape")
_T = TypeVar("_T")

_A_FILE: Final = object()


class Shape:
    """The shape of a mapping in a file. Unknown keys and values of another type are refused. Made by :func:`frozen`. It has
    slots, because every connection reads some fields.

    The key of a field in the file is its name, or that of a :class:`Named`; the program uses the field's name. The text
    below a field is its key's meaning in the JSON Schema and in the reference.
    """

    __slots__ = ()

    def __post_init__(self) -> None:
        """Checks what the program gave."""
        info, faults = Info(None), list[Fault]()
        for name, one in fields_of(type(self)).items():
            given, before = getattr(self, name), len(faults)
            value = given
            if one.check is not None and given is not one.default:
                value = collect(name, one.check, given, info, faults)
            if len(faults) == before:
                info.data[name] = value
            if value is not given:
                object.__setattr__(self, name, value)
        good(self, faults)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(*, kw_only: bool = False) -> Callable[[type[_S]], type[_S]]:
    """Makes a frozen value of a :class:`Shape`."""
    return cast("Callable[[type[_S]], type[_S]]", dataclass(frozen=True, slots=True, kw_only=kw_only))


def fit(model: type[_S], data: Any, problems: Problems, context: object = _A_FILE) -> _S:
    """The data of a file as a ``model``. ``context`` is passed to its marks.

    Raises :class:`UsageError` with all errors if the data does not fit, or if ``problems`` has errors already.
    """
    try:
        shape = read(model, data, context)
    except ShapeError as error:
        for found in error.faults:
            at = problems.written(found.at)  # drops steps of an expanded shorthand
            line = problems.document.line(at if found.key is None else (*at, found.key))
            if found.is_quoted and at and isinstance(at[-1], int):
                at = at[:-1]
            problems.add(at, found.what, line=line)
        raise problems.error() from error
    problems.raise_any()
    return shape


def read(model: type[_S], data: Any, context: object) -> _S:
    """The data of a file as a ``model``. Raises :class:`ShapeError`."""
    if not isinstance(data, dict):
        mismatch("a mapping (key: value)", data)
    made: _S = _made(model, data, context)
    return made


def values(shape: Shape) -> dict[str, Any]:
    """The fields of a shape by name."""
    return {name: getattr(shape, name) for name in fields_of(type(shape))}


# --- marks: what an annotation says besides the type ------------------------------------------------------------------


class Mark:
    """Something in an ``Annotated``. This one changes nothing."""

    def around(self, check: Check) -> Check:
        """The check of all that is before the mark, with the mark."""
        return check


@dataclass(frozen=True, slots=True)
class Named(Mark):
    """The field's key in a file is called this."""

    key: str


@dataclass(frozen=True, slots=True)
class Pattern(Mark):
    """For the JSON Schema alone: it must match every text that the parser accepts."""

    regex: str | None


_AS_IT_IS = Mark()
Made = Annotated[_T, _AS_IT_IS]
"""Made by the program of values that were checked, and not checked again."""


@dataclass(frozen=True, slots=True)
class After(Mark):
    """``change`` gets the checked value, and :class:`Info` if it takes two arguments, and returns the field's."""

    change: Callable[..., Any]

    def around(self, check: Check) -> Check:
        change = _with_info(self.change)
        return lambda value, info: change(check(value, info), info)


@dataclass(frozen=True, slots=True)
class Before(Mark):
    """``change`` gets what is given, and :class:`Info` if it takes two arguments, and returns what is checked. ``written``:
    the type of what a file has, for the JSON Schema."""

    change: Callable[..., Any]
    written: Any = None

    def around(self, check: Check) -> Check:
        change = _with_info(self.change)
        return lambda value, info: check(change(value, info), info)


def _with_info(change: Callable[..., Any]) -> Check:
    code = getattr(change, "__code__", None)  # a class has none
    return change if code is not None and code.co_argcount == 2 else lambda value, _: change(value)


@dataclass(frozen=True, slots=True)
class Between(Mark):
    """A whole number from ``first`` to ``last``. ``what`` begins the message about any other number."""

    first: int
    last: int
    what: str

    def around(self, check: Check) -> Check:
        def checked(value: Any, info: Info) -> Any:
            number = check(value, info)
            if not self.first <= number <= self.last:
                raise ValueError(f"{self.what} {self.first} to {self.last}, not {number}")
            return number

        return checked


def read_by(parse: Callable[[str], object], pattern: str | None = None) -> Before:
    """The value is text in the file, and the result of ``parse`` in the shape. ``pattern``: see :class:`Pattern`."""

    def read_text(value: object, info: Info) -> object:
        return value if info.context is None else parse(as_text(value))

    return Before(read_text, Annotated[str, Pattern(pattern)])


class _NothingGivenError(Exception):
    """The field has its default."""


def nothing_is_the_default(value: Any) -> Any:
    """``max_leaf_ttl:`` without a value is the default."""
    if value is None:
        raise _NothingGivenError
    return value


def nothing_is_empty(value: Any) -> Any:
    """``reporting:`` without a value is an empty mapping."""
    return {} if value is None else value


def nothing_is_none_of_them(value: Any) -> Any:
    """``policy:`` without a value is an empty list."""
    return () if value is None else as_items(value)


def one_is_a_list(value: Any) -> Any:
    """A single scalar stands for a list of one."""
    return (value,) if isinstance(value, str | int | float) else as_items(value)


def as_items(value: Any) -> Any:
    """A list of a file as a tuple, which cannot be changed."""
    return tuple(value) if isinstance(value, list) else value


# --- fields and their checks -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Key:
    """A field of a shape, and its ``key`` in a file. ``check`` is None where there is nothing to check. ``make_default`` is
    None where there is no default; ``default`` is it, if it is always the same value."""

    name: str
    key: str
    annotation: Any
    check: Check | None
    default: Any
    make_default: Callable[[], Any] | None

    @property
    def is_required(self) -> bool:
        return self.make_default is None


def fields_of(kind: Any) -> Mapping[str, Key]:
    """The fields of a shape by name; of anything else, none."""
    return _fields_of(kind) if is_shape(kind) else {}


@cache
def _fields_of(model: Any) -> Mapping[str, Key]:
    return {one.name: one for one in _keys_of(model)}


def _keys_of(model: Any) -> Iterator[Key]:
    hints = get_type_hints(model, include_extras=True)
    for one in dataclasses.fields(model):
        annotation, make = hints[one.name], one.default_factory
        named = (mark.key for mark in getattr(annotation, "__metadata__", ()) if isinstance(mark, Named))
        check = _check(annotation)
        if one.default is not dataclasses.MISSING:
            make = partial(_same, one.default)
        yield Key(
            one.name,
            next(named, one.name),
            annotation,
            None if check is anything else check,
            one.default,
            None if make is dataclasses.MISSING else make,
        )


def _same(value: _T) -> _T:
    return value


def _check(kind: Any) -> Check:
    """The check of a type. Raises :class:`TypeError` for one that no file needs."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any or (origin is Annotated and _AS_IT_IS in kind.__metadata__):
        return anything
    if origin is Annotated:
        check = _check(inner[0])
        for mark in kind.__metadata__:
            check = mark.around(check)
        return check
    if origin in {Union, types.UnionType}:
        return _either(inner)
    if origin is Literal:
        return word(inner)
    if origin is tuple and inner[1:] == (Ellipsis,):
        return items(_check(inner[0]))
    if origin in {dict, Mapping}:
        return mapping(_check(inner[0]), _check(inner[1]))
    if not isinstance(kind, type):
        raise TypeError(f"a shape has no field of the type {kind}")
    return _shape(kind) if is_shape(kind) else number if kind is float else instance(kind)


def _either(kinds: tuple[Any, ...]) -> Check:
    """One kind, or nothing; or an instance of one of several classes."""
    some = [kind for kind in kinds if kind is not types.NoneType]
    check = _check(some[0]) if len(some) == 1 else instance(*some)
    return check if len(some) == len(kinds) else lambda value, info: None if value is None else check(value, info)


def _shape(model: type[_S]) -> Check:
    """A mapping of a file becomes a ``model``. What the program has must be one."""

    def check(value: Any, info: Info) -> Any:
        if isinstance(value, model):
            return value
        if info.context is None:
            mismatch(f"a {model.__name__}", value)
        return read(model, value, info.context)

    return check


def _made(model: Any, data: dict[str, Any], context: object) -> Any:
    info, faults = Info(context), list[Fault]()
    for name, one in fields_of(model).items():
        value, is_given, before = None, one.key in data, len(faults)
        if is_given:
            try:
                value = collect(one.key, one.check or anything, data[one.key], info, faults)
            except _NothingGivenError:
                is_given = False
        if not is_given:
            if one.make_default is None:
                faults.append(Fault((), f"{shown(one.key)} is missing", one.key))
            else:
                value = one.make_default()
        if len(faults) == before:
            info.data[name] = value
    known = _keys(model)
    for key in data:
        if key not in known:
            faults.append(Fault((), f"unknown key {shown(str(key))}{did_you_mean(str(key), known)}", str(key)))
    made = object.__new__(model)  # not by calling it: that would check again, as values of the program
    for name, value in info.data.items():
        object.__setattr__(made, name, value)
    return good(made, faults)


# --- keys of a model -------------------------------------------------------------------------------------------------


def bare_type(annotation: Any) -> Any:
    """``Annotated[X | None, …]`` → ``X``."""
    while get_origin(annotation) in {Annotated, Union, types.UnionType}:
        annotation = next(kind for kind in get_args(annotation) if kind is not type(None))
    return annotation


def keys_at(model: type[Shape], path: DataPath) -> Mapping[str, Any]:
    """The keys that the mapping at ``path`` of a ``model`` may have, with their types; empty for free keys."""
    kind: Any = model
    for step in path:
        keys = _keys(kind)
        kind = bare_type(keys[str(step)] if keys else next(it for it in get_args(kind)[::-1] if it is not Ellipsis))
    return _keys(kind)


def is_shape(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Shape)


@cache
def _keys(kind: Any) -> Mapping[str, Any]:
    return {one.key: one.annotation for one in fields_of(kind).values()}
