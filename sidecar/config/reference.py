"""JSON Schema (draft 2020-12) of ``mesh.yaml`` and ``sidecar.yaml``, and the reference of their keys. Pure.

Both are made from the shapes that parse the files. They describe a file as it is written, shorthands included. A schema
accepts every file that the parser accepts. The reverse does not hold: only the parser (``sidecar check``) checks whether a
name is declared, an address is allowed, or two keys exclude each other.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from textwrap import dedent
from typing import Any, Literal

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from sidecar.config.environment import variables
from sidecar.config.sidecar_yaml import ConfigShape
from sidecar.documents.durations import PATTERN
from sidecar.documents.schema import (
    Shape,
    fields_of,
    is_shape,
    nothing_is_empty,
    nothing_is_none_of_them,
    nothing_is_the_default,
    one_is_a_list,
)
from sidecar.policy.mesh_yaml import MeshShape

FileKind = Literal["mesh", "sidecar"]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_SHAPES: Mapping[FileKind, type[Shape]] = {"mesh": MeshShape, "sidecar": ConfigShape}
_UNITS = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))
_TYPES = {"string": "text", "integer": "whole number", "boolean": "true or false"}


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a file. All but ``path`` is Markdown. ``default`` is what applies where the key is left out."""

    path: str
    type: str
    default: str
    meaning: str


def file_schema(kind: FileKind) -> dict[str, Any]:
    """The JSON Schema of a ``mesh.yaml`` or of a ``sidecar.yaml``."""
    made = TypeAdapter(_SHAPES[kind]).json_schema(by_alias=True, schema_generator=_AsWritten)
    for shape in (made, *made.get("$defs", {}).values()):
        shape.pop("title", None)
        shape.pop("description", None)  # the docstring of the class, which is for developers
    return {"$schema": _DIALECT, "title": f"{kind}.yaml", **made}


def keys(kind: FileKind) -> list[Key]:
    """Every key of the file, the outer ones first: ``inbound[].listen``, ``services.<name>.ports``."""
    schema = file_schema(kind)
    return list(_keys(schema, schema, ""))


def reference() -> str:
    """The reference of both files, in Markdown."""
    lines = [
        "# Reference: the keys of `mesh.yaml` and `sidecar.yaml`",
        "",
        "Made by `sidecar schema --reference`; do not edit. `[]` is an item of a list, `<name>` a key of your choice."
        " A duration is written like `30s`, `90m` or `1h30m`.",
    ]
    by_key = {".".join(map(str, path)): name for name, path in variables().items()}
    for kind in _SHAPES:
        lines += ["", f"## `{kind}.yaml`", ""]
        if kind == "sidecar":
            lines += ["A key with a variable can also be given by the environment, which wins over the file.", ""]
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        for key in keys(kind):
            variable = by_key.get(key.path) if kind == "sidecar" else None
            meaning = key.meaning if variable is None else f"{key.meaning} Variable: `{variable}`."
            lines.append(f"| `{key.path}` | {key.type} | {key.default} | {meaning} |")
    return "\n".join([*lines, ""])


def duration_text(seconds: float) -> str:
    """A duration in seconds, as a file has it: ``90`` → ``1m30s``."""
    left, text = round(seconds), ""
    for unit, size in _UNITS:
        number, left = divmod(left, size)
        text += f"{number}{unit}" if number else ""
    return text


