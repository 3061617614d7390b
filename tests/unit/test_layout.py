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
TLS = "sidecar.transport.tls"


def pure_modules(note: str) -> set[str]:
    """The modules that the architecture note lists as pure."""
    listed = re.search(r"\* \*\*pure\*\*[^:]*:(.*?)\n\* ", note, re.DOTALL)
    assert listed, "the note in sidecar/__init__.py lists the pure modules"
    return {f"sidecar.{name}" for name in re.findall(r"``([\w.]+)``", listed[1])} - {"sidecar.inject"}


PURE = pure_modules(sidecar.__doc__ or "")


# -- the rules, as functions of what was read, each with what it finds wrong -------------------------------------------


def roots(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def impurities(source: Source) -> set[str]:
    return (roots(source.imports()) & IO) | source.clocks()


def strangers(source: Source, pure: set[str]) -> set[str]:
    """Which modules of ours it imports that are not pure. ``from sidecar import __version__`` is nobody's module."""
    ours = {name for name in source.imports() if name.startswith("sidecar.") and name != "sidecar.__version__"}
    return {name for name in ours if name not in pure and name.rpartition(".")[0] not in pure}


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


def test_file(name: str) -> str | None:
    """The file with a module's tests; None for what holds no logic."""
    package, *parts = name.split(".")
    if not parts or parts[-1] == "__main__" or name in packages():
        return None
    return "_".join(["test", *([package] if package != "sidecar" else []), *parts]) + ".py"


test_file.__test__ = False  # type: ignore[attr-defined]  # pytest: its name begins as tests do


def packages() -> set[str]:
    return {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in ROOT.glob("*/**/__init__.py")}


# -- the code keeps them -----------------------------------------------------------------------------------------------


def test_the_note_lists_modules_that_there_are() -> None:
    assert len(PURE) > 5
    assert SOURCES.keys() >= PURE
    note = set(re.findall(r"``(\w+)``", (sidecar.__doc__ or "").partition("The rooms")[2]))
    top = {name.split(".")[1] for name in SOURCES if name.startswith("sidecar.")} - {"__main__"}
    assert top - note == set(), "a module without a room: say in sidecar/__init__.py which it has"


@pytest.mark.parametrize("name", sorted(PURE))
def test_a_pure_module_neither_reaches_out_nor_looks_at_a_clock(name: str) -> None:
    assert impurities(SOURCES[name]) == set()


@pytest.mark.parametrize("name", sorted(PURE))
def test_a_pure_module_knows_pure_modules_only(name: str) -> None:
    assert strangers(SOURCES[name], PURE) == set()


def test_tls_is_the_only_importer_of_openssl() -> None:
    assert {name for name, source in SOURCES.items() if "OpenSSL" in roots(source.imports())} == {TLS}


EDGE = {
    f"sidecar.{name}" for name in ("gate", "handshake", "http1", "logs", "process", "sockets", "stream", "tls", "watch")
}
"""What both programs stand on: TLS has one implementation, and so do sockets, the log and how a process keeps its keys."""

CERTS_PURE = {
    f"certs.{name}"
    for name in [
        "audit",
        "encodings",
        "fields",
        "inspection",
        "issuance",
        "limits",
        "passes",
        "pemfiles",
        "profile",
        "trust",
    ]
}


@pytest.mark.parametrize("name", sorted(name for name in SOURCES if name.startswith("certs")))
def test_certs_knows_pure_modules_and_the_edge_of_sidecar_only(name: str) -> None:
    shared = {"sidecar.cli.group"} if name == "certs.cli" else set()
    assert strangers(SOURCES[name], PURE | EDGE | shared) == set()


@pytest.mark.parametrize("name", sorted(CERTS_PURE))
def test_a_pure_module_of_certs_is_pure(name: str) -> None:
    assert impurities(SOURCES[name]) == set()
    assert strangers(SOURCES[name], PURE) == set()
    ours = {other for other in SOURCES[name].imports() if other.startswith("certs.")}
    assert {other for other in ours if other not in CERTS_PURE and other.rpartition(".")[0] not in CERTS_PURE} == set()


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
    """But for the client, and pure modules that both ends must agree on: what is in a certificate, the signed documents,
    and how a token reads."""
    allowed = {
        "certs.protocol.client",
        "certs.protocol.x509_profile",
        "certs.protocol.documents",
        "certs.protocol.enrolment",
    }
    for name, source in SOURCES.items():
        if name.startswith("sidecar"):
            known = {other for other in source.imports() if other.split(".")[0] == "certs"}
            assert {other for other in known if ".".join(other.split(".")[:2]) not in {*allowed, "certs"}} == set(), (
                name
            )


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


AWAITED = {"sidecar.cli.dev", "sidecar.dev.dev_mesh", "sidecar.relay.poller", "sidecar.relay.relay"}
"""Tested so far by integration, properties and attacks alone. This list may only become shorter."""


@pytest.mark.parametrize("name", sorted(name for name in SOURCES if test_file(name) and name not in AWAITED))
def test_every_source_file_has_its_test_file(name: str) -> None:
    """Among the units, or, where its tests start servers, among the integration tests."""
    assert any((ROOT / "tests" / where / str(test_file(name))).is_file() for where in ("unit", "integration"))


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
    "tests.harness.mesh_bed",
    "tests.devmesh.dev_bed",
}
"""What starts servers or processes for a test."""

SERVED = {
    *("test_certs_client", "test_certs_connections", "test_certs_serve"),
    *("test_dev", "test_inbound", "test_outbound", "test_server"),
}
"""Units that do so still. This list may only become shorter."""


def test_what_starts_servers_is_no_unit() -> None:
    files = [path for path in (ROOT / "tests" / "unit").rglob("test_*.py") if path.stem not in SERVED]
    assert {path.stem: used for path in files if (used := Source.read(path).imports() & SERVERS)} == {}


def test_no_test_file_is_without_its_source_file() -> None:
    wanted = {test_file(name) for name in SOURCES} | {Path(__file__).name}
    assert {path.name for path in (ROOT / "tests" / "unit").glob("test_*.py")} - wanted == set()


def test_no_module_shadows_the_standard_library() -> None:
    names = {part for name in SOURCES for part in name.split(".")} - {"__main__"}
    # By name only, since imports are absolute; these two are inside of certs, and DESIGN names the first.
    assert names & sys.stdlib_module_names <= {"profile", "encodings"}
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
    assert (
        strangers(
            bad("from sidecar import mesh\nfrom sidecar.policy.mesh import Mesh\nfrom sidecar.policy.decide import x"),
            pure,
        )
        == set()
    )
    assert strangers(bad("from sidecar import relay"), pure) == {"sidecar.relay.relay"}
    assert "sidecar.transport.tls" in strangers(bad("from sidecar.transport.tls import Context"), pure)


def test_a_circle_is_found() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c", "a"]]
    assert cycles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert cycles({"a": {"a"}}) == [["a", "a"]]


def test_a_relative_import_is_refused() -> None:
    with pytest.raises(AssertionError, match="absolute"):
        bad("from . import mesh").imports()


def test_where_a_module_s_tests_are() -> None:
    assert test_file("sidecar.relay.relay") == "test_relay.py"
    assert test_file("sidecar.cli.run") == "test_cli_run.py"
    assert test_file("certs.protocol.x509_profile") == "test_certs_profile.py"
    assert test_file("sidecar") is test_file("sidecar.cli") is test_file("sidecar.__main__") is None
