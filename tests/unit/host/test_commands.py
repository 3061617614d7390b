"""Commands are loaded when they are called; mistakes are sentences, and faults of ours are not."""

from __future__ import annotations

import gc
import sys

import click
from click.testing import CliRunner

from sidecar.host.commands import CommandGroup
from sidecar.identity.reasons import UsageError


@click.command()
@click.argument("kind")
def fail(kind: str) -> None:
    raise UsageError("one\ntwo\x1b[2J\u202eé") if kind == "mistake" else RuntimeError("a fault")


group = CommandGroup("group", commands_at={"fail": f"{__name__}:fail"})


def test_a_mistake_is_told_line_by_line() -> None:
    sys.modules[__name__].fail = fail  # type: ignore[attr-defined]
    result = CliRunner().invoke(group, ["fail", "mistake"])
    assert (result.exit_code, result.stderr) == (2, "error: one\nerror: two\\x1b[2J\\u202eé\n")


def test_a_fault_of_ours_is_not_called_the_user_s() -> None:
    result = CliRunner().invoke(group, ["fail", "fault"])
    assert isinstance(result.exception, RuntimeError)


def test_an_unknown_command() -> None:
    result = CliRunner().invoke(group, ["nonsense"])
    assert result.exit_code == 2
    assert "No such command 'nonsense'" in result.stderr


def test_the_collector_starts_once_the_command_is_loaded() -> None:
    try:
        gc.disable()
        CliRunner().invoke(group, ["nonsense"])
        assert not gc.isenabled()
        CliRunner().invoke(group, ["fail", "mistake"])
        assert gc.isenabled()
        assert gc.get_freeze_count() > 1000
    finally:
        gc.unfreeze()
        gc.enable()


def test_a_collector_that_runs_stays_as_it_is() -> None:
    CliRunner().invoke(group, ["fail", "mistake"])
    assert (gc.isenabled(), gc.get_freeze_count()) == (True, 0)
