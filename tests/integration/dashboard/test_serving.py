"""`sidecar dashboard` and `sidecar dev --dashboard` as real processes: what they print, what is told, how they end."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import AsyncGenerator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import trio

from sidecar.dashboard import serving
from sidecar.dashboard.board import Board
from sidecar.dashboard.view import Watching
from sidecar.documents.address import parse_address
from sidecar.identity.reasons import UsageError
from sidecar.observe.logs import Log
from tests.beds.ca_processes import ca_mesh, echo_app
from tests.beds.dashboard import shop
from tests.beds.dev_mesh import MeshFile
from tests.beds.mesh import LogSink
from tests.beds.processes import DEADLINE, SIDECAR, clean_environment

ADDRESS = re.compile(rb"http://127\.0\.0\.1:(\d+)/#([\w-]{43})")


async def _line(process: trio.Process) -> tuple[int, str]:
    """The port and the token of the address that a process prints."""
    assert process.stdout is not None
    held = b""
    with trio.fail_after(DEADLINE):
        while (found := ADDRESS.search(held)) is None:
            data = await process.stdout.receive_some(65536)
            assert data, held
            held += data
    return int(found[1]), found[2].decode()


class _Page:
    """What a page does with what it is told."""

    def __init__(self, port: int, token: str) -> None:
        self._port, self._token = port, token
        self.view: dict[str, Any] = {}
        self._held = b""

    async def open(self) -> None:
        self._stream = await trio.open_tcp_stream("127.0.0.1", self._port)
        head = f"GET /events HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nAuthorization: Bearer {self._token}\r\n\r\n"
        await self._stream.send_all(head.encode())

    async def until(self, condition: Any) -> None:
        from sidecar.dashboard.changes import applied

        with trio.fail_after(DEADLINE):
            while not (self.view and condition(self.view)):
                while (found := re.search(rb"event: (\w+)\ndata: (.*)\n\n", self._held)) is None:
                    self._held += await self._stream.receive_some(1 << 20)
                    self._held = re.sub(rb"\r\n[0-9a-fA-F]+\r\n", b"", self._held)  # the chunks' own lines
                self._held = self._held[found.end() :]
                data = json.loads(found[2])
                self.view = data if found[1] == b"view" else applied(self.view, data)
        await self._stream.aclose()


async def ended(process: trio.Process, how: signal.Signals = signal.SIGTERM) -> int:
    process.send_signal(how)
    with trio.fail_after(DEADLINE):
        return await process.wait()


async def test_beside_a_ca(tmp_path: Path) -> None:
    async with echo_app() as app, ca_mesh(tmp_path, parse_address(app)) as mesh, trio.open_nursery() as nursery:
        command = [*SIDECAR, "dashboard", str(mesh.site.directory)]
        process = await trio.lowlevel.open_process(command, stdout=-1, env=clean_environment())
        page = _Page(*await _line(process))
        await page.open()
        async with await trio.open_tcp_stream(mesh.entry.host, mesh.entry.port) as stream:
            await stream.send_all(b"hello")
            await stream.send_eof()
            assert b"".join([data async for data in stream]) == b"hello"
        await page.until(
            lambda view: (
                view["pairs"].get("web>api", {}).get("opened") == 1
                and view["services"]["api"]["state"] == "well"  # it may report after its caller
            )
        )
        assert page.view["mesh"]["trust_domain"] == "shop.internal"
        assert page.view["services"]["api"]["renews_at"]
        assert page.view["questions"]["ends"]["state"] == "good"
        assert await ended(process, signal.SIGINT) == 0
        nursery.cancel_scope.cancel()


async def test_where_no_ca_answers(tmp_path: Path) -> None:
    done = await trio.run_process(
        [*SIDECAR, "dashboard", str(tmp_path)],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env=clean_environment(),
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert f"is `certs serve {tmp_path}` running?".encode() in done.stderr
    assert b"Traceback" not in done.stderr


async def test_with_sidecar_dev(tmp_path: Path) -> None:
    with MeshFile(tmp_path) as file:
        command = [*SIDECAR, "dev", str(file.path), "--dashboard", "--log", "console"]
        process = await trio.lowlevel.open_process(command, stdout=-1, stderr=-1, env=clean_environment())
        assert process.stderr is not None
        page = _Page(*await _line(process))
        await page.open()
        web, api = file.name("web"), file.name("api")
        async with await trio.open_tcp_stream("127.0.0.1", file.call("web", "api:http")) as stream:
            await stream.send_all(b"hello")
            with pytest.raises(trio.BrokenResourceError):  # no app listens there
                await stream.receive_some()
        await page.until(lambda view: view["pairs"][f"{web}>{api}"]["refused"] == 1)
        assert page.view["verdict"]["state"] == "look"
        assert page.view["services"][web]["renews_at"]
        assert await ended(process) == 0
        await trio.aclose_forcefully(process.stderr)


async def test_a_bug_costs_a_look_and_not_the_dashboard() -> None:
    class Buggy(Watching):
        def take(self, document: Mapping[str, Any], now: datetime) -> dict[str, Any]:
            if document.get("bug"):
                raise OverflowError("date value out of range")
            return super().take(document, now)

    board, sink = Board(), LogSink()
    told: list[str] = []

    async def documents() -> AsyncGenerator[Mapping[str, Any], None]:
        for one in (shop(), {"bug": True}, shop()):
            yield one
            told.append(board.view["verdict"]["state"])

    await serving.follow(documents(), Buggy("a test"), board, Log(sink, "json"))
    assert told == ["good", "bad", "good"]
    assert "OverflowError" in sink.events("dashboard_failed")[0]["exception"]


def test_without_the_package_that_places_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    serving.require_layout()
    monkeypatch.setattr(serving, "find_spec", lambda _name: None)
    with pytest.raises(UsageError, match=r"mtls-sidecar\[dashboard\]"):
        serving.require_layout()


async def test_a_machine_without_a_thread_left_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def none_left(*_: Any, **__: Any) -> None:
        raise RuntimeError("can't start new thread")

    async def documents() -> AsyncGenerator[Mapping[str, Any], None]:
        yield shop()

    monkeypatch.setattr(trio.to_thread, "run_sync", none_left)
    board = Board()
    await serving.follow(documents(), Watching("a test"), board, Log(LogSink(), "json"))
    assert board.view["mesh"]["trust_domain"] == "shop.internal"
