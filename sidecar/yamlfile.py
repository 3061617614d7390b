"""YAML text to plain data that remembers its lines, and mistakes told as ``file:line: path: what``.

Pure, but for :func:`load_text`; fails closed: what is not understood is a :class:`UsageError`, never a guess.

The text is read by PyYAML's composer and resolved by the *core schema* of YAML 1.2 (section 10.3.2), because YAML 1.1
reads a service called ``no`` as false, ``5432:80`` as a number to base 60, ``010`` as eight and a date as an object.
Refused besides: keys that occur twice (the last would silently win), tags, several documents, and whatever could cost
more time or memory than its size suggests (aliases that multiply, deep nesting).
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from sidecar.identity import shown
from sidecar.reasons import UsageError

MAX_BYTES = 1 << 20
MAX_NODES = 50_000
MAX_DEPTH = 32
MAX_PROBLEMS = 200

DataPath = tuple[str | int, ...]
"""Where in the data a value is: ``("policy", 2, "from")``."""

_TAG = "tag:yaml.org,2002:"
_NULL = re.compile(r"null|Null|NULL|~|")
_BOOL = re.compile(r"(true|True|TRUE)|(?:false|False|FALSE)")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_*-][A-Za-z0-9_:./*-]*")


@dataclass(frozen=True, slots=True)
class Document:
    """A file's data (dict, list, str, int, float, bool, None), and the line on which each part of it begins."""

    filename: str
    data: Any
    lines: Mapping[DataPath, int]

    def line(self, path: DataPath) -> int:
        """The line of the value at ``path``, or of the nearest thing around it."""
        while path not in self.lines:
            path = path[:-1]
        return self.lines[path]


def load_text(path: Path) -> str:
    """The text of a file; the one function here that touches the disk.

    Raises :class:`UsageError`: not readable, larger than 1 MiB, or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a file name"
        raise UsageError(f"{path}: cannot be read: {reason}") from error
    if len(content) > MAX_BYTES:
        raise UsageError(f"{path}: is larger than {MAX_BYTES} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}:{line}: is not UTF-8 text") from error


def parse_yaml(text: str, filename: str) -> Document:
    """Reads one YAML document. Raises :class:`UsageError`, whose lines each start with ``filename``."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise UsageError(f"{filename}: is larger than {MAX_BYTES} bytes")
    try:
        root = _Composer(text).get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UsageError(f"{filename}:{line}: not YAML: a character that may not be in a file") from error
    except yaml.MarkedYAMLError as error:
        raise UsageError(_syntax_error(error, filename)) from error
    except (ValueError, OverflowError) as error:  # PyYAML's own slips: "\UFFFFFFFF", %YAML with a huge version
        raise UsageError(f"{filename}:1: not YAML: an escape or a version number is out of range") from error
    if root is None or (root.tag == _TAG + "null" and root.value == ""):
        raise UsageError(f"{filename}:1: the file is empty")
    builder = _Builder(filename)
    data = builder.build(root, (), root.start_mark.line + 1)
    builder.problems.raise_any()
    return Document(filename, data, builder.lines)


# --- telling what is wrong -------------------------------------------------------------------------------------------


