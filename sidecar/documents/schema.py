"""Base of the pydantic models of mappings in a file, and pydantic's findings as messages for people. Pure; fails closed.

A validator of a :class:`Shape` raises :class:`ValueError`; its text becomes the message unchanged.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import PydanticKnownError

from sidecar.documents.document import DataPath
from sidecar.documents.problems import Problems, did_you_mean
from sidecar.identity.spiffe import shown

_S = TypeVar("_S", bound="Shape")


class Shape(BaseModel):
    """A model of a mapping in a file. Unknown keys and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def fit(model: type[_S], data: Any, problems: Problems, context: object = None) -> _S:
    """The data as a ``model``; ``context`` is passed to its validators.

    Raises :class:`UsageError` with all errors if the data does not fit, or if ``problems`` has errors already.
    """
    try:
        shape = model.model_validate(data, context=context)
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


# --- values ----------------------------------------------------------------------------------------------------------


def as_text(value: object) -> str:
    """Returns the value, which must be text."""
    if not isinstance(value, str):
        raise PydanticKnownError("string_type")
    return value


def read_by(parse: Callable[[str], object]) -> BeforeValidator:
    """A validator: the value is text in the file, and ``parse`` of that text in the model."""
    return BeforeValidator(lambda value: parse(as_text(value)))


def nothing_is_empty(value: Any) -> Any:
    """``reporting:`` without a value is an empty mapping."""
    return {} if value is None else value


def nothing_is_none_of_them(value: Any) -> Any:
    """``policy:`` without a value is an empty list."""
    return [] if value is None else value


def one_is_a_list(value: Any) -> Any:
    """A single scalar is a list of one."""
    return [value] if isinstance(value, str | int | float) else value


# --- keys of a model -------------------------------------------------------------------------------------------------


def bare_type(annotation: Any) -> Any:
    """``Annotated[X | None, …]`` → ``X``."""
    while get_origin(annotation) in {Annotated, Union, types.UnionType}:
        annotation = next(kind for kind in get_args(annotation) if kind is not type(None))
    return annotation


def keys_at(model: type[BaseModel], path: DataPath) -> dict[str, Any]:
    """The keys that the mapping at ``path`` in a ``model`` may have, with their types; empty if any key is allowed."""
    kind: Any = model
    for step in path:
        fields = _fields(kind)
        kind = bare_type(fields[str(step)] if fields else get_args(kind)[-1])
    return _fields(kind)


def _fields(kind: Any) -> dict[str, Any]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {info.alias or name: info.annotation for name, info in kind.model_fields.items()}
    return {}


# --- messages --------------------------------------------------------------------------------------------------------


def _message(
    kind: str, loc: DataPath, value: Any, context: Mapping[str, Any], model: type[BaseModel]
) -> tuple[DataPath, str]:
    """One finding of pydantic as a path and a message. A kind of finding that is not listed here is still an error."""
    if kind == "missing":
        return loc[:-1], f"{shown(str(loc[-1]))} is missing"
    if kind == "extra_forbidden":
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
        "model_type": "a mapping (key: value)",
        "list_type": "a list",
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
