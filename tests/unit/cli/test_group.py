"""Commands are loaded when they are called; mistakes are sentences, and faults of ours are not."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import click
import pytest
from click.testing import CliRunner

import certs.cli.commands
import sidecar.cli
from sidecar.cli.group import CommandGroup
from sidecar.identity.reasons import UsageError


@click.command()
@click.argument("kind")
def fail(kind: str) -> None:
    raise UsageError("one\ntwo") if kind == "mistake" else RuntimeError("a fault")


group = CommandGroup("group", commands_at={"fail": f"{__name__}:fail"})


def test_a_mistake_is_told_line_by_line() -> None:
    sys.modules[__name__].fail = fail  # type: ignore[attr-defined]
    result = CliRunner().invoke(group, ["fail", "mistake"])
    assert (result.exit_code, result.stderr) == (2, "error: one\nerror: two\n")


def test_a_fault_of_ours_is_not_called_the_user_s() -> None:
    result = CliRunner().invoke(group, ["fail", "fault"])
    assert isinstance(result.exception, RuntimeError)


def test_an_unknown_command() -> None:
    result = CliRunner().invoke(group, ["nonsense"])
    assert result.exit_code == 2
    assert "No such command 'nonsense'" in result.stderr


@pytest.mark.parametrize("commands", [sidecar.cli.COMMANDS, certs.cli.commands.COMMANDS], ids=["sidecar", "certs"])
def test_each_command_is_where_the_table_says(commands: dict[str, str]) -> None:
    for name, place in commands.items():
        module, _, attribute = place.partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        assert command.name == name


PROGRAMS = {"sidecar": "sidecar.cli", "certs": "certs.cli.commands"}


@pytest.mark.parametrize(
    ("words", "not_loaded"),
    [
        ("sidecar health --help", {"trio", "OpenSSL", "sqlalchemy"}),
        ("certs enrolment --help", {"trio", "OpenSSL", "pydantic"}),
        ("certs --version", {"trio", "sqlalchemy", "cryptography"}),
    ],
)
def test_who_asks_for_one_does_not_wait_for_all(words: str, not_loaded: set[str]) -> None:
    program, *arguments = words.split()
    code = (
        f"import sys; sys.argv[1:] = {arguments!r}\nfrom {PROGRAMS[program]} import main\n"
        "try: main()\nexcept SystemExit: print('loaded', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not_loaded & set(done.stdout.partition("loaded ")[2].split()) == set()