class _AsWritten(GenerateJsonSchema):
    """The schema of a value as it is written in the file, before it is parsed."""

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        made = super().dataclass_schema(schema)
        shape: type[Shape] = schema["cls"]
        described = _meanings(shape)
        for name, info in fields_of(shape).items():
            if name not in described:
                raise TypeError(f"{shape.__name__}.{name} has no description: write one below the key")
            made["properties"][info.alias or name]["description"] = described[name]
        return made

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        made = super().function_before_schema(schema)
        read = schema["function"]["function"]
        if read is one_is_a_list:
            return {"anyOf": [made["items"], made]}
        if read in (nothing_is_empty, nothing_is_none_of_them, nothing_is_the_default):
            return {"anyOf": [made, {"type": "null"}]}
        if "json_schema_input_schema" not in schema:
            raise TypeError(f"{read} has no input type: give its BeforeValidator a json_schema_input_type")
        return made

    def get_default_value(self, schema: core_schema.WithDefaultSchema) -> Any:
        made: Any = schema.get("default_factory")
        return super().get_default_value(schema) if made is None else made()

    def encode_default(self, dft: Any) -> Any:
        if isinstance(dft, Shape):
            fields = fields_of(type(dft))
            return {info.alias or name: self.encode_default(getattr(dft, name)) for name, info in fields.items()}
        if isinstance(dft, tuple | Mapping) and not dft:
            return None  # a key that has a default may be left empty, but `allow_from: []` is refused
        if isinstance(dft, float | timedelta):  # every number that is not whole is a duration
            return duration_text(dft.total_seconds() if isinstance(dft, timedelta) else dft)
        return super().encode_default(dft)

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _meanings(shape: type[Shape]) -> dict[str, str]:
    """The text below each key of a shape and of its parents. (pydantic's ``use_attribute_docstrings`` does the same when a
    class is made, so in every process that reads a file: 45 ms.)"""
    found: dict[str, str] = {}
    for cls in reversed(shape.__mro__):
        if is_shape(cls) and cls is not Shape:
            (made,) = ast.parse(dedent(inspect.getsource(cls))).body
            for key, below in pairwise(getattr(made, "body", ())):
                match key, below:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                        found[name] = inspect.cleandoc(text).replace("\n", " ")
    return found


def _keys(schema: Mapping[str, Any], node: Mapping[str, Any], prefix: str) -> Iterator[Key]:
    """The keys of a mapping, each followed by the keys inside of it."""
    for name, found in node.get("properties", {}).items():
        path = f"{prefix}{name}"
        meaning, _, described = found["description"].replace("|", "\\|").partition(" Default: ")
        default = "required" if name in node.get("required", ()) else _default(found["default"], described)
        yield Key(path, " or ".join(dict.fromkeys(_types(schema, found))), default, meaning)
        yield from _inner(schema, found, path)


def _default(value: Any, described: str) -> str:
    if described:
        return described.removesuffix(".")
    if value is None:
        return "none"
    if isinstance(value, dict):
        return "those below"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _inner(schema: Mapping[str, Any], found: Mapping[str, Any], path: str) -> Iterator[Key]:
    for one in _choices(schema, found):
        if "properties" in one:
            yield from _keys(schema, one, f"{path}.")
        elif one.get("type") == "array":
            yield from _inner(schema, one["items"], f"{path}[]")
        elif isinstance(one.get("additionalProperties"), dict):
            yield from _inner(schema, one["additionalProperties"], f"{path}.<name>")


def _choices(schema: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The alternatives of a value, with references resolved; null, an empty value, is left out."""
    if "$ref" in found:
        yield from _choices(schema, schema["$defs"][found["$ref"].rpartition("/")[2]])
    elif "anyOf" in found:
        for one in found["anyOf"]:
            yield from _choices(schema, one)
    elif found.get("type") != "null":
        yield found


def _types(schema: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    for one in _choices(schema, found):
        if "enum" in one:
            yield from (f"`{word}`" for word in one["enum"])
        elif one["type"] == "array":
            yield f"list of {' or '.join(dict.fromkeys(_types(schema, one['items'])))}"
        elif one["type"] == "object":
            values = one.get("additionalProperties")
            yield f"mapping to {' or '.join(_types(schema, values))}" if values else "mapping"
        elif one.get("pattern") == PATTERN:
            yield "duration"
        else:
            yield _TYPES[one["type"]]
