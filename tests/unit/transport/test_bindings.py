"""An upgrade of pyOpenSSL that lacks a private name stops the start with a sentence, whichever name it is."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from OpenSSL import SSL, crypto

from sidecar.identity.reasons import UsageError
from sidecar.transport import bindings, tls, tls_data
from sidecar.transport.bindings import REQUIRED

ROOT = Path(__file__).parents[3]
MODULES = (bindings, tls, tls_data)
OWN = {"self", "channel"}
"""What private attributes of our own classes are read through, in these modules."""


def look_up() -> ModuleType:
    """Imports the module anew, beside the one that is in use."""
    spec = spec_from_file_location("bindings_anew", str(bindings.__file__))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Without:
    """An object without one of its attributes."""

    def __init__(self, whole: object, name: str) -> None:
        self._whole, self._name = whole, name

    def __getattr__(self, name: str) -> Any:
        if name == self._name:
            raise AttributeError(name)
        return getattr(self._whole, name)


def forgetful(cls: Any, name: str) -> Callable[..., None]:
    """A constructor whose objects lack an attribute in the end."""
    construct = cls.__init__

    def init(self: Any, *arguments: Any) -> None:
        construct(self, *arguments)
        delattr(self, name)

    return init


OBJECTS = {"context": SSL.Context, "connection": SSL.Connection, "certificate": crypto.X509}


def remove(patch: pytest.MonkeyPatch, required: str) -> None:
    owner, _, name = required.partition(".")
    if owner in OBJECTS:
        patch.setattr(OBJECTS[owner], "__init__", forgetful(OBJECTS[owner], name))
    elif owner in ("lib", "ffi"):
        patch.setattr(SSL, f"_{owner}", Without(vars(SSL)[f"_{owner}"], name))
    else:
        patch.delattr({"SSL": SSL, "Connection": SSL.Connection}[owner], name)


@pytest.mark.parametrize("required", REQUIRED)
def test_whatever_is_missing_is_named_at_import(monkeypatch: pytest.MonkeyPatch, required: str) -> None:
    remove(monkeypatch, required)
    with pytest.raises(UsageError) as refused:
        look_up()
    assert f" has no {required}, which TLS is built on here: install the versions that " in str(refused.value)


def test_with_all_of_them_it_is_imported() -> None:
    anew = look_up()
    assert (anew.lib, anew.ffi) == (bindings.lib, bindings.ffi)


# -- the list is true --------------------------------------------------------------------------------------------------


def used(module: ModuleType) -> set[str]:
    """The private names that a module uses of others' objects: of the low-level bindings as in the list; of all else
    without the owner."""
    found = set()
    for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text())):
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            if owner in ("_lib", "_ffi", "lib", "ffi"):
                found.add(f"{owner.removeprefix('_')}.{node.attr}")
            elif node.attr.startswith("_") and not node.attr.startswith("__") and owner not in OWN:
                found.add(node.attr)
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value).startswith("vars("):
            found.add(str(ast.literal_eval(node.slice)))
    return found


def listed() -> set[str]:
    return {name if name.startswith(("lib.", "ffi.")) else name.partition(".")[2] for name in REQUIRED}


def test_every_private_name_in_use_is_required_and_every_required_one_is_used() -> None:
    in_use = set().union(*map(used, MODULES))
    assert in_use - listed() == set(), "used, and not looked up at start"
    assert listed() - in_use == set(), "looked up at start, and not used"
    assert len(REQUIRED) == len(set(REQUIRED)) == len(listed())


@pytest.mark.parametrize(
    "text",
    [
        "_lib.SSL_new(x)",
        "lib.SSL_new(x)",
        "_ffi.gc(x)",
        "connection._socket",
        "SSL.Context._used",
        "vars(SSL)['_util']",
    ],
)
def test_a_private_name_that_is_not_required_is_found(tmp_path: Path, text: str) -> None:
    module = ModuleType("bad")
    module.__file__ = str(tmp_path / "bad.py")
    (tmp_path / "bad.py").write_text(text)
    assert used(module) - listed() != set()


def test_a_private_name_that_is_required_or_our_own_is_not() -> None:
    assert {"lib.SSL_read", "_reverse_mapping", "_lib"} <= set().union(*map(used, MODULES))
    assert not {"_problem", "_params", "_alpn"} & set().union(*map(used, MODULES))


# -- both programs -----------------------------------------------------------------------------------------------------

PREPARED = """
import sys
from OpenSSL import SSL
exec(sys.argv[1])
sys.argv = sys.argv[2:]
from {program} import main
main()
"""
CHANGES = {
    "a function": (
        "whole = SSL._lib\n"
        "class Without:\n"
        "    def __getattr__(self, name):\n"
        "        if name == 'SSL_get0_verified_chain': raise AttributeError(name)\n"
        "        return getattr(whole, name)\n"
        "SSL._lib = Without()",
        "lib.SSL_get0_verified_chain",
    ),
    "an attribute": (
        "construct = SSL.Connection.__init__\n"
        "def init(self, *arguments):\n"
        "    construct(self, *arguments)\n"
        "    del self._into_ssl\n"
        "SSL.Connection.__init__ = init",
        "connection._into_ssl",
    ),
}
PROGRAMS = {
    "sidecar run": ("sidecar.__main__", ["sidecar", "run", "none.yaml"]),
    "certs serve": ("certs.cli.commands", ["certs", "serve", "none", "--mesh", "none.yaml"]),
}


def start(program: str, change: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    module, arguments = PROGRAMS[program]
    command = [sys.executable, "-c", PREPARED.replace("{program}", module), change, *arguments]
    environ = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_start_ends_with_a_sentence(program: str, change: str, tmp_path: Path) -> None:
    code, name = CHANGES[change]
    done = start(program, code, tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the installed pyOpenSSL ")
    assert f" has no {name}, " in done.stderr
    assert len(done.stderr.splitlines()) == 1, "no traceback"


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_start_with_nothing_missing_goes_on_to_its_files(program: str, tmp_path: Path) -> None:
    done = start(program, "", tmp_path)
    assert done.returncode == 2
    assert "pyOpenSSL" not in done.stderr
    assert "none" in done.stderr
