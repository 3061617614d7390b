"""YAML to plain data: what is read, what is refused, and in which words."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sidecar.documents import yaml12
from sidecar.documents.yaml12 import MAX_BYTES, MAX_DEPTH, MAX_NODES, load_text, parse_yaml
from sidecar.identity.reasons import UsageError


def mistake(text: str) -> str:
    with pytest.raises(UsageError) as raised:
        parse_yaml(text, "f.yaml")
    return str(raised.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a", "a"),
        *[
            (word, word)
            for word in ("no", "on", "yes", "off", "y", "NO", "tRue", "2027-01-31", "5432:80", "1:2:3", "<<", "=")
        ],
        ("12:30:45", "12:30:45"),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("010", 10),
        ("-7", -7),
        ("0x1F", 31),
        ("0o17", 15),
        ("0b11", "0b11"),
        ("1_000", "1_000"),
        ("1.5", 1.5),
        ("5.", 5.0),
        ("-.Inf", -math.inf),
        ("1e3", 1000.0),
        ('"true"', "true"),
        ("'5'", "5"),
        ("!!str 5", "5"),
        ("!!int 5", 5),
        ("!!bool true", True),
        ("!!null ~", None),
        ("!!float 1", 1.0),
        ("!!seq [a]", ["a"]),
        ("!!map {a: b}", {"a": "b"}),
        ("[db:5432, spiffe://x.y/z/*]", ["db:5432", "spiffe://x.y/z/*"]),
        ("{no: 1, 80: 2, ~: 3, true: 4, 0x10: 5}", {"no": 1, "80": 2, "~": 3, "true": 4, "0x10": 5}),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("a:", {"a": None}),
        ("\ufeffa: 1", {"a": 1}),
        ("---\na: 1\n...\n", {"a": 1}),
    ],
)
def test_core_schema(text: str, value: Any) -> None:
    data = parse_yaml(text, "f.yaml").data
    assert data == value
    assert type(data) is type(value)


def test_not_a_number_is_one() -> None:
    assert math.isnan(parse_yaml(".nan", "f.yaml").data)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "f.yaml:1: the file is empty"),
        ("# only this\n", "f.yaml:1: the file is empty"),
        ("---\n", "f.yaml:1: the file is empty"),
        ("from: *", 'f.yaml:1: an unquoted * means something else in YAML: quote it ("*")'),
        ("a: 1\nfrom: [*]", 'f.yaml:2: an unquoted * means something else in YAML: quote it ("*")'),
        ("- *:http", 'f.yaml:1: an unquoted * means something else in YAML: quote it ("*")'),
        ("a:\n - *web", "f.yaml:2: found undefined alias 'web': if you mean a *, quote it"),
        ("a:\n\tb: 1", "f.yaml:2: not YAML: a tab; lines are indented with spaces"),
        ("a: b: c", "f.yaml:1: not YAML: mapping values are not allowed here"),
        (
            "a: [1,\n",
            "f.yaml:2: not YAML: expected the node content, but found '<stream end>'"
            " (while parsing a flow node begun on line 2)",
        ),
        ("a: \x00", "f.yaml:1: not YAML: a character that may not be in a file"),
        ("a: 1\n\x07", "f.yaml:2: not YAML: a character that may not be in a file"),
        ('a: "\\UFFFFFFFF"', "f.yaml:1: not YAML: an escape or a version number is out of range"),
        ("%YAML 1." + "9" * 5000 + "\n---\na", "f.yaml:1: not YAML: an escape or a version number is out of range"),
        ("a\n---\nb", "f.yaml:2: a second document begins: one file holds one"),
        ("a: 1\n...\nb: 2", "f.yaml:3: something follows the line ... that ends the file: write it before that line"),
        ("a: &x 1\nb: &x 2", "f.yaml:2: not YAML: the same anchor (&) is there twice"),
        ("&x [*x]", "f.yaml:1: [0]: an alias (*) inside of what it stands for"),
        ("a: &x\n  b: *x", "f.yaml:2: a.b: an alias (*) inside of what it stands for"),
        ("a: 1\nb: 2\na: 3", "f.yaml:3: a: is there twice (first on line 1)"),
        ("80: 1\n'80': 2", "f.yaml:2: 80: is there twice (first on line 1)"),
        ("x:\n  no: 1\n  no: 2", "f.yaml:3: x.no: is there twice (first on line 2)"),
        ("{a: b}: c", "f.yaml:1: a key must be text, not a list or a mapping"),
        ("x:\n ? [a]\n : b", "f.yaml:2: x: a key must be text, not a list or a mapping"),
        (
            "a: !!python/object:os.system x",
            "f.yaml:1: a: the tag 'tag:yaml.org,2002:python/object:os.system' is not understood here",
        ),
        ("a: !foo [x]", "f.yaml:1: a: the tag '!foo' is not understood here"),
        ("a: !foo {x: y}", "f.yaml:1: a: the tag '!foo' is not understood here"),
        ("a: !!int x", "f.yaml:1: a: the tag 'tag:yaml.org,2002:int' is not understood here"),
        ("a: !!bool yes", "f.yaml:1: a: the tag 'tag:yaml.org,2002:bool' is not understood here"),
        ("a: !foo null", "f.yaml:1: a: the tag '!foo' is not understood here"),
        ("a: !!null no", "f.yaml:1: a: the tag 'tag:yaml.org,2002:null' is not understood here"),
        ("a: !!float no", "f.yaml:1: a: the tag 'tag:yaml.org,2002:float' is not understood here"),
        ("a: !!set {x: }", "f.yaml:1: a: the tag 'tag:yaml.org,2002:set' is not understood here"),
        ("!foo k: 1", "f.yaml:1: the tag '!foo' is not understood here"),
        ("a: " + "9" * 5000, "f.yaml:1: a: a number that large"),
        ('a: "x\\ny"', "f.yaml:1: a: has a character that cannot be printed: 'x\\ny'"),
        ('a: "\\u202e"', "f.yaml:1: a: has a character that cannot be printed: '\\u202e'"),
        ('a: "\\ud800"', "f.yaml:1: a: has a character that cannot be printed: '\\ud800'"),
        ('"a\\0": 1', "f.yaml:1: has a character that cannot be printed: 'a\\x00'"),
        ("[" * 100, "f.yaml:1: not YAML: nested too deeply"),
        ("[" * 100 + "]" * 100, "f.yaml:1: not YAML: nested too deeply"),
        ("x" * (MAX_BYTES + 1), f"f.yaml: is larger than {MAX_BYTES} bytes"),
        ("é" * (MAX_BYTES // 2 + 1), f"f.yaml: is larger than {MAX_BYTES} bytes"),
    ],
)
def test_refused(text: str, line: str) -> None:
    assert mistake(text) == line


def test_all_problems_are_told_at_once_in_the_files_order() -> None:
    assert mistake("b: 1\nb: !foo x\nc: !bar y\nb: 3").splitlines() == [
        "f.yaml:2: b: is there twice (first on line 1)",
        "f.yaml:3: c: the tag '!bar' is not understood here",
        "f.yaml:4: b: is there twice (first on line 1)",
    ]


def test_aliases_that_multiply_are_bounded() -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    # Half a million values: enough to be refused, and few enough for the memory of a machine that does not refuse them.
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 6)]
    assert mistake("\n".join(levels)).endswith(f"more than {MAX_NODES} values or {MAX_DEPTH} levels")


def test_as_many_values_as_are_allowed_are_read() -> None:
    values = ["x"] * (MAX_NODES - 1)  # and the list
    assert parse_yaml(f"[{', '.join(values)}]", "f.yaml").data == values
    assert mistake(f"[{', '.join([*values, 'x'])}]").endswith(f"more than {MAX_NODES} values or {MAX_DEPTH} levels")


def test_a_text_as_long_as_may_be() -> None:
    assert parse_yaml("x" * MAX_BYTES, "f.yaml").data == "x" * MAX_BYTES


def test_a_number_as_long_as_may_be() -> None:
    assert parse_yaml("9" * 40, "f.yaml").data == int("9" * 40)
    assert mistake("9" * 41) == "f.yaml:1: a number that large"


def test_an_empty_text_is_no_empty_file() -> None:
    assert parse_yaml('""', "f.yaml").data == ""
    assert mistake("") == "f.yaml:1: the file is empty"


def test_nested_as_deeply_as_may_be() -> None:
    assert parse_yaml("[" * MAX_DEPTH + "]" * MAX_DEPTH, "f.yaml").data
    assert mistake("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)).endswith("nested too deeply")
    for levels in (MAX_DEPTH, MAX_DEPTH + 1):
        inner = levels - 11  # of what "b" holds, besides its own key and ten lists
        text = f"a: &a {'[' * inner}x{']' * inner}\nb: {'[' * 10}*a{']' * 10}"
        if levels == MAX_DEPTH:
            assert parse_yaml(text, "f.yaml").data
        else:
            assert mistake(text).endswith(f"{MAX_DEPTH} levels")


def test_aliases_that_nest_are_bounded() -> None:
    levels = ["a0: &a0 " + "[" * 20 + "]" * 20, "a1: &a1 " + "[" * 20 + "*a0" + "]" * 20]
    assert mistake("\n".join(levels)).endswith(f"{MAX_DEPTH} levels")


def test_every_value_has_its_line() -> None:
    document = parse_yaml("a:\n  - x\n  - b:\n      c\nd: 1", "f.yaml")
    assert document.data == {"a": ["x", {"b": "c"}], "d": 1}
    lines = {(): 1, ("a",): 1, ("a", 0): 2, ("a", 1): 3, ("a", 1, "b"): 3, ("d",): 5}
    assert {path: document.lines[path] for path in lines} == lines
    assert document.line(("a", 1, "b", "gone", 7)) == 3
    assert document.line(("nowhere",)) == 1


class TestLoadText:
    def test_reads(self, tmp_path: Path) -> None:
        (tmp_path / "f").write_text("é\n", encoding="utf-8")
        assert load_text(tmp_path / "f") == "é\n"

    def test_at_the_limit(self, tmp_path: Path) -> None:
        (tmp_path / "f").write_bytes(b"x" * MAX_BYTES)
        assert len(load_text(tmp_path / "f")) == MAX_BYTES

    def test_over_the_limit(self, tmp_path: Path) -> None:
        (tmp_path / "f").write_bytes(b"x" * (MAX_BYTES + 1))
        with pytest.raises(UsageError, match=f"f: is larger than {MAX_BYTES} bytes"):
            load_text(tmp_path / "f")

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="nope: cannot be read: No such file or directory"):
            load_text(tmp_path / "nope")

    def test_fifo(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "f")
        with pytest.raises(UsageError, match="cannot be read: Not a regular file"):
            load_text(tmp_path / "f")

    def test_directory(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="cannot be read: Is a directory"):
            load_text(tmp_path)

    def test_not_a_file_name(self) -> None:
        with pytest.raises(UsageError, match="cannot be read: not a file name"):
            load_text(Path("a\0b"))

    def test_not_utf8(self, tmp_path: Path) -> None:
        (tmp_path / "f").write_bytes(b"a: 1\nb: \xff\n")
        with pytest.raises(UsageError, match="f:2: is not UTF-8 text"):
            load_text(tmp_path / "f")


# -- two parsers, one reading --------------------------------------------------------------------------------------------

PIECES = [
    *" \n:-?,[]{}#&*!|>'\"%@ab01.~\\<é", "\t", "\r\n", "\x85", "\ufeff", "- ", ": ", "\n  ", "\n- ", "...", "---", "''",
    "!!str ", "a: b\n", "[1, {x: y}]", "&x k", "*x", "|\n  text\n", ">-\n  fold\n", "# a -> b\n", "http://x:1/y",
]  # fmt: skip


def read(text: str) -> Any:
    """What is read, with all lines; or what is said instead."""
    try:
        document = parse_yaml(text, "f.yaml")
    except UsageError as error:
        return str(error)
    return document.data, dict(document.lines)


@given(st.lists(st.sampled_from(PIECES), max_size=24).map("".join))
def test_the_fast_parser_reads_what_the_other_reads(text: str) -> None:
    read_fast = read(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml12, "_FAST", None)
        assert read(text) == read_fast


@pytest.mark.parametrize("text", ["a:\tb\n", "a: !x\n", "a: [b?, c]\n", "a: |#\n", "a: &b\n  - *c\n"])
def test_what_only_the_fast_parser_would_read_or_say_is_left_to_the_other(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = read(text)
    monkeypatch.setattr(yaml12, "_FAST", None)
    assert read(text) == said


def test_a_policy_is_read_by_the_fast_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml, "parse", lambda *_arguments, **_named: pytest.fail("the slow one"))
    text = "# web -> api\npolicy:\n  - {name: web->api, from: web, to: 'api:http'}\n"
    assert read(text)[0] == {"policy": [{"name": "web->api", "from": "web", "to": "api:http"}]}


@pytest.mark.parametrize(
    ("text", "ended"),
    [
        ("a: 1\n...\n", True),
        ("a: 1\n...", True),
        ("a: 1\n... # the end\n\n# of it", True),
        ("a: 1\n", False),
        ("a: 1\n..", None),
        ("a: 1\n ...\n", False),
        ("a: 1\n# ...\n", False),
        ("a: 'x ...'", False),
        ("a: 1 # \u2028\n...\n", True),  # read by the parser in Python
    ],
)
def test_whether_the_text_says_where_it_ends(text: str, ended: bool | None) -> None:
    try:
        assert parse_yaml(text, "f.yaml").ended is ended
    except UsageError:
        assert ended is None
