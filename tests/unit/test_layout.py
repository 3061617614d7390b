"""The architecture of ``sidecar/__init__.py``, enforced: who may import what, and that every source file has its tests.

Everything is read from the files' syntax trees, nothing is imported. Each rule is tried on a bad example too.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

import sidecar

ROOT = Path(__file__).parents[2]
PACKAGES = ("sidecar", "certs")

IO = {"trio", "socket", "ssl", "OpenSSL", "select", "selectors", "subprocess", "threading", "asyncio", "signal"}
"""What pure modules may not import: whatever reaches out of the process, or waits."""

CLOCKS = {
    "time": {"time", "monotonic", "perf_counter", "time_ns", "monotonic_ns", "sleep", "gmtime", "localtime"},
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
}
"""What pure modules may not call: time is an argument."""


@dataclass(frozen=True)
class Source:
    """One file. ``name`` is its module, ``sidecar.cli.run``; ``sidecar`` for a package's ``__init__``."""

    name: str
    tree: ast.Module

    @classmethod
    def read(cls, path: Path, root: Path = ROOT) -> Source:
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        return cls(name, ast.parse(path.read_text(), str(path)))

    def imports(self) -> set[str]:
        """Every module that it imports, wherever in the file; of ``from a import b`` both ``a`` and ``a.b``. What is
        imported for types alone counts too: it tells as much about who knows whom."""
        found = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.name}: imports are absolute"
                found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        return found

    def clocks(self) -> set[str]:
        """Every call of a clock, as it is written."""
        return {
            ast.unparse(node)
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Attribute)
            and node.attr in CLOCKS.get(ast.unparse(node.value).rpartition(".")[2], set())
        } | {
            f"from time import {alias.name}"
            for node in ast.walk(self.tree)
            if isinstance(node, ast.ImportFrom) and node.module == "time"
            for alias in node.names
        }


def python_files(package: str) -> list[Path]:
    return sorted(path for path in (ROOT / package).rglob("*.py") if "__pycache__" not in path.parts)


SOURCES = {source.name: source for package in PACKAGES for source in map(Source.read, python_files(package))}
TLS = {"sidecar.transport.tls", "sidecar.transport.bindings"}
MAX_LINES = 500


def rooms(note: str) -> list[str]:
    """The rooms that the map lists, in its order."""
    return re.findall(r"^\* ``([\w.]+)``: ", note, re.MULTILINE)


MAP = rooms(sidecar.__doc__ or "")


def room(name: str) -> str:
    """The room that a module is in: the longest name of the map that it begins with."""
    inside = [one for one in MAP if name == one or name.startswith(f"{one}.")]
    return max(inside, key=len, default="")


def is_pure(source: Source) -> bool:
    """Whether a module says of itself that it is pure."""
    return re.search(r"\bPure\b", ast.get_docstring(source.tree) or "") is not None


PURE = {name for name, source in SOURCES.items() if is_pure(source)}
PURE_ROOMS = {"sidecar.identity", "sidecar.documents", "sidecar.meanings", "sidecar.policy", "sidecar.config"}


# -- the rules, as functions of what was read, each with what it finds wrong -------------------------------------------


