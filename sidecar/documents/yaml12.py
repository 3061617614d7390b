"""Parses YAML text into a :class:`Document`: plain data with the line of each value.

Pure, except for :func:`load_text`. Fails closed: text that is not understood is a :class:`UsageError`, never a guess.

How this works. PyYAML parses the text into events, :class:`_Composer` makes nodes of them, and the *core schema* of YAML 1.2
(section 10.3.2) resolves the scalars. YAML 1.1 would read a service named ``no`` as false, ``5432:80`` as a number to base
60, ``010`` as eight, and a date as an object. Also refused: duplicate keys (the last would silently win), tags, several
documents, and text that costs more time or memory than its size suggests (aliases that multiply, deep nesting).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from sidecar.documents.document import DataPath, Document, path_text
from sidecar.documents.problems import Problems
from sidecar.documents.regular import IrregularError, Read, read_regular
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import shown

MAX_BYTES = 4 << 20
MAX_NODES = 200_000
MAX_DEPTH = 32

_FAST: Any = getattr(getattr(yaml, "cyaml", None), "CParser", None)
"""None where PyYAML was built without libyaml."""

_NOT_PLAIN = re.compile("[!%?\t\x85\u2028\u2029\ufeff]|[|>][-+0-9]*#")
"""Tags, directives, complex keys, tabs, line breaks that only some readers know, and block scalars that begin with a #."""

_TAG = "tag:yaml.org,2002:"
_NULL = re.compile(r"null|Null|NULL|~|")
_BOOL = re.compile(r"(true|True|TRUE)|(?:false|False|FALSE)")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_NO_TEXT_BEGINS = frozenset(("", *"nNtTfF~-+.0123456789"))
"""What every scalar begins with that one of these patterns matches."""


def load_text(path: Path, read: Read = read_regular) -> str:
    """The text of a file. The only function of this module that touches the disk.

    Raises :class:`UsageError` if it is no regular file, not readable, larger than :data:`MAX_BYTES`, or not UTF-8.
    """
    try:
        content = read(path, MAX_BYTES).content
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a file name"
        raise UsageError(f"{path}: cannot be read: {reason}") from error
    except IrregularError as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    if len(content) > MAX_BYTES:
        raise UsageError(f"{path}: is larger than {MAX_BYTES} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}:{line}: is not UTF-8 text") from error


def parse_yaml(text: str, filename: str) -> Document:
    """Parses one YAML document. Raises :class:`UsageError`; each of its lines starts with ``filename``."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise UsageError(f"{filename}: is larger than {MAX_BYTES} bytes")
    try:
        root, ended = _root(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UsageError(f"{filename}:{line}: not YAML: a character that may not be in a file") from error
    except yaml.MarkedYAMLError as error:
        raise UsageError(_syntax_error(error, filename)) from error
    except (ValueError, OverflowError) as error:  # not caught by PyYAML: "\UFFFFFFFF", %YAML with a huge version
        raise UsageError(f"{filename}:1: not YAML: an escape or a version number is out of range") from error
    if root is None or (root.tag == _TAG + "null" and root.value == ""):
        raise UsageError(f"{filename}:1: the file is empty")
    builder = _Builder(filename)
    data = builder.build(root, (), root.start_mark.line + 1)
    builder.problems.raise_any()
    return Document(filename, data, builder.lines, ended)


def _root(text: str) -> tuple[Any, bool]:
    """The root node, and whether ``...`` ends the document. PyYAML has two parsers. The one in C is twenty times faster,
    which counts for a policy of thousands of rules. It reads plain text only: of other characters the two understand a few
    differently. What it refuses is read again by the one in Python, whose errors say more."""
    if _FAST is not None and _NOT_PLAIN.search(text) is None:
        with contextlib.suppress(yaml.YAMLError):
            return _Composer(iter(_FAST(text).get_event, None)).document()
    return _Composer(yaml.parse(text, Loader=yaml.SafeLoader)).document()


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
    elif problem.startswith("expected '<document start>'"):
        what = "something follows the line ... that ends the file: write it before that line"
    elif (error.context or "").startswith("found duplicate anchor"):
        what = "not YAML: the same anchor (&) is there twice"
    else:
        begun = f" ({error.context} begun on line {error.context_mark.line + 1})" if error.context_mark else ""
        what = f"not YAML: {problem}{begun}"
    return f"{filename}:{line}: {what}"


class _Composer:
    """Events → nodes, with the core schema as the resolver and a bound on nesting. ``events``: of one stream."""

    def __init__(self, events: Iterable[Any]) -> None:
        self._next: Callable[[], Any] = iter(events).__next__
        self._anchors: dict[str, Any] = {}
        self._depth = 0

    def document(self) -> tuple[Any, bool]:
        """The root node of the only document, None if there is none; and whether the document ends explicitly. Raises
        :class:`yaml.MarkedYAMLError`."""
        self._next()  # the stream begins
        if isinstance(self._next(), yaml.StreamEndEvent):
            return None, False
        begin = self._next()
        root = self._node(begin)
        end = self._next()
        if not isinstance(after := self._next(), yaml.StreamEndEvent):
            raise _error(begin, "expected a single document in the stream", after, "but found another")
        return root, end.explicit

    def _node(self, event: Any) -> Any:
        anchor: Any = event.anchor
        if isinstance(event, yaml.AliasEvent):
            if anchor not in self._anchors:
                raise _error(None, None, event, f"found undefined alias {anchor!r}")
            return self._anchors[anchor]
        if anchor in self._anchors:
            first = f"found duplicate anchor {anchor!r}; first occurrence"
            raise _error(self._anchors[anchor], first, event, "second occurrence")
        node: Any = _begun(event, event.start_mark)
        if anchor is not None:
            self._anchors[anchor] = node
        if node.value is None:
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise _error(None, None, event, "nested too deeply")
            node.value = list(self._pairs() if isinstance(node, yaml.MappingNode) else self._items())
            self._depth -= 1
        return node

    def _items(self) -> Iterator[Any]:
        while not isinstance(event := self._next(), yaml.CollectionEndEvent):
            yield self._node(event)

    def _pairs(self) -> Iterator[tuple[Any, Any]]:
        for key in self._items():
            yield key, self._node(self._next())


def _begun(event: Any, mark: Any) -> Any:
    """A scalar, or a collection without its values yet (an alias in it may stand for it)."""
    given = None if event.tag == "!" else event.tag
    if isinstance(event, yaml.ScalarEvent):
        tag = given or _TAG + (_plain(event.value) if event.implicit[0] else "str")
        return yaml.ScalarNode(tag, event.value, mark)
    if isinstance(event, yaml.SequenceStartEvent):
        return yaml.SequenceNode(given or _TAG + "seq", None, mark)
    return yaml.MappingNode(given or _TAG + "map", None, mark)


def _error(before: Any, context: str | None, here: Any, problem: str) -> yaml.MarkedYAMLError:
    """``before``, ``here``: events or nodes."""
    return yaml.composer.ComposerError(context, before and before.start_mark, problem, here.start_mark)


def _plain(text: str) -> str:
    """The kind of a scalar without quotes and tag."""
    if text[:1] not in _NO_TEXT_BEGINS:
        return "str"
    kinds = (("null", _NULL), ("bool", _BOOL), ("int", _INT), ("float", _FLOAT))
    return next((kind for kind, pattern in kinds if pattern.fullmatch(text)), "str")


class _Builder:
    """Nodes → data, lines and problems. Aliases are expanded here, so the bound counts the values that they expand to."""

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
            key = key_node.value  # as written: a service may be named `no`, a port `5432`
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