class Problems:
    """Everything that is wrong with one file, so that it can be said at once.

    ``variables`` names the values that came from the environment and not from the file.
    """

    def __init__(self, document: Document, variables: Mapping[DataPath, str] | None = None) -> None:
        self._document = document
        self._variables = variables or {}
        self._found: list[tuple[str, int, str]] = []

    def add(self, path: DataPath, what: str, *, line: int | None = None) -> None:
        """Something is wrong at ``path``; ``line`` if it is told of another place than where it is."""
        at = f"{path_text(path)}: " if path else ""
        variable = next((name for known, name in self._variables.items() if path[: len(known)] == known), None)
        if variable is not None:
            self._found.append((variable, 0, f"{variable}: {at}{what}"))
        else:
            line = line or self._document.line(path)
            self._found.append(("", line, f"{self._document.filename}:{line}: {at}{what}"))

    def add_variable(self, name: str, what: str) -> None:
        """Something is wrong with an environment variable that stands for no value."""
        self._found.append((name, 0, f"{name if _PLAIN_KEY.fullmatch(name) else shown(name)}: {what}"))

    def add_validation(self, error: ValidationError, model: type[BaseModel]) -> None:
        """Takes over what pydantic found, in words for people."""
        for found in error.errors(include_url=False):
            loc = found["loc"]
            while loc not in self._document.lines and loc not in self._variables and found["type"] != "missing":
                loc = loc[:-1]  # a shorthand that was expanded, or pydantic's mark for a key
            path, what = _in_words(found["type"], loc, found["input"], found.get("ctx", {}), model)
            self.add(path, what, line=self._document.line(loc))

    def error(self) -> UsageError:
        """All of them as one error: a line each, in the file's order and the environment's last."""
        texts = list(dict.fromkeys(text for _, _, text in sorted(self._found, key=lambda item: item[:2])))
        if len(texts) > MAX_PROBLEMS:
            more = len(texts) - MAX_PROBLEMS
            texts[MAX_PROBLEMS:] = [f"{self._document.filename}: and {more} more problems"]
        return UsageError("\n".join(texts))

    def raise_any(self) -> None:
        if self._found:
            raise self.error()


class Shape(BaseModel):
    """What a mapping in a file looks like: unknown keys and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def fault(what: str) -> PydanticCustomError:
    """What a validator of a :class:`Shape` raises: ``what`` is a text for people, taken as it is."""
    return PydanticCustomError("fault", "{what}", {"what": what})


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """`` (did you mean 'web'?)``, or nothing if no option is near."""
    near = difflib.get_close_matches(word, list(options), n=1) if len(word) <= 100 else []
    return f" (did you mean {shown(near[0])}?)" if near else ""


def path_text(path: DataPath) -> str:
    """``policy[2].from``, safe to print."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif _PLAIN_KEY.fullmatch(step):
            text += f".{step}" if text else step
        else:
            text += f"[{shown(step)}]"
    return text


def nothing_is_empty(value: Any) -> Any:
    """``reporting:`` with nothing behind it is an empty mapping."""
    return {} if value is None else value


def nothing_is_none_of_them(value: Any) -> Any:
    """``policy:`` with nothing behind it is an empty list."""
    return [] if value is None else value


def one_is_a_list(value: Any) -> Any:
    """A single scalar stands for a list of one."""
    return [value] if isinstance(value, str | int | float) else value


def part(data: Any, *path: str | int) -> Any:
    """The value at ``path``, or None if any step of it is not there: for checks that span a file that may be broken."""
    for step in path:
        try:
            data = data[step]
        except (TypeError, LookupError):
            return None
    return data


def parts(data: Any) -> Iterator[tuple[Any, Any]]:
    """The pairs of a mapping or the numbered items of a list; of anything else, none."""
    if isinstance(data, dict):
        yield from data.items()
    elif isinstance(data, list):
        yield from enumerate(data)


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


def _in_words(
    kind: str, loc: DataPath, value: Any, context: Mapping[str, Any], model: type[BaseModel]
) -> tuple[DataPath, str]:
    """One fault as pydantic has it → where it is and what to say of it. What is not foreseen stays a refusal."""
    if kind == "missing":
        return loc[:-1], f"{shown(str(loc[-1]))} is missing"
    if kind == "extra_forbidden":
        return loc[:-1], f"unknown key {shown(str(loc[-1]))}{did_you_mean(str(loc[-1]), keys_at(model, loc[:-1]))}"
    if kind == "fault":
        return (loc[:-1] if isinstance(loc[-1], int) else loc), str(context["what"])  # it quotes its item
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


def _syntax_error(error: yaml.MarkedYAMLError, filename: str) -> str:
    mark = error.problem_mark or error.context_mark
    line = 1 if mark is None else mark.line + 1
    problem = (error.problem or "cannot be read").encode("ascii", "backslashreplace").decode().replace("\n", " ")
    if error.context == "while scanning an alias":
        what = 'an unquoted * means something else in YAML: quote it ("*")'
    elif problem.startswith("found undefined alias"):
        what = f"{problem}: if you mean a *, quote it"
    elif "'\\t'" in problem:
        what = "not YAML: a tab; lines are indented with spaces"
    elif error.context == "expected a single document in the stream":
        what = "a second document begins: one file holds one"
    elif (error.context or "").startswith("found duplicate anchor"):
        what = "not YAML: the same anchor (&) is there twice"
    else:
        begun = f" ({error.context} begun on line {error.context_mark.line + 1})" if error.context_mark else ""
        what = f"not YAML: {problem}{begun}"
    return f"{filename}:{line}: {what}"


