"""The program that ``sidecar connect FILE -- PROGRAM`` starts: it has our terminal and hears our signals, and its end is
ours."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping, Sequence

import trio

from sidecar.identity.reasons import UsageError

FORWARDED = (
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_OF_THE_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
"""Signals that a terminal sends to every process of the group in front."""

STOP_SECONDS = 5.0
"""Between asking the program to end and killing it."""


async def start(words: Sequence[str], environ: Mapping[str, str]) -> trio.Process:
    """Starts a program with our stdin, stdout and stderr. Raises :class:`UsageError`."""
    try:
        return await trio.lowlevel.open_process(list(words), env=environ)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot start {words[0]!a}: {why}") from error


def forward(process: trio.Process, received: int) -> None:
    """Passes a signal on, unless the program has had it already, from the terminal."""
    if received in _OF_THE_TERMINAL and _is_in_front():
        return
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(received)


async def stop(process: trio.Process) -> None:
    """Asks the program to end, and kills it if it does not."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    with trio.move_on_after(STOP_SECONDS):
        await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()


def exit_code(returned: int) -> int:
    """What a shell would say: of a program that a signal ended, 128 and its number."""
    return 128 - returned if returned < 0 else returned


def _is_in_front() -> bool:
    """Whether our process group, and so the program, is the one that the terminal sends its signals to."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
