"""The tables of commands of both programs: each command is where the table says, and is loaded when it is used."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import click
import pytest

from certs.cli import commands as certs_commands
from sidecar.cli import commands


@pytest.mark.parametrize("table", [commands.COMMANDS, certs_commands.COMMANDS], ids=["sidecar", "certs"])
def test_each_command_is_where_the_table_says(table: dict[str, str]) -> None:
    for name, place in table.items():
        module, _, attribute = place.partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        assert command.name == name


@pytest.mark.parametrize(
    ("words", "not_loaded"),
    [
        ("sidecar health --help", {"trio", "OpenSSL", "sqlalchemy"}),
        ("sidecar run --help", {"sqlalchemy"}),
        ("certs enrolment --help", {"trio", "OpenSSL", "yaml"}),
        ("certs --version", {"trio", "sqlalchemy", "cryptography"}),
    ],
)
def test_who_asks_for_one_does_not_wait_for_all(words: str, not_loaded: set[str]) -> None:
    program, *arguments = words.split()
    code = (
        f"import gc, sys; sys.argv[1:] = {arguments!r}\nfrom {program}.__main__ import main\n"
        "try: main()\nexcept SystemExit: print('loaded', gc.get_freeze_count() > 1000 and gc.isenabled(), *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    is_enabled, *loaded = done.stdout.partition("loaded ")[2].split()
    assert not_loaded & set(loaded) == set()
    # Nothing was collected while a command was loaded, and something is from then on.
    assert is_enabled == str(arguments[0] != "--version")
