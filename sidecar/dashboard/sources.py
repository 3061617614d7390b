"""Where the dashboard has it from: a CA on this machine or of a Compose project, by its socket; where that is out of reach,
a process in the CA's container asks it. I/O. Read-only.

Each source is an async generator of what :func:`certs.protocol.looking.looks` finds: documents, or ``{"error": …}``. It goes
on when the CA does not answer for a while.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import trio

from certs.protocol.looking import ANSWER_SECONDS, MAX_ANSWER_BYTES, SECONDS, Looker

Documents = AsyncGenerator[Mapping[str, Any], None]
Say = Callable[[str], object]

END_SECONDS = 2.0
"""How long a program may take to end once its stdin has."""

SILENCE_SECONDS = 2 * SECONDS + ANSWER_SECONDS
"""A program that prints nothing for so long has stalled: it looks each :data:`SECONDS`, and says so if no CA answers."""

_BLOCK = 1 << 16
_SHOWN_LINES = 3


async def beside(where: Path, seconds: float = SECONDS) -> Documents:
    """The CA of a directory on this machine. It says itself when it is looked at; if it does not answer, or this machine
    cannot ask, it is asked again after so long (``seconds``)."""
    looker = Looker(where)
    try:
        while True:
            try:
                found = await trio.to_thread.run_sync(partial(looker.look_or_say, where), abandon_on_cancel=True)
            except RuntimeError as error:  # the system has no thread left
                found = {"error": f"the CA cannot be asked: {error}"}
            yield found
            if "error" in found:
                await trio.sleep(seconds)
    finally:
        looker.close()


async def of_project(where: Path | None, command: Sequence[str], environ: Mapping[str, str], say: Say) -> Documents:
    """The CA of a Compose project: by the socket in its directory (``where``), which its container has mounted, if it
    answers there; else by the program. A socket does not reach into the virtual machine of Docker Desktop. ``say``: is told
    when the program is needed, since that costs the CA's container a process."""
    fault = "its directory is not this user's alone, or not on this machine" if where is None else ""
    if where is not None:
        async with aclosing(beside(where)) as found:
            first = await anext(found)
            if "error" not in first:
                yield first
                async for one in found:
                    yield one
        fault = str(first["error"])
    say(f"asks by a process in the CA's container: {fault}")
    async with aclosing(by_command(command, environ)) as found:
        async for one in found:
            yield one


async def by_command(
    command: Sequence[str], environ: Mapping[str, str], seconds: float = SECONDS, silence: float = SILENCE_SECONDS
) -> Documents:
    """What a program prints, a line of JSON each time; it is started again when it ends, or says nothing for so long
    (``silence``). Its stdin is ours: it ends when we do, also in a container, where no signal reaches it."""
    while True:
        with TemporaryFile() as errors:  # no pipe: nobody reads it meanwhile
            async with _Running(command, environ, errors) as running, aclosing(running.lines()) as lines:
                while True:
                    line = None
                    with trio.move_on_after(silence) as waiting:  # without a yield in it
                        line = await anext(lines, None)
                    if waiting.cancelled_caught:
                        running.fault = f"the CA's container has said nothing for {silence:g} s: is it paused?"
                    if line is None:
                        break
                    yield _parsed(line)
            errors.seek(0)
            said = [line for line in errors.read(_BLOCK).decode(errors="replace").splitlines() if line.strip()]
        yield {"error": running.fault or " ".join(said[-_SHOWN_LINES:]) or "the CA's container does not answer"}
        await trio.sleep(seconds)


class _Running:
    """One run of the program. ``fault``: why it is none, as far as we know."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], errors: IO[bytes]) -> None:
        self._command, self._environ, self._errors = command, environ, errors
        self._process: trio.Process | None = None
        self.fault = ""

    async def __aenter__(self) -> _Running:
        try:
            self._process = await trio.lowlevel.open_process(
                list(self._command),
                env=dict(self._environ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors.fileno(),
            )
        except OSError as error:
            self.fault = f"{self._command[0]}: cannot be run: {error.strerror or error}"
        return self

    async def lines(self) -> AsyncGenerator[bytes, None]:
        """What it prints, until it ends. A last line without its end is none."""
        if self._process is None or self._process.stdout is None:
            return
        held = b""
        async for block in self._process.stdout:
            held += block
            *whole, held = held.split(b"\n")
            for line in whole:
                yield line
            if len(held) > MAX_ANSWER_BYTES:
                self.fault = "what it prints is no line of JSON"
                return

    async def __aexit__(self, *_: object) -> None:
        """It sees the end of its stdin; if that is not enough, it is killed."""
        if self._process is None:
            return
        with trio.CancelScope(shield=True):
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    await pipe.aclose()
            with trio.move_on_after(END_SECONDS):
                await self._process.wait()
            if self._process.returncode is None:
                self._process.kill()
                await self._process.wait()


def _parsed(line: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"error": "what the CA's container prints is no line of JSON"}
