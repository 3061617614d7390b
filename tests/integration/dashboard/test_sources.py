"""Where the dashboard has it from: a real CA's socket, and a program in a container; each goes on after a fault."""

from __future__ import annotations

import os
import sys
from contextlib import aclosing
from pathlib import Path

import pytest
import trio

from certs.protocol.looking import SOCKET
from certs.service import admin
from certs.service.admin import open_admin
from certs.service.reports import Kept, Reports
from sidecar.dashboard.sources import Documents, beside, by_command, of_project
from sidecar.observe.logs import Log
from tests.beds.dashboard import NOW
from tests.beds.mesh import LogSink
from tests.beds.patience import PATIENCE


async def error_of(found: Documents) -> str:
    """The first after what the CA had said already when it ended."""
    async for one in found:
        if "error" in one:
            return str(one["error"])
    raise AssertionError("it says nothing any more")


async def test_a_ca_beside_us_that_goes_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "LATE_SECONDS", 0.01)
    reports = Reports()
    reports.take(Kept("spiffe://shop.internal/api", "0" * 32, "192.0.2.1:1", "1f", NOW, b'{"version":1}'))
    async with aclosing(beside(tmp_path, 0.01)) as found:
        with trio.fail_after(PATIENCE):
            assert f"is `certs serve {tmp_path}` running?" in (await anext(found))["error"]
            for _ in range(2):
                server = open_admin(tmp_path, reports, lambda: NOW, Log(LogSink(), "json"))
                assert server is not None
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(server.run)
                    one = await anext(found)
                    assert one["reports"][0]["report"] == {"version": 1}
                    assert one["alarms"] == []
                    assert (await anext(found)) == one
                    nursery.cancel_scope.cancel()
                assert not (tmp_path / SOCKET).exists()
                await error_of(found)


async def test_without_a_thread_left_it_is_told_and_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def none_left(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(trio.to_thread, "run_sync", none_left)
        async with aclosing(beside(tmp_path, 0.01)) as found:
            assert await anext(found) == {"error": "the CA cannot be asked: can't start new thread"}
            patched.undo()
            assert "is `certs serve" in (await anext(found))["error"]


def program(text: str) -> list[str]:
    return [sys.executable, "-c", text]


NEEDED = program('print(\'{"reports": [], "by": "the program"}\', flush=True); import sys; sys.stdin.read()')


async def test_of_a_project_the_socket_is_read_where_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "LATE_SECONDS", 0.01)
    said: list[str] = []
    server = open_admin(tmp_path, Reports(), lambda: NOW, Log(LogSink(), "json"))
    assert server is not None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        async with aclosing(of_project(tmp_path, NEEDED, os.environ, said.append)) as found:
            with trio.fail_after(PATIENCE):
                assert [(await anext(found))["reports"] for _ in range(3)] == [[], [], []]
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    assert "no CA answers there" in await error_of(found)  # it goes on by the socket
    assert said == []


async def test_of_a_project_the_program_is_run_where_no_socket_answers(tmp_path: Path) -> None:
    said: list[str] = []
    for where in (tmp_path, None):
        async with aclosing(of_project(where, NEEDED, os.environ, said.append)) as found:
            with trio.fail_after(PATIENCE):
                assert await anext(found) == {"reports": [], "by": "the program"}
    first, second = said
    assert first.startswith(f"asks by a process in the CA's container: {tmp_path / SOCKET}: no CA answers there")
    assert second == (
        "asks by a process in the CA's container: its directory is not this user's alone, or not on this machine"
    )


async def test_a_program_that_ends_is_started_again() -> None:
    command = program("print('{\"reports\": []}', flush=True); import sys; sys.exit('no container\\n')")
    async with aclosing(by_command(command, os.environ, 0.01)) as found:
        with trio.fail_after(PATIENCE):
            for _ in range(2):
                assert await anext(found) == {"reports": []}
                assert await anext(found) == {"error": "no container"}


async def test_a_program_that_stalls_is_started_again() -> None:
    """As one in a container that is paused: it neither prints nor ends."""
    command = program("import time; print('{\"reports\": []}', flush=True); time.sleep(600)")
    async with aclosing(by_command(command, os.environ, 0.01, silence=2.0)) as found:
        with trio.fail_after(PATIENCE):
            for _ in range(2):
                assert await anext(found) == {"reports": []}
                assert "has said nothing for 2 s" in (await anext(found))["error"]


async def test_a_program_that_is_not_there() -> None:
    async with aclosing(by_command(["/nonexistent/docker"], os.environ, 0.01)) as found:
        assert "cannot be run" in (await anext(found))["error"]
        assert "cannot be run" in (await anext(found))["error"]


async def test_what_it_prints_may_be_anything() -> None:
    command = program("print('nonsense'); print('[1]'); print('[' * 100000); print('{\"reports\": [], \"x\": 1}')")
    async with aclosing(by_command(command, os.environ, 0.01)) as found:
        with trio.fail_after(PATIENCE):
            assert ["error" in await anext(found) for _ in range(4)] == [True, True, True, False]


async def test_a_line_without_an_end_is_not_kept() -> None:
    command = program("import sys\nwhile True: sys.stdout.write('x' * 1000000)")
    async with aclosing(by_command(command, os.environ, 0.01)) as found:
        with trio.fail_after(PATIENCE):
            assert (await anext(found))["error"] == "what it prints is no line of JSON"


async def test_it_ends_with_us_though_no_signal_reaches_it(tmp_path: Path) -> None:
    """As in a container: it sees its stdin end."""
    mark = tmp_path / "ended"
    text = (
        "import signal, sys, pathlib\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('{\"reports\": []}', flush=True)\n"
        f"sys.stdin.read()\npathlib.Path({str(mark)!r}).touch()"
    )
    async with aclosing(by_command(program(text), os.environ, 0.01)) as found:
        with trio.fail_after(PATIENCE):
            await anext(found)
    assert mark.exists()


async def test_one_that_does_not_end_is_killed() -> None:
    text = "import time\nprint('{\"reports\": []}', flush=True)\ntime.sleep(600)"
    with trio.fail_after(PATIENCE):
        async with aclosing(by_command(program(text), os.environ, 0.01)) as found:
            await anext(found)
