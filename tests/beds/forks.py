"""Starts of ``sidecar`` and ``certs`` as processes, without what each start costs: a second of CPU to import everything.

How it works. A process of its own, one for each that runs tests, has imported every module of both programs and has run
nothing of them. For a start it forks: what the fork does from there is what ``python -m sidecar`` does, with the
arguments, environment, directory and descriptors of this start. It forks twice, and the process between ends at once, so
that the program is a child of the tests (a subreaper, prctl(2), gets what its descendants leave), which signal it and wait
for it as for any other.

A start may have other values of a program's constants (:data:`CONSTANTS`), where a test waits for what takes a minute.

What differs from a start of Python: ``/proc/PID`` shows command, environment and resident memory of the process that
forked. Where these, or the start itself, are what is tested, :func:`can_start` is to say no.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import os
import pkgutil
import resource
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import trio

PROGRAMS = ("sidecar", "certs")
LOADED_LATER = ("psycopg", "sqlalchemy.dialects.sqlite", "sqlalchemy.dialects.postgresql.psycopg")
"""What both programs import only when they open a database."""

OF_PYTHON = ("PYTHON", "LANG", "LC_", "TZ")
"""Variables that Python, or its C library, reads when it starts."""

CONSTANTS = "TESTS_CONSTANTS"
"""The variable with other values of constants of modules: JSON, such as ``{"certs.service.serve.SIGN_SECONDS": 1}``."""

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_MOST_BYTES = 1 << 17
_DESCRIPTORS = 4
"""stdin, stdout, stderr, and where the answer goes."""


class Forked:
    """As much of :class:`trio.Process` as tests use."""

    def __init__(self, pid: int, pipes: Mapping[int, trio.lowlevel.FdStream]) -> None:
        self.pid = pid
        self.stdin, self.stdout, self.stderr = (pipes.get(number) for number in range(3))
        self._end = os.pidfd_open(pid)
        self._code: int | None = None

    @property
    def returncode(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
                trio.lowlevel.notify_closing(self._end)
                os.close(self._end)
        return self._code

    async def wait(self) -> int:
        while (code := self.returncode) is None:
            with suppress(trio.ClosedResourceError):
                await trio.lowlevel.wait_readable(self._end)
        return code

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


# -- who asks ----------------------------------------------------------------------------------------------------------


def can_start(command: Sequence[str], env: Mapping[str, str]) -> bool:
    """Whether this is a start of one of the two programs, by a Python that would start as this one did."""
    ours = tuple(command[:3]) in {(sys.executable, "-m", name) for name in PROGRAMS}
    return sys.platform == "linux" and ours and _of_python(env) == _of_python(_environment())


def _of_python(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(OF_PYTHON)}


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


async def start(
    command: Sequence[str], *, stdin: int, stdout: int, stderr: int, env: Mapping[str, str], cwd: Path | None
) -> Forked:
    """As ``trio.lowlevel.open_process``, of a command that :func:`can_start`."""
    asked = {
        "words": list(command[2:]),
        "env": dict(env),
        "cwd": str(cwd or Path.cwd()),
        "descriptors": resource.getrlimit(resource.RLIMIT_NOFILE),
    }
    channel, server = _server()
    with ExitStack() as theirs:
        files, pipes = [], {}
        for number, file in enumerate((stdin, stdout, stderr)):
            if file == subprocess.PIPE:
                ends = os.pipe()
                own, file = ends if number else reversed(ends)
                pipes[number] = trio.lowlevel.FdStream(own)
                theirs.callback(os.close, file)
            files.append(file)
        answer, told = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with answer:
            with told:
                socket.send_fds(channel, [json.dumps(asked).encode()], [*files, told.fileno()])
            with trio.CancelScope(shield=True):  # what has started has somebody who ends it
                await trio.lowlevel.wait_readable(answer)
            if not (pid := answer.recv(64)):
                raise ChildProcessError(server.communicate()[1].decode())
    return Forked(int(pid), pipes)


@cache
def _server() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError("this process cannot adopt what its descendants leave")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        # Pipes, as its forks have: what Python makes of stdin, stdout and stderr at its start depends on what they are.
        server = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
        )
    atexit.register(server.__exit__, None, None, None)  # closes the pipes, and waits
    atexit.register(ours.close)
    return ours, server


# -- who forks ---------------------------------------------------------------------------------------------------------


def main() -> None:
    """Returns in each fork, as the program that was asked for."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    for program in PROGRAMS:
        for module in pkgutil.walk_packages(import_module(program).__path__, f"{program}."):
            if not module.name.endswith("__main__"):
                import_module(module.name)
    for name in LOADED_LATER:
        import_module(name)
    gc.collect()
    gc.freeze()
    kept = _open_descriptors() - {channel.fileno()}
    while True:
        text, files, _, _ = socket.recv_fds(channel, _MOST_BYTES, _DESCRIPTORS)
        if not text:
            sys.exit()
        reading, writing = os.pipe()
        between = os.fork()
        if between == 0:
            pid = os.fork()
            if pid == 0:
                channel.detach()
                become(json.loads(text), files, kept)
                return
            os.write(writing, str(pid).encode())
            os._exit(0)
        os.waitpid(between, 0)  # from here on the program is a child of whoever asked
        os.write(files[-1], os.read(reading, 64))
        for number in (reading, writing, *files):
            os.close(number)


def _open_descriptors() -> set[int]:
    found = list(Path("/proc/self/fd").iterdir())
    return {int(link.name) for link in found if link.is_symlink()}  # one was of the listing itself


def become(asked: Mapping[str, Any], files: Sequence[int], kept: set[int]) -> None:
    """What the system does at a start. ``kept`` are the standard descriptors, and what libraries opened as they were loaded
    (libffi 3.5 keeps its own file open, and maps it later)."""
    for number, file in enumerate(files[:3]):
        os.dup2(file, number)
    for number in _open_descriptors() - kept:
        os.close(number)
    resource.setrlimit(resource.RLIMIT_NOFILE, asked["descriptors"])
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    sys.argv = asked["words"]
    for name, value in json.loads(os.environ.pop(CONSTANTS, "{}")).items():
        module, _, constant = name.rpartition(".")
        setattr(sys.modules[module], constant, value)


if __name__ == "__main__":
    main()
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
