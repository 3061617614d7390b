"""A stdout that nobody reads any more stops nothing: connections, health, a signal; what was lost is said later."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from sidecar.transport import sockets
from tests.beds.ca_processes import CaSite
from tests.beds.mesh import receive_all
from tests.beds.processes import CERTS, DEADLINE, SIDECAR, Process, Shop, begun, free_port, output


class Reader:
    """The reader of a pipe, who reads only where the test says so."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        self.text = b""

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines() if line.startswith(b"{") and line.endswith(b"}")]

    async def until(self, event: str) -> dict[str, Any]:
        with trio.fail_after(DEADLINE):
            while True:
                for line in self.lines:
                    if line["event"] == event:
                        return line
                await trio.lowlevel.wait_readable(self.reader)
                self.text += os.read(self.reader, 1 << 16)

    def fill(self) -> None:
        """Not a byte has room from here on. The writer is opened anew, so that the program's own descriptor blocks."""
        own = os.open(f"/proc/self/fd/{self.writer}", os.O_WRONLY | os.O_NONBLOCK)
        try:
            for size in (4096, 1):
                try:
                    while True:
                        os.write(own, b"\n" * size)
                except BlockingIOError:
                    pass
        finally:
            os.close(own)


@pytest.fixture
def reader() -> Iterator[Reader]:
    one = Reader()
    yield one
    os.close(one.reader)
    os.close(one.writer)


@asynccontextmanager
async def stalled(reader: Reader, *command: str | Path) -> AsyncIterator[Process]:
    """A process that has started, and whose stdout and stderr are full now."""
    async with begun(command, to=reader.writer) as process:
        await reader.until("started")
        reader.fill()
        yield process


async def ends(process: Process) -> int:
    process.send_signal(signal.SIGTERM)
    with trio.fail_after(DEADLINE):
        return await process.wait()


async def test_a_sidecar_serves_answers_and_ends_while_nobody_reads(shop: Shop, reader: Reader) -> None:
    port, admin = free_port(), free_port()
    file = shop.wiring(
        "web",
        f'outbound: [{{to: "api:http", listen: "127.0.0.1:{port}", peers: ["127.0.0.1:{free_port()}"]}}]\n'
        f'admin: {{listen: "127.0.0.1:{admin}"}}\n',
    )
    async with stalled(reader, *SIDECAR, "run", file) as process:
        for _ in range(200):  # each is one line
            await is_refused(port)
        assert (await output(*SIDECAR, "health", file)).startswith("well")
        assert await ends(process) == 0


async def is_refused(port: int) -> None:
    with trio.fail_after(DEADLINE), pytest.raises(ConnectionResetError):
        await ask(port)


async def ask(port: int) -> None:
    with await sockets.connect(socket.AF_INET, ("127.0.0.1", port)) as sock:
        await sockets.receive(sock, 1)


async def test_once_somebody_reads_again_every_line_is_there_or_counted(shop: Shop, reader: Reader) -> None:
    port = free_port()
    file = shop.wiring("web", f'outbound: [{{to: "api:http", listen: "127.0.0.1:{port}", peers: ["127.0.0.1:9"]}}]\n')
    async with stalled(reader, *SIDECAR, "run", file) as process:
        for _ in range(200):
            await is_refused(port)
        process.send_signal(signal.SIGTERM)
        await reader.until("stopped")
        with trio.fail_after(DEADLINE):
            assert await process.wait() == 0
    assert sum(line["event"] == "connection" for line in reader.lines) == 200
    assert not [line for line in reader.lines if line["event"] == "log_lost"]


async def test_a_ca_serves_and_ends_while_nobody_reads(tmp_path: Path, reader: Reader) -> None:
    site = CaSite.make(tmp_path)
    serve = ("serve", site.directory, "--mesh", tmp_path / "mesh.yaml", "--listen", str(site.address), "--log", "json")
    async with stalled(reader, *CERTS, *serve) as process:
        for _ in range(50):
            sock = await sockets.connect(socket.AF_INET, ("127.0.0.1", site.port))
            with sock:
                await sockets.send_all(sock, b"no TLS\r\n\r\n")
                with trio.move_on_after(DEADLINE):
                    await receive_all(sock)
        caller = site.caller("web")
        await caller.enrol(site.make_credentials("web")["web"])
        assert await ends(process) == 0


async def test_a_mesh_of_one_process_ends_while_nobody_reads(tmp_path: Path, reader: Reader) -> None:
    (tmp_path / "mesh.yaml").write_text("trust_domain: shop.internal\nservices: {web: {}}\n")
    async with stalled(reader, *SIDECAR, "dev", tmp_path / "mesh.yaml", "--log", "json") as process:
        (tmp_path / "mesh.yaml").write_text("nonsense")
        assert await ends(process) == 0
