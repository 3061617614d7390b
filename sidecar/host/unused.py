"""Modules that libraries load and nothing here uses: loaded only when somebody does use them.

How this works. trio loads ``ssl`` for streams that we do not have, and ``hashlib`` loads OpenSSL for what the interpreter
can do itself. Both bring a second ``libcrypto``, the interpreter's own, beside the one of ``cryptography`` that all TLS here
is built on: 5 MB of each process. :func:`postpone` is called before anything else is loaded.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

POSTPONED = ("ssl", "shutil", "tempfile")
"""They load others in turn: ``_ssl``, and four libraries that compress."""

_HASHES = ("_md5", "_sha1", "_sha3", "_blake2")


class _Postponed(ModuleType):
    """Stands for a module until somebody asks for anything in it; then it is loaded, and takes the place."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} is not loaded yet")
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


def postpone() -> None:
    """Postpones :data:`POSTPONED`, and has ``hashlib`` use the interpreter's own implementations, if it has them all (some
    distributions leave them out, for FIPS 140). No effect on what is loaded already."""
    for name in POSTPONED:
        if name not in sys.modules:
            sys.modules[name] = _Postponed(name)
    if "hashlib" not in sys.modules and _has_hashes():
        sys.modules.setdefault("_hashlib", None)  # type: ignore[arg-type]  # so that its import fails, and hashlib goes on


def _has_hashes() -> bool:
    sha2 = ("_sha2",) if sys.version_info >= (3, 12) else ("_sha256", "_sha512")
    return all(find_spec(name) is not None for name in (*_HASHES, *sha2))
