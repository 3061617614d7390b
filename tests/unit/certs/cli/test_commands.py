"""The table of commands: nothing of the CA is loaded before a command is used, and its mistakes are sentences."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from certs.cli.commands import COMMANDS, main
from certs.protocol.documents import UntrustedError
from certs.store.store import StoreUnavailableError
from sidecar.host import process


def test_the_table_alone_loads_neither_the_commands_nor_what_they_use() -> None:
    code = "import sys, certs.cli.commands; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name for name in done.stdout.split() if name.startswith("certs")}
    assert loaded == {"certs", "certs.cli", "certs.cli.commands"}


def test_the_map_of_certs_loads_no_room() -> None:
    code = "import sys, certs; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name for name in done.stdout.split() if name.startswith(("certs", "sidecar"))} == {"certs"}


def test_every_command_is_listed() -> None:
    listed = CliRunner().invoke(main, ["--help"]).stdout
    assert [name for name in COMMANDS if f"\n  {name}" not in listed] == []


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (StoreUnavailableError("the store x cannot be read: gone"), "the store x cannot be read: gone"),
        (UntrustedError("it is not signed"), "is not of this CA: it is not signed; is it the store of another CA?"),
    ],
)
def test_a_store_that_is_gone_or_another_s_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, fault: Exception, sentence: str
) -> None:
    @click.command("audit")
    def audit() -> None:
        raise fault

    monkeypatch.setattr("certs.cli.records.audit", audit)
    result = CliRunner().invoke(main, ["audit"])
    assert (result.exit_code, result.stderr.startswith("error: ")) == (2, True)
    assert sentence in result.stderr


def test_any_other_error_is_a_fault_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command("audit")
    def audit() -> None:
        raise KeyError("x")

    monkeypatch.setattr("certs.cli.records.audit", audit)
    assert isinstance(CliRunner().invoke(main, ["audit"]).exception, KeyError)


def test_every_command_keeps_its_memory_private(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    private: list[str] = []
    monkeypatch.setattr(process, "keep_memory_private", lambda: private.append("private"))
    for words in (["init", "ca", "--trust-domain", "shop.internal"], ["rotate-root", "ca", "--force"]):
        private.clear()
        assert CliRunner().invoke(main, words).exit_code == 0
        assert private == ["private"]
