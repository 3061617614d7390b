"""The engine finds what it says: ids that survive reformatting, and mutations that change what is meant and nothing
else."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mutants import modules
from tests.mutants.bed import compiled
from tests.mutants.modules import MissingError
from tests.mutants.mutant import site
from tests.mutants.patch import exchange, living_functions
from tests.mutants.sites import is_refusal, sites

TEXT = '''
"""A module."""
LIMIT = ("a", "b")

class Desk:
    def check(self, one, more):
        if one is None or more > 3:   # both
            raise ValueError("no")
        if len(one) != 2:
            more.append("two")
            return None
        for each in [x for x in more if x != one]:
            if each == b"yes":
                continue
            if each < 0:
                drop(each)
                continue
        return one == more

    async def ask(self, key):
        with trio.fail_after(3), Deadline.after(3):
            await hear(key, secret=True)
        required = 0 if key else A | B
        os.open(key, 0o600)
        return PATTERN.fullmatch(key) and key not in {"."}
'''


def found(text: str = TEXT) -> dict[str, str]:
    return {one.id.removeprefix("m:"): one.what for one in sites("m", ast.parse(text))}


def mutated(text: str, *ids: str) -> str:
    tree = ast.parse(text)
    known = {one.id: one for one in sites("m", tree)}
    for id_ in ids:
        known[f"m:{id_}"].apply()
    return ast.unparse(ast.fix_missing_locations(tree))


def automatic(text: str = TEXT) -> set[str]:
    return {one.id.removeprefix("m:") for one in sites("m", ast.parse(text)) if one.is_automatic}


def test_what_makes_a_mutant_by_itself() -> None:
    assert automatic() == {
        *(f"Desk.check:guard:{n}" for n in (1, 2, 3)),
        *(f"Desk.check:operand:{n}" for n in (1, 2)),
        *(f"Desk.check:boundary:{n}" for n in (1, 2, 3)),
        *(f"Desk.check:negated:{n}" for n in (1, 2)),
        *(f"Desk.ask:operand:{n}" for n in (1, 2)),
    }


@pytest.mark.parametrize(("text", "refuses"), [("return 403, 'no'", True), ("return 200, 'yes'", False)])
def test_a_status_of_http_with_its_words_is_a_refusal(text: str, refuses: bool) -> None:
    assert is_refusal(ast.parse(f"def one():\n {text}").body[0].body) is refuses  # type: ignore[attr-defined]


def test_an_id_survives_reformatting_comments_and_another_place_in_the_file() -> None:
    again = "import trio\n\n\n" + ast.unparse(ast.parse(TEXT)).replace("\n", "\n\n")
    assert found(again) == found()


def test_another_function_does_not_shift_it_and_a_named_kind_is_not_shifted_by_another_call() -> None:
    before = found()
    after = found(TEXT.replace("class Desk:", "class Desk:\n    def new(self):\n        if self: raise E\n"))
    assert before.items() <= after.items()
    after = found(TEXT.replace("            await hear", "            other(key)\n            await hear"))
    assert after["Desk.ask:call[hear]:1"] == before["Desk.ask:call[hear]:1"]


@pytest.mark.parametrize(
    ("id_", "old", "new"),
    [
        ("Desk.check:guard:1", "if one is None or more > 3:", "if False:"),
        ("Desk.check:operand:1", "if one is None or more > 3:", "if more > 3:"),
        ("Desk.check:operand:2", "if one is None or more > 3:", "if one is None:"),
        ("Desk.check:boundary:1", "more > 3", "more >= 3"),
        ("Desk.check:boundary:2", "len(one) != 2", "len(one) < 2"),
        ("Desk.check:negated:1", "x != one", "x == one"),
        ("Desk.check:negated:2", "return one == more", "return one != more"),
        ("Desk.check:branch:1", "if each == b'yes':", "if False:"),
        ("Desk.check:always:1", "if one is None or more > 3:", "if True:"),
        ("Desk.check:call[append]:1", "more.append('two')", "pass"),
        ("Desk.check:filter:1", " if x != one", ""),
        ("Desk.check:lenient:1", "each == b'yes'", "each.strip().lower() == b'yes'"),
        ("Desk.check:raise:1", "raise ValueError('no')", "return None"),
        ("Desk.ask:call[hear]:1", "await hear(key, secret=True)", "pass"),
        ("Desk.ask:drop[hear.secret]:1", "hear(key, secret=True)", "hear(key)"),
        ("Desk.ask:flip[hear.secret]:1", "secret=True", "secret=False"),
        ("Desk.ask:none[hear.1]:1", "hear(key,", "hear(None,"),
        ("Desk.ask:deadline[fail_after]:1", "trio.fail_after(3)", "trio.CancelScope()"),
        ("Desk.ask:deadline[after]:1", "Deadline.after(3)", "trio.CancelScope()"),
        ("Desk.ask:then:1", "0 if key else A | B", "0"),
        ("Desk.ask:flag[A]:1", "A | B", "B"),
        ("Desk.ask:mode[open.2]:1", "384", "420"),
        ("Desk.ask:match[PATTERN]:1", "fullmatch", "match"),
        ("Desk.ask:operand:2", " and key not in {'.'}", ""),
        ("<module>:element:1", "('a', 'b')", "('b',)"),
    ],
)
def test_a_mutation_changes_what_it_says_and_nothing_else(id_: str, old: str, new: str) -> None:
    plain = ast.unparse(ast.parse(TEXT))
    assert plain.count(old) == 1
    assert mutated(TEXT, id_) == plain.replace(old, new)


def test_a_combination_is_all_of_them() -> None:
    plain = ast.unparse(ast.parse(TEXT))
    both = mutated(TEXT, "Desk.check:guard:1", "Desk.ask:call[hear]:1")
    assert both == plain.replace("if one is None or more > 3:", "if False:").replace(
        "await hear(key, secret=True)", "pass"
    )


def test_an_id_that_there_is_not_is_named_with_those_that_there_are() -> None:
    with pytest.raises(MissingError, match=r"no mutant 'judge:judge:guard:99' in the code; .*judge:judge:guard:1,"):
        site("judge:judge:guard:99")


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Another project: ``house("sidecar/room/judge.py")`` makes an empty file of it."""
    monkeypatch.setattr(modules, "ROOT", tmp_path)
    modules.files.cache_clear()

    def make(name: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        modules.files.cache_clear()

    return make


@pytest.fixture(autouse=True)
def _fresh() -> object:
    yield
    modules.files.cache_clear()


def test_a_module_is_found_in_any_room_and_a_missing_or_ambiguous_one_is_an_error(house: Callable[[str], None]) -> None:
    with pytest.raises(MissingError, match="no module 'judge' in sidecar/: if it was renamed"):
        modules.find("judge")
    house("sidecar/identity/judge.py")
    house("certs/judge.py")
    house("sidecar/cli/judge.py")
    assert modules.dotted(modules.find("judge")) == "sidecar.identity.judge"
    assert modules.dotted(modules.find("certs/judge")) == "certs.judge"
    house("sidecar/proxy/judge.py")
    with pytest.raises(MissingError, match=r"ambiguous: sidecar/identity/judge\.py, sidecar/proxy/judge\.py"):
        modules.find("judge")


def test_what_was_renamed_has_its_new_id(house: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "RENAMED", {"standing": ("bundles", "revocations"), "judge": ("never_made",)})
    monkeypatch.setattr(modules, "RENAMED_NAMES", {"Terms": "VerifyParams"})
    for name in ("judge", "room/bundles", "room/revocations"):
        house(f"sidecar/{name}.py")
    known = {"revocations:revoke:drop[VerifyParams.3]:1"}
    assert modules.today("standing:revoke:drop[Terms.3]:1", known) in known
    assert modules.today("judge:judge:guard:1", known) == "judge:judge:guard:1"
    with pytest.raises(MissingError, match="no module 'other'"):
        modules.names("other")


def exchanged(tmp_path: Path, id_: str) -> object:
    """The exchange of a mutant in a module that runs, and the module's names."""
    path = tmp_path / "running.py"
    path.write_text(
        "from functools import lru_cache\n"
        "LIMIT = (1, 2)\n"
        "@lru_cache\n"
        "def small(n):\n"
        "    if n > 3:\n"
        "        return None\n"
        "    return n\n"
        "class Desk:\n"
        "    most = sum((1, 2))\n"
        "    def check(self, n):\n"
        "        return any(n == other for other in LIMIT)\n"
    )
    original = compiled(ast.parse(path.read_text()), path)
    names: dict[str, object] = {}
    exec(original, names)  # noqa: S102
    tree = ast.parse(path.read_text())
    next(one for one in sites("m", tree) if one.id == f"m:{id_}").apply()
    found = exchange(living_functions(tmp_path), original, compiled(tree, path))
    for function, code in found or []:
        function.__code__ = code
    return names if found else None


def test_a_function_that_is_imported_already_runs_the_changed_code(tmp_path: Path) -> None:
    names: object = exchanged(tmp_path, "small:guard:1")
    assert isinstance(names, dict)
    assert names["small"](7) == 7, "also under a decorator that keeps it"
    names = exchanged(tmp_path, "Desk.check:negated:1")
    assert isinstance(names, dict)
    assert names["Desk"]().check(3)


@pytest.mark.parametrize("id_", ["<module>:element:1", "Desk:element:1"])
def test_what_ran_at_import_cannot_be_exchanged(tmp_path: Path, id_: str) -> None:
    assert exchanged(tmp_path, id_) is None
