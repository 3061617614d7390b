"""The shapes of the mappings in a file, as frozen pydantic dataclasses, and pydantic's findings as messages. Pure.

How this works. A shape is declared once and used twice: for what a mapping of a file may hold, and for the value that the
program reads. It has slots, because every connection reads some fields: reading an attribute of a pydantic model takes six
times as long.

Fails closed. A validator of a :class:`Shape` raises :class:`ValueError`, whose text is reported as it is. Where the program
itself makes a value, ``info.context`` is None: then nothing is parsed, but types and ranges are checked.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, Final, TypeVar, Union, cast, dataclass_transform, get_args, get_origin

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
)
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticKnownError, PydanticUseDefault, core_schema

from sidecar.documents.document import DataPath
from sidecar.documents.problems import Problems, did_you_mean
from sidecar.identity.spiffe import shown

_S = TypeVar("_S", bound="Shape")

_STRICT = ConfigDict(extra="forbid", strict=True, validate_by_name=True, validate_by_alias=False)
_A_FILE: Final = object()


class Shape:
    """The shape of a mapping in a file. Unknown keys and values of another type are refused. Made by :func:`frozen`.

    A field's alias is its key in the file; the program uses the field's name. The text below a field is its key's meaning in
    the JSON Schema and in the reference.
    """

    __slots__ = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Accepts a mapping for a shape; a strict dataclass would accept instances only. The values in it stay strict."""
        schema = handler(source)
        inner: Any = handler.resolve_ref_schema(schema)
        inner["strict"] = False
        return schema


@dataclass_transform(frozen_default=True, field_specifiers=(Field,))
def frozen(*, kw_only: bool = False) -> Callable[[type[_S]], type[_S]]:
    """Makes a frozen value of a :class:`Shape`."""
    make = dataclass(config=_STRICT, frozen=True, slots=True, kw_only=kw_only)
    return cast("Callable[[type[_S]], type[_S]]", make)


def fit(model: type[_S], data: Any, problems: Problems, context: object = _A_FILE) -> _S:
    """The data of a file as a ``model``. ``context`` is passed to its validators.

    Raises :class:`UsageError` with all errors if the data does not fit, or if ``problems`` has errors already.
    """
    try:
        shape = read(model, data, context)
    except ValidationError as error:
        for found in error.errors(include_url=False):
            loc = found["loc"]
            if found["type"] != "missing":
                loc = problems.written(loc)  # drops steps of an expanded shorthand, and pydantic's mark for a key
            path, what = _message(found["type"], loc, found["input"], found.get("ctx", {}), model)
            problems.add(path, what, line=problems.document.line(loc))
        raise problems.error() from error
    problems.raise_any()
    return shape


def read(model: type[_S], data: Any, context: object) -> _S:
    """The data of a file as a ``model``. Raises :class:`pydantic.ValidationError`."""
    return TypeAdapter(model).validate_python(data, context=context, by_alias=True, by_name=False)


def values(shape: Shape) -> dict[str, Any]:
    """The fields of a shape by name."""
    return {name: getattr(shape, name) for name in fields_of(type(shape))}


# --- values ----------------------------------------------------------------------------------------------------------


def as_text(value: object) -> str:
    """Returns the value, which must be text."""
    if not isinstance(value, str):
        raise PydanticKnownError("string_type")
    return value


def read_by(parse: Callable[[str], object], pattern: str | None = None) -> BeforeValidator:
    """The value is text in the file, and the result of ``parse`` in the shape.

    ``pattern`` is for the JSON Schema alone. It must match every text that ``parse`` accepts.
    """

    def read_text(value: object, info: ValidationInfo) -> object:
        return value if info.context is None else parse(as_text(value))

    return BeforeValidator(read_text, json_schema_input_type=Annotated[str, Field(pattern=pattern)])


@plain_dataclass(frozen=True, slots=True)
class Between:
    """A whole number from ``first`` to ``last``. ``what`` begins the message about any other number."""

    first: int
    last: int
    what: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(schema) | {"minimum": self.first, "maximum": self.last}

    def _checked(self, number: int) -> int:
        if not self.first <= number <= self.last:
            raise ValueError(f"{self.what} {self.first} to {self.last}, not {number}")
        return number


def nothing_is_the_default(value: Any) -> Any:
    """``max_leaf_ttl:`` without a value is the default."""
    if value is None:
        raise PydanticUseDefault
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


# --- keys of a model -------------------------------------------------------------------------------------------------


def bare_type(annotation: Any) -> Any:
    """``Annotated[X | None, …]`` → ``X``."""
    while get_origin(annotation) in {Annotated, Union, types.UnionType}:
        annotation = next(kind for kind in get_args(annotation) if kind is not type(None))
    return annotation


def keys_at(model: type[Shape], path: DataPath) -> dict[str, Any]:
    """The keys that the mapping at ``path`` of a ``model`` may have, with their types; empty for free keys."""
    kind: Any = model
    for step in path:
        keys = _keys(kind)
        kind = bare_type(keys[str(step)] if keys else next(it for it in get_args(kind)[::-1] if it is not Ellipsis))
    return _keys(kind)


def is_shape(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Shape)


def fields_of(kind: Any) -> Mapping[str, FieldInfo]:
    """The fields of a shape by name; of anything else, none."""
    return kind.__pydantic_fields__ if is_shape(kind) else {}


def _keys(kind: Any) -> dict[str, Any]:
    return {info.alias or name: info.annotation for name, info in fields_of(kind).items()}


# --- messages --------------------------------------------------------------------------------------------------------


def _message(
    kind: str, loc: DataPath, value: Any, context: Mapping[str, Any], model: type[Shape]
) -> tuple[DataPath, str]:
    """One finding of pydantic as a path and a message. Kinds of findings that are not listed here are reported too."""
    if kind == "missing":
        return loc[:-1], f"{shown(str(loc[-1]))} is missing"
    if kind == "unexpected_keyword_argument":
        return loc[:-1], f"unknown key {shown(str(loc[-1]))}{did_you_mean(str(loc[-1]), keys_at(model, loc[:-1]))}"
    if kind == "value_error":
        return (loc[:-1] if isinstance(loc[-1], int) else loc), str(context["error"])  # the message quotes the item
    if kind == "literal_error":
        options = re.findall(r"'([^']*)'", context["expected"])
        return loc, f"must be {' or '.join(options)}, not {_value_text(value)}{did_you_mean(str(value), options)}"
    if kind == "string_type":
        quote = " (quote it)" if isinstance(value, bool | int | float) else ""
        return loc, f"must be text, not {_value_text(value)}{quote}"
    expected = {
        "int_type": "a whole number",
        "bool_type": "true or false",
        "dict_type": "a mapping (key: value)",
        "dataclass_type": "a mapping (key: value)",
        "list_type": "a list",
        "tuple_type": "a list",
    }.get(kind, "something else")
    return loc, f"must be {expected}, not {_value_text(value)}"


def _value_text(value: Any) -> str:
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    return shown(value) if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else _number(value)


def _number(value: int) -> str:
    return str(value) if value.bit_length() <= 64 else "a number that large"
