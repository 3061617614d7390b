"""``sidecar connect``: what it refuses to begin with, and what it tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sidecar.cli import connect as module
from sidecar.cli.commands import main


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(main, ["connect", *arguments], prog_name="sidecar")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.mark.parametrize(
    ("listen", "why"),
    [
        ("0.0.0.0:5432", "is not on loopback: everybody who reaches it could use the pass"),
        ("192.0.2.1:5432", "is not on loopback"),
        ("db.example.org:5432", "is not on loopback"),
        ("5432", "is no host:port"),
    ],
)
def test_a_port_that_others_could_reach(listen: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "keep_memory_private", lambda: None)
    monkeypatch.setattr(module, "load", lambda *_: pytest.fail("the pass was read"))
    result = run("alice.pass", "--listen", listen)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --listen: ")
    assert why in result.stderr


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:5432", "[::1]:5432", "127.0.0.2:1"])
def test_loopback_is_taken(listen: str) -> None:
    assert str(module._local(listen)) == listen


def test_a_file_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "keep_memory_private", lambda: None)
    result = run(str(tmp_path / "none"))
    assert (result.exit_code, result.stderr) == (
        2,
        f"error: {tmp_path / 'none'}: cannot read the pass: No such file or directory\n",
    )


def test_options_of_the_program_are_the_program_s(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []

    class Recorded:
        def __init__(self, person: Any, *_: Any, any_user: bool) -> None:
            heard.append(any_user)

        async def run(self, words: Any, _environ: Any, _ready: Any) -> int:
            heard.append(words)
            return 7

    class Nobody:
        name, at = "user/alice", "x:1"

    monkeypatch.setattr(module, "keep_memory_private", lambda: None)
    monkeypatch.setattr(module, "load", lambda *_: Nobody())
    monkeypatch.setattr(module, "Session", Recorded)
    result = run("alice.pass", "--", "psql", "--listen", "x", "-h", "127.0.0.1")
    assert result.exit_code == 7
    assert heard == [False, ("psql", "--listen", "x", "-h", "127.0.0.1")]
