"""Modules that nothing here uses: not loaded by a sidecar that runs, and loaded for whoever does use them."""

from __future__ import annotations

import subprocess
import sys

import pytest

SIDECAR = """
import sys
from sidecar.host import unused
unused.postpone()
import sidecar.cli.run
"""


def loaded_by(code: str) -> list[str]:
    """What a fresh interpreter prints, line by line."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_sidecar_has_one_cryptographic_library() -> None:
    code = "print(*(name for name in ('_ssl', '_bz2', '_lzma') if name in sys.modules))\n"
    assert loaded_by(SIDECAR + code + "print(sys.modules['_hashlib'])") == ["", "None"]
    # The twin: without it, there are two.
    code = "import sys\nimport sidecar.cli.run\nprint('_ssl' in sys.modules, sys.modules['_hashlib'] is not None)"
    assert loaded_by(code) == ["True True"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists a process's libraries there")
def test_no_second_library_is_in_its_memory() -> None:
    code = "print(sum(name in open('/proc/self/maps').read() for name in ('libcrypto.', 'libssl.')))"
    assert loaded_by(SIDECAR + code) == ["0"]


def test_who_uses_one_has_it() -> None:
    code = """
import ssl, tempfile
from shutil import which
context = ssl.create_default_context()
print(isinstance(context, sys.modules['ssl'].SSLContext), ssl.__name__, type(sys.modules['ssl']).__name__)
print(tempfile.gettempdir() != '', callable(which), hasattr(ssl, 'no_such_name'))
import trio
try: trio._ssl._stdlib_ssl.MemoryBIO().read()
except Exception: raise SystemExit(1)
"""
    assert loaded_by(SIDECAR + code) == ["True ssl module", "True True False"]


def test_hashes_are_what_they_were() -> None:
    code = """
import hashlib, hmac
print(hashlib.sha256(b'abc').hexdigest())
print(hmac.new(b'key', b'abc', 'sha256').hexdigest())
print(*(hashlib.new(name, b'abc').hexdigest() for name in sorted(hashlib.algorithms_guaranteed) if 'shake' not in name))
"""
    ours = loaded_by(SIDECAR + code)
    assert ours[0] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert ours == loaded_by("import sys\n" + code)


def test_an_interpreter_without_hashes_of_its_own_keeps_openssl_s() -> None:
    code = """
import sys
from sidecar.host import unused
unused.find_spec = lambda name: None
unused.postpone()
import hashlib
print(sys.modules['_hashlib'] is not None, hashlib.sha256(b'').hexdigest()[:8])
"""
    assert loaded_by(code) == ["True e3b0c442"]


def test_what_is_loaded_already_stays() -> None:
    code = """
import sys, ssl, hashlib
before = ssl, sys.modules['_hashlib']
from sidecar.host import unused
unused.postpone()
print(before == (sys.modules['ssl'], sys.modules['_hashlib']))
"""
    assert loaded_by(code) == ["True"]
