"""JSON Schema (draft 2020-12) of ``mesh.yaml`` and ``sidecar.yaml``, and the reference: their keys, the logs' words. Pure.

Both are made from the shapes that parse the files. They describe a file as it is written, shorthands included. A schema
accepts every file that the parser accepts. The reverse does not hold: only the parser (``sidecar check``) checks whether a
name is declared, an address is allowed, or two keys exclude each other.
"""

from __future__ import annotations

import ast
import inspect
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from textwrap import dedent
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from sidecar.config.environment import variables
from sidecar.config.sidecar_yaml import ConfigShape
from sidecar.documents.durations import PATTERN
from sidecar.documents.schema import (
    Before,
    Between,
    Mark,
    Pattern,
    Shape,
    fields_of,
    is_shape,
    nothing_is_empty,
    nothing_is_none_of_them,
    nothing_is_the_default,
    one_is_a_list,
)
from sidecar.meanings.glossary import tables
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
    return {"$schema": _DIALECT, "title": f"{kind}.yaml", **shape_schema(_SHAPES[kind])}


def keys(kind: FileKind) -> list[Key]:
    """Every key of the file, the outer ones first: ``inbound[].listen``, ``services.<name>.ports``."""
    schema = file_schema(kind)
    return list(_keys(schema, schema, ""))


def reference() -> str:
    """The reference of both files and of the words of the logs, in Markdown."""
    lines = [
        "# Reference: the keys of `mesh.yaml` and `sidecar.yaml`, and the words of the logs",
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
    return "\n".join([*lines, "", *tables(), ""])


def duration_text(seconds: float) -> str:
    """A duration in seconds, as a file has it: ``90`` → ``1m30s``."""
    left, text = round(seconds), ""
    for unit, size in _UNITS:
        number, left = divmod(left, size)
        text += f"{number}{unit}" if number else ""
    return text


def shape_schema(shape: type[Shape]) -> dict[str, Any]:
    """The JSON Schema of a mapping with this shape. Raises :class:`TypeError` for a key that is not described."""
    schema = _AsWritten()
    made = schema.of_shape(shape)
    return ({"$defs": dict(sorted(schema.defs.items()))} if schema.defs else {}) | made


class _AsWritten:
    """Makes the schemas of values as they are written in the file, before they are parsed. ``defs``: those of the shapes in
    it, by name."""

    def __init__(self) -> None:
        self.defs: dict[str, dict[str, Any]] = {}

    def of_shape(self, shape: type[Shape]) -> dict[str, Any]:
        described, properties = _meanings(shape), {}
        fields = fields_of(shape)
        for name, one in fields.items():
            if name not in described:
                raise TypeError(f"{shape.__name__}.{name} has no description: write one below the key")
            default = {} if one.make_default is None else {"default": _written(one.make_default())}
            made = self.of(one.annotation) | default | {"description": described[name]}
            properties[one.key] = dict(sorted(made.items()))
        required = [one.key for one in fields.values() if one.is_required]
        made = {"additionalProperties": False, "properties": properties}
        return made | ({"required": required} if required else {}) | {"type": "object"}

    def of(self, kind: Any) -> dict[str, Any]:
        """The schema of a value of this type, as it is written."""
        origin, inner = get_origin(kind), get_args(kind)
        if origin is Annotated:
            made = (
                self.of(inner[0]) if not any(isinstance(it, Before) and it.written for it in kind.__metadata__) else {}
            )
            for mark in kind.__metadata__:
                made = self._marked(made, mark)
            return dict(sorted(made.items()))
        if origin in {Union, types.UnionType}:
            some = [{"type": "null"} if one is types.NoneType else self.of(one) for one in inner]
            return {"anyOf": some}
        if origin is Literal:
            return {"enum": list(inner), "type": "string"}
        if origin is tuple:
            return {"items": self.of(inner[0]), "type": "array"}
        if origin in {dict, Mapping}:
            return {"additionalProperties": self.of(inner[1]), "type": "object"}
        if is_shape(kind):
            self.defs[kind.__name__] = self.of_shape(kind)
            return {"$ref": f"#/$defs/{kind.__name__}"}
        return {"type": {str: "string", int: "integer", bool: "boolean"}[kind]}

    def _marked(self, made: dict[str, Any], mark: Mark) -> dict[str, Any]:
        if isinstance(mark, Between):
            return made | {"minimum": mark.first, "maximum": mark.last}
        if isinstance(mark, Pattern) and mark.regex is not None:
            return made | {"pattern": mark.regex}
        if not isinstance(mark, Before):
            return made
        if mark.change is one_is_a_list:
            return {"anyOf": [made["items"], made]}
        if mark.change in (nothing_is_empty, nothing_is_none_of_them, nothing_is_the_default):
            return {"anyOf": [made, {"type": "null"}]}
        if mark.written is None:
            raise TypeError(f"{mark.change} has no input type: say by `written` what a file has")
        return self.of(mark.written)


def _written(value: Any) -> Any:
    """A default as a file would have it."""
    if isinstance(value, Shape):
        return {one.key: _written(getattr(value, name)) for name, one in fields_of(type(value)).items()}
    if isinstance(value, tuple | Mapping) and not value:
        return None  # a key that has a default may be left empty, but `allow_from: []` is refused
    if isinstance(value, float | timedelta):  # every number that is not whole is a duration
        return duration_text(value.total_seconds() if isinstance(value, timedelta) else value)
    return value


def _meanings(shape: type[Shape]) -> dict[str, str]:
    """The text below each key of a shape and of its parents. Python keeps it in the source alone."""
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
