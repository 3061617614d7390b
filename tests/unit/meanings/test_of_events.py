"""Every event that the programs log has its meaning. The events are read from the sources' syntax trees.

An event whose name is not written where it is logged is known here by its expression (:data:`MADE`): a new one of these
turns a test red, as an event without an entry does.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.agent.agent import Means
from sidecar.meanings.meaning import Kind, Meaning
from sidecar.meanings.of_events import EVENTS

ROOT = Path(__file__).parents[3]
FILES = [path for package in ("sidecar", "certs") for path in sorted((ROOT / package).rglob("*.py"))]

SNAKE = re.compile(r"[a-z]+(?:_[a-z]+)+")
LEVELS = {"info", "warning", "bug"}
WARNERS = {"_warn", "warn"}
TOPICS = {"_report", "report"}

MADE = {
    "f'{what}_failed'": "the agent's topics",
    "f'{what}_mended'": "the agent's topics",
    "how": "Means",
    "event": "the topics of a ReportOnce, or the caller's",
    "EVENT": "stray_output",
}
"""The expressions that name an event elsewhere than where it is logged, and where its names are."""

AGENT = "sidecar/agent/"


def first(call: ast.Call) -> ast.expr | None:
    return call.args[0] if call.args else None


def calls(tree: ast.AST, names: set[str]) -> Iterator[ast.Call]:
    """Calls of methods with these names, those made by ``partial`` too."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute) and node.func.attr in names:
            yield node
        elif isinstance(node.func, ast.Name) and node.func.id == "partial" and node.args:
            target, *rest = node.args
            if isinstance(target, ast.Attribute) and target.attr in names:
                yield ast.Call(target, rest, [])


def is_of_a_log(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value).rpartition(".")[2] in {"log", "_log"}


def logged(path: Path, text: str) -> tuple[set[str], set[str]]:
    """The events that a source logs by name, and the expressions that stand for others."""
    tree = ast.parse(text)
    names, made = set(), set()
    for call in [*filter(is_of_a_log, calls(tree, LEVELS)), *calls(tree, WARNERS)]:
        match first(call):
            case ast.Constant(value=str(name)):
                names.add(name)
            case ast.expr() as expression:
                made.add(ast.unparse(expression))
    for call in calls(tree, {"_line"}):
        if len(call.args) > 1 and isinstance(call.args[1], ast.Constant):
            names.add(str(call.args[1].value))
    for call in calls(tree, TOPICS):
        match first(call):
            case ast.Constant(value=str(topic)) if AGENT in path.as_posix():
                names |= {f"{topic}_failed", f"{topic}_mended"}
            case ast.Constant(value="accept_paused" | "restart_needed" as topic):
                names.add(str(topic))
    raises = any("service" in {it.arg for it in call.keywords} for call in calls(tree, {"report"}))
    if raises or path.name == "alarms.py":  # events of alarms are named constants
        names |= {
            one.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Tuple) == isinstance(node.value, ast.Tuple)  # A, B = "a", "b"
            for one in ast.walk(node.value)
            if isinstance(one, ast.Constant) and isinstance(one.value, str) and SNAKE.fullmatch(one.value)
        }
    for node in ast.walk(tree):  # the names over which a loop reports
        if isinstance(node, ast.For) and isinstance(node.iter, ast.Tuple) and ast.unparse(node.target) == "event":
            names |= {str(one.value) for one in node.iter.elts if isinstance(one, ast.Constant)}
    return names, made


WORDS = {one.word for one in EVENTS}


@pytest.fixture(scope="module")
def found() -> list[tuple[set[str], set[str]]]:
    return [logged(path, path.read_text()) for path in FILES]


@pytest.fixture
def names(found: list[tuple[set[str], set[str]]]) -> set[str]:
    return set().union(*(names for names, _ in found)) | set(Means) | {"stray_output"}


def test_every_event_has_an_entry(names: set[str]) -> None:
    assert not names - WORDS
    assert len(names) > 40


def test_every_entry_is_of_an_event(names: set[str]) -> None:
    assert not WORDS - names


def test_every_expression_that_names_an_event_is_known(found: list[tuple[set[str], set[str]]]) -> None:
    assert set().union(*(made for _, made in found)) - MADE.keys() == set()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('self._log.warning("new_one", message="x")', {"new_one"}),
        ('node.log.bug("new_one", error)', {"new_one"}),
        ('partial(self._warn, "new_one")', {"new_one"}),
        ('partial(log.bug, "new_one")', {"new_one"}),
        ('self._faults.report("new_one", None)', {"new_one_failed", "new_one_mended"}),
        ('logging.getLogger().warning("no event")', set()),
        ('self._line("error", "new_one", {})', {"new_one"}),
        ('X, Y = "one_met", "two_met"\nalarms.report(message, service=s, event=X)', {"one_met", "two_met"}),
        ('for event in ("one", "two"): self._expiry.report(event, None)', {"one", "two"}),
    ],
)
def test_an_event_is_found(text: str, names: set[str]) -> None:
    assert logged(Path("sidecar/agent/x.py"), text) == (names, set())


def test_an_expression_is_found() -> None:
    assert logged(Path("sidecar/x.py"), "self.log.info(name, message='x')") == (set(), {"name"})


def test_each_word_once() -> None:
    assert len(WORDS) == len(EVENTS)
    assert {one.kind for one in EVENTS} == {Kind.EVENT}


@pytest.mark.parametrize("one", EVENTS, ids=lambda one: one.word)
def test_what_fails_says_why_and_what_to_do(one: Meaning) -> None:
    word = one.word
    if word.endswith(("_failed", "_expired", "_expiring", "_refused", "_elsewhere", "_moved")) or word in {
        "mitm_suspected",
        "denied",
        "deaf",
        "log_lost",
        "accept_paused",
        "internal_error",
        "store_unavailable",
    }:
        assert one.causes
        assert one.steps
