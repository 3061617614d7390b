"""``certs`` as people run it, in this process and in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from click.testing import CliRunner, Result

import certs
from certs.cli.commands import main

ROOT = Path(certs.__file__).parent.parent
_OURS = ("CERTS_DIR", "CERTS_STORE", "CERTS_ROOT_PASSPHRASE", "CERTS_NEW_PASSPHRASE")


def run(*arguments: str, stdin: str | bytes = b"", variables: Mapping[str, str] | None = None) -> Result:
    """In this process, with none of the variables that it knows but these. What escapes from the command is a failure of
    the test, not of the command."""
    environment = {**dict.fromkeys(_OURS), **(variables or {})}
    result = CliRunner().invoke(main, arguments, input=stdin, prog_name="certs", env=environment)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "PRIVATE KEY" not in result.output
    return result


def ran(*arguments: str, variables: Mapping[str, str] | None = None) -> str:
    """What it prints, of a command that succeeds."""
    result = run(*arguments, variables=variables)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str, stdin: str | bytes = b"", variables: Mapping[str, str] | None = None) -> str:
    """The sentence of a command that refuses: one line, exit code 2, and nothing else."""
    result = run(*arguments, stdin=stdin, variables=variables)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def spawn(*arguments: str, stdin: bytes = b"", umask: int = 0) -> subprocess.CompletedProcess[bytes]:
    """In a process of its own, with no umask to help."""
    environment = {name: value for name, value in os.environ.items() if name not in _OURS}
    command = [sys.executable, "-W", "error", "-m", "certs", *arguments]
    return subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        env={**environment, "PYTHONPATH": str(ROOT)},
        umask=umask,
        timeout=60,
        check=False,
    )


def everything(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, but for the store's, with its content: to see that nothing changed."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.name.startswith("store.db")
    }