# --- reading ---------------------------------------------------------------------------------------------------------


class _Composer(
    yaml.reader.Reader, yaml.scanner.Scanner, yaml.parser.Parser, yaml.composer.Composer, yaml.resolver.BaseResolver
):
    """PyYAML's text → nodes, with the core schema in the resolver's place and a bound on nesting."""

    def __init__(self, text: str) -> None:
        yaml.reader.Reader.__init__(self, text)
        yaml.scanner.Scanner.__init__(self)
        yaml.parser.Parser.__init__(self)
        yaml.composer.Composer.__init__(self)
        yaml.resolver.BaseResolver.__init__(self)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(problem="nested too deeply", problem_mark=self.get_mark())
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        if kind is not yaml.ScalarNode:
            return _TAG + ("seq" if kind is yaml.SequenceNode else "map")
        if implicit[0]:
            for name, pattern in (("null", _NULL), ("bool", _BOOL), ("int", _INT), ("float", _FLOAT)):
                if pattern.fullmatch(value):
                    return _TAG + name
        return _TAG + "str"


class _Builder:
    """Nodes → data, lines and problems. Aliases are expanded as they are met, so the bound counts what they expand to."""

    def __init__(self, filename: str) -> None:
        self.filename = filename
        self.lines: dict[DataPath, int] = {}
        self.problems = Problems(Document(filename, None, self.lines))
        self._open: set[int] = set()
        self._nodes = 0

    def build(self, node: yaml.Node, path: DataPath, line: int) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise UsageError(
                f"{self.filename}:{line}: the file is too large: more than {MAX_NODES} values or {MAX_DEPTH} levels"
            )
        self.lines[path] = line
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._open:
            raise UsageError(f"{self.filename}:{line}: {path_text(path)}: an alias (*) inside of what it stands for")
        self._open.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            self._refuse_tag(node, path, "seq")
            data: Any = [self.build(item, (*path, i), item.start_mark.line + 1) for i, item in enumerate(node.value)]
        else:
            self._refuse_tag(node, path, "map")
            data = self._mapping(node, path)
        self._open.remove(id(node))
        return data

    def _mapping(self, node: yaml.Node, path: DataPath) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.add(path, "a key must be text, not a list or a mapping", line=line)
                continue
            self._scalar(key_node, path)
            key = key_node.value  # as it is written: a service may be called `no`, a port `5432`
            if key in data:
                first = self.lines[(*path, key)]
                self.problems.add((*path, key), f"is there twice (first on line {first})", line=line)
                continue
            data[key] = self.build(value_node, (*path, key), line)
        return data

    def _scalar(self, node: yaml.ScalarNode, path: DataPath) -> Any:
        text, tag = node.value, node.tag.removeprefix(_TAG)
        line = node.start_mark.line + 1
        if tag == "str":
            if not text.isprintable():
                self.problems.add(path, f"has a character that cannot be printed: {shown(text)}", line=line)
            return text
        if tag == "null" and _NULL.fullmatch(text):
            return None
        if tag == "bool" and (match := _BOOL.fullmatch(text)):
            return match[1] is not None
        if tag == "int" and _INT.fullmatch(text):
            if len(text) > 40:
                self.problems.add(path, "a number that large", line=line)
                return 0
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        if tag == "float" and _FLOAT.fullmatch(text):
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        self.problems.add(path, f"the tag {shown(node.tag)} is not understood here", line=line)
        return text

    def _refuse_tag(self, node: yaml.Node, path: DataPath, expected: str) -> None:
        if node.tag != _TAG + expected:
            self.problems.add(path, f"the tag {shown(node.tag)} is not understood here", line=node.start_mark.line + 1)
