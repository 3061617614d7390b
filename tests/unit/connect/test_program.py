"""The program of a pass: started, told of signals, ended; a shell's exit codes."""

from __future__ import annotations

import os
import signal
import sys

import pytest
import trio

from sidecar.connect import program
from sidecar.identity.reasons import UsageError
from tests.beds.patience import PATIENCE

SLEEPS = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.mark.parametrize(("returned", "code"), [(0, 0), (7, 7), (-15, 143), (-9, 137)])
def test_exit_codes(returned: int, code: int) -> None:
    assert program.exit_code(returned) == code


@pytest.mark.parametrize("words", [["no-such-program-here"], ["/etc/passwd"], ["a\0b"]])
async def test_what_cannot_be_started(words: list[str]) -> None:
    with pytest.raises(UsageError, match=r"^cannot start "):
        await program.start(words, {})


async def test_it_has_the_environment_that_it_is_given() -> None:
    check = "import os, sys; sys.exit(int(os.environ['CODE']))"
    process = await program.start([sys.executable, "-c", check], {**os.environ, "CODE": "5"})
    assert await process.wait() == 5


async def test_a_signal_is_passed_on_and_one_that_comes_late_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "_is_in_front", lambda: False)
    process = await program.start(SLEEPS, os.environ)
    program.forward(process, signal.SIGUSR1)
    assert await process.wait() == -signal.SIGUSR1
    program.forward(process, signal.SIGUSR1)


async def test_what_the_terminal_has_sent_already_is_not_sent_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "_is_in_front", lambda: True)
    process = await program.start(SLEEPS, os.environ)
    program.forward(process, signal.SIGINT)
    program.forward(process, signal.SIGQUIT)
    program.forward(process, signal.SIGTERM)
    assert await process.wait() == -signal.SIGTERM


async def test_it_is_asked_to_end_and_then_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    process = await program.start(SLEEPS, os.environ)
    await program.stop(process)
    assert process.returncode == -signal.SIGTERM
    await program.stop(process)  # it has ended
    monkeypatch.setattr(program, "STOP_SECONDS", 0)
    process = await program.start(SLEEPS, os.environ)
    with trio.fail_after(PATIENCE):
        await program.stop(process)
    assert process.returncode in {-signal.SIGTERM, -signal.SIGKILL}


def test_without_a_terminal_nobody_is_in_front(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_terminal(*_: object) -> int:
        raise OSError("no such device")

    monkeypatch.setattr(os, "open", no_terminal)
    assert not program._is_in_front()
