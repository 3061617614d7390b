"""What the mappings in a file look like, as pydantic models, and its findings in words for people. Pure; fails closed.

A validator of a :class:`Shape` raises :class:`ValueError`: its text is told as it is.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, WithJsonSchema
from pydantic_core import PydanticKnownError

from sidecar.documents.document import DataPath
from sidecar.documents.problems import Problems, did_you_mean
from sidecar.identity.spiffe import shown

_S = TypeVar("_S", bound="Shape")


class Shape(BaseModel):
    """What a mapping in a file looks like: unknown keys and values of another type are refused.

    The text below a key is its meaning in the JSON Schema and in the reference.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def fit(model: type[_S], data: Any, problems: Problems, context: object = None) -> _S:
    """The data as a ``model``, whose validators see ``context``.

    Raises :class:`UsageError` if it does not fit, and if there were ``problems`` already: with all of them.
    """
    try:
        shape = model.model_validate(data, context=context)
    except ValidationError as error:
        for found in error.errors(include_url=False):
            loc = found["loc"]
            if found["type"] != "missing":
                loc = problems.written(loc)  # not a shorthand that was expanded, nor pydantic's mark for a key
            path, what = _in_words(found["type"], loc, found["input"], found.get("ctx", {}), model)
            problems.add(path, what, line=problems.document.line(loc))
        raise problems.error() from error
    problems.raise_any()
    return shape


# --- values ----------------------------------------------------------------------------------------------------------


def as_text(value: object) -> str:
    """A value that must be text."""
    if not isinstance(value, str):
        raise PydanticKnownError("string_type")
    return value


def read_by(parse: Callable[[str], object], pattern: str | None = None) -> BeforeValidator:
    """The value is text in the file, and in the shape what ``parse`` makes of it.

    ``pattern`` is for the JSON Schema alone: all that ``parse`` takes matches it.
    """
    written = Annotated[str, WithJsonSchema({"type": "string"} | ({"pattern": pattern} if pattern else {}))]
    return BeforeValidator(lambda value: parse(as_text(value)), json_schema_input_type=written)


def nothing_is_empty(value: Any) -> Any:
    """``reporting:`` with nothing behind it is an empty mapping."""
    return {} if value is None else value


def nothing_is_none_of_them(value: Any) -> Any:
    """``policy:`` with nothing behind it is an empty list."""
    return [] if value is None else value


def one_is_a_list(value: Any) -> Any:
    """A single scalar stands for a list of one."""
    return [value] if isinstance(value, str | int | float) else value


# --- looking at a shape ----------------------------------------------------------------------------------------------


def bare_type(annotation: Any) -> Any:
    """``Annotated[X | None, …]`` → ``X``."""
    while get_origin(annotation) in {Annotated, Union, types.UnionType}:
        annotation = next(kind for kind in get_args(annotation) if kind is not type(None))
    return annotation


def keys_at(model: type[BaseModel], path: DataPath) -> dict[str, Any]:
    """The keys that the mapping at ``path`` of a ``model`` may have, with their types; empty for free keys."""
    kind: Any = model
    for step in path:
        fields = _fields(kind)
        kind = bare_type(fields[str(step)] if fields else get_args(kind)[-1])
    return _fields(kind)


def _fields(kind: Any) -> dict[str, Any]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {info.alias or name: info.annotation for name, info in kind.model_fields.items()}
    return {}


# --- in words --------------------------------------------------------------------------------------------------------


def _in_words(
    kind: str, loc: DataPath, value: Any, context: Mapping[str, Any], model: type[BaseModel]
) -> tuple[DataPath, str]:
    """One finding as pydantic has it → where it is and what to say of it. What is not foreseen stays a refusal."""
    if kind == "missing":
        return loc[:-1], f"{shown(str(loc[-1]))} is missing"
    if kind == "extra_forbidden":
        return loc[:-1], f"unknown key {shown(str(loc[-1]))}{did_you_mean(str(loc[-1]), keys_at(model, loc[:-1]))}"
    if kind == "value_error":
        return (loc[:-1] if isinstance(loc[-1], int) else loc), str(context["error"])  # it quotes its item
    if kind == "literal_error":
        options = re.findall(r"'([^']*)'", context["expected"])
        return loc, f"must be {' or '.join(options)}, not {_kind(value)}{did_you_mean(str(value), options)}"
    if kind == "string_type":
        quote = " (quote it)" if isinstance(value, bool | int | float) else ""
        return loc, f"must be text, not {_kind(value)}{quote}"
    expected = {
        "int_type": "a whole number",
        "bool_type": "true or false",
        "dict_type": "a mapping (key: value)",
        "model_type": "a mapping (key: value)",
        "list_type": "a list",
    }.get(kind, "something else")
    return loc, f"must be {expected}, not {_kind(value)}"


def _kind(value: Any) -> str:
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    return shown(value) if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else _number(value)


def _number(value: int) -> str:
    return str(value) if value.bit_length() <= 64 else "a number that large"