def roots(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def impurities(source: Source) -> set[str]:
    return (roots(source.imports()) & IO) | source.clocks()


def strangers(source: Source, pure: set[str]) -> set[str]:
    """Which modules of ours it imports that are not pure. ``from sidecar import __version__`` imports no module."""
    ours = {name for name in source.imports() if name in SOURCES and not is_package(name)}
    return ours - pure


def upward(name: str, imports: set[str], order: list[str]) -> set[str]:
    """Which imports lead to a room that the map lists below the module's own."""
    here = order.index(room(name)) if room(name) in order else len(order)
    return {other for other in imports if room(other) in order and order.index(room(other)) > here}


def cycles(imports: Mapping[str, set[str]]) -> list[list[str]]:
    """Each way in which a module imports itself through others."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> Iterator[list[str]]:
        if name in path:
            yield [*path[path.index(name) :], name]
        elif name not in done:
            for other in sorted(imports.get(name, set())):
                yield from walk(other, [*path, name])
            done.add(name)

    return [cycle for name in sorted(imports) for cycle in walk(name, [])]


def is_package(name: str) -> bool:
    return (ROOT / name.replace(".", "/") / "__init__.py").is_file()


def test_file(name: str) -> str | None:
    """The file with a module's tests, below tests/unit; None for what holds no logic."""
    package, *parts = name.split(".")
    if not parts or parts[-1] == "__main__" or is_package(name):
        return None
    return "/".join([*([package] if package != "sidecar" else []), *parts[:-1], f"test_{parts[-1]}.py"])


test_file.__test__ = False  # type: ignore[attr-defined]  # pytest: its name begins as tests do


# -- the code keeps them -----------------------------------------------------------------------------------------------


def test_the_map_lists_every_room_and_no_other() -> None:
    assert set(MAP) == {name for name in SOURCES if is_package(name) and name.count(".")}
    assert len(MAP) == len(set(MAP))


def test_every_module_is_in_a_room() -> None:
    assert {name for name in SOURCES if room(name) == ""} == {"sidecar", "certs", "sidecar.__main__", "certs.__main__"}


@pytest.mark.parametrize("name", sorted(name for name in SOURCES if room(name) and not name.endswith("__main__")))
def test_a_room_imports_rooms_above_it_only(name: str) -> None:
    assert upward(name, SOURCES[name].imports() & SOURCES.keys(), MAP) == set()


@pytest.mark.parametrize("name", sorted(name for name in SOURCES if is_package(name)))
def test_the_face_of_a_room_names_what_is_in_it_and_holds_no_code(name: str) -> None:
    """So an import is counted where it is written: nothing is re-exported."""
    note, *code = SOURCES[name].tree.body
    assert isinstance(note, ast.Expr)
    assert all(isinstance(one, ast.Assign) and ast.unparse(one).startswith("__version__ = ") for one in code)
    if name.count("."):
        inside = {other.removeprefix(f"{name}.") for other in SOURCES if other.startswith(f"{name}.")} - {"__main__"}
        assert inside - set(re.findall(r"``(\w+)``", ast.get_docstring(SOURCES[name].tree) or "")) == set()


@pytest.mark.parametrize("path", [path for package in PACKAGES for path in python_files(package)], ids=str)
def test_no_module_is_too_long_to_be_read(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


def test_the_rooms_that_the_map_calls_pure_are() -> None:
    inside = {name for name in SOURCES if room(name) in PURE_ROOMS and not is_package(name)}
    assert inside - PURE == set()
    assert len(PURE) > len(inside) > 15


@pytest.mark.parametrize("name", sorted(PURE))
def test_a_pure_module_neither_reaches_out_nor_looks_at_a_clock(name: str) -> None:
    assert impurities(SOURCES[name]) == set()


@pytest.mark.parametrize("name", sorted(PURE))
def test_a_pure_module_knows_pure_modules_only(name: str) -> None:
    assert strangers(SOURCES[name], PURE) == set()


def test_tls_and_its_bindings_are_the_only_importers_of_openssl() -> None:
    assert {name for name, source in SOURCES.items() if "OpenSSL" in roots(source.imports())} == TLS


def test_unverified_tls_is_for_the_client_s_question_after_bundles_alone() -> None:
    """Whoever asks for it gives up knowing whom he talks to."""
    asking = {
        name
        for name, source in SOURCES.items()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call)
        and "Context" in ast.unparse(node.func)
        and any(keyword.arg == "unverified" for keyword in node.keywords)
    }
    assert asking == {"certs.protocol.client"}


def test_the_sidecar_does_not_know_its_ca() -> None:
    """But for what both ends must agree on."""
    for name, source in SOURCES.items():
        if name.startswith("sidecar"):
            known = {other for other in source.imports() & SOURCES.keys() if room(other).startswith("certs")}
            assert {other for other in known if room(other) != "certs.protocol"} <= {"certs"}, name


def test_nothing_knows_the_command_line_but_itself() -> None:
    for name, source in SOURCES.items():
        if not name.startswith(("sidecar.cli", "certs.cli")) and not name.endswith("__main__"):
            assert not [
                other for other in source.imports() if f"{other}.".startswith(("sidecar.cli.", "certs.cli."))
            ], name


def test_nothing_imports_in_circles() -> None:
    imports = {name: {other for other in source.imports() if other in SOURCES} for name, source in SOURCES.items()}
    # A package's own __init__ runs before anything in it, but knows it only where it says so.
    assert cycles(imports) == []


@pytest.mark.parametrize("name", sorted(name for name in SOURCES if test_file(name)))
def test_every_source_file_has_its_test_file(name: str) -> None:
    """Among the units, or, where its tests start servers, among the integration tests."""
    assert any((ROOT / "tests" / where / str(test_file(name))).is_file() for where in ("unit", "integration"))


def test_no_test_file_is_without_its_source_file() -> None:
    unit = ROOT / "tests" / "unit"
    wanted = {test_file(name) for name in SOURCES} | {Path(__file__).name}
    assert {path.relative_to(unit).as_posix() for path in unit.rglob("test_*.py")} - wanted == set()


SERVERS = {
    "tests.attacks.stage",
    "tests.beds.asking",
    "tests.beds.ca.ca_bed",
    "tests.beds.ca.serving",
    "tests.beds.ca_processes",
    "tests.beds.dev_mesh.dev_bed",
    "tests.beds.mesh.mesh_bed",
    "tests.beds.processes.running",
    "tests.beds.processes.sidecar_process",
}
"""What starts servers or processes for a test."""

SERVED = {
    *("certs/protocol/test_client.py", "certs/service/test_listener.py", "certs/service/test_serve.py"),
    *("dev/test_dev_mesh.py", "proxy/test_inbound.py", "proxy/test_outbound.py", "proxy/test_server.py"),
}
"""Units that do so still. This list may only become shorter."""


def test_what_starts_servers_is_no_unit() -> None:
    unit = ROOT / "tests" / "unit"
    using = {path.relative_to(unit).as_posix(): Source.read(path).imports() & SERVERS for path in unit.rglob("*.py")}
    assert {name for name, used in using.items() if used} - SERVED == set()


def test_no_module_shadows_the_standard_library() -> None:
    names = {part for name in SOURCES for part in name.split(".")} - {"__main__"}
    assert names & sys.stdlib_module_names == set()
    tops = {path.stem for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert tops & sys.stdlib_module_names == set()


# -- and the rules find what breaks them -------------------------------------------------------------------------------


def bad(text: str) -> Source:
    return Source("sidecar.bad", ast.parse(text))


@pytest.mark.parametrize(
    "text",
    [
        "import trio",
        "import socket as s",
        "from OpenSSL import SSL",
        "import trio.lowlevel",
        "def f():\n    import trio",
        "if TYPE_CHECKING:\n    from trio import Event",
        "import time\ndef f(): return time.time()",
        "import time\nclock = time.monotonic",
        "from time import monotonic",
        "from datetime import datetime\nnow = datetime.now()",
        "import datetime\nnow = datetime.datetime.now(tz=datetime.UTC)",
        "import datetime\ntoday = datetime.date.today()",
    ],
)
def test_an_impure_module_is_found(text: str) -> None:
    assert impurities(bad(text)) != set()


@pytest.mark.parametrize(
    "text",
    ["import re", "from datetime import datetime, timedelta", "def f(now): return now + record.time", "import trionyx"],
)
def test_a_pure_module_is_not(text: str) -> None:
    assert impurities(bad(text)) == set()


def test_a_stranger_is_found() -> None:
    pure = {"sidecar.policy.mesh", "sidecar.policy.decide"}
    known = "from sidecar.policy import mesh\nfrom sidecar.policy.mesh import Mesh\nfrom sidecar.policy.decide import x"
    assert strangers(bad(known), pure) == set()
    assert strangers(bad("from sidecar.relay import relay"), pure) == {"sidecar.relay.relay"}
    assert "sidecar.transport.tls" in strangers(bad("from sidecar.transport.tls import Context"), pure)


def test_a_circle_is_found() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c", "a"]]
    assert cycles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert cycles({"a": {"a"}}) == [["a", "a"]]


def test_a_relative_import_is_refused() -> None:
    with pytest.raises(AssertionError, match="absolute"):
        bad("from . import mesh").imports()


def test_where_a_module_s_tests_are() -> None:
    assert test_file("sidecar.relay.relay") == "relay/test_relay.py"
    assert test_file("certs.cli.serve") == "certs/cli/test_serve.py"
    assert test_file("sidecar") is test_file("sidecar.cli") is test_file("sidecar.__main__") is None


def test_a_way_upward_is_found() -> None:
    order = ["sidecar.identity", "sidecar.proxy", "certs.protocol"]
    assert upward("sidecar.identity.judge", {"sidecar.proxy.node", "sidecar.identity.spiffe"}, order) == {
        "sidecar.proxy.node"
    }
    assert upward("sidecar.proxy.node", {"sidecar.identity.judge"}, order) == set()
    assert rooms("Map:\n\n* ``a.b``: what\n* ``c``: what, like ``d``\n") == ["a.b", "c"]
