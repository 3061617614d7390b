"""What a health check asks, and how little it loads to ask."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from sidecar.documents.address import Address
from sidecar.observe import probe
from tests.beds.admin import admin


async def asked(call: Callable[..., Any], *words: str) -> Any:
    return await trio.to_thread.run_sync(lambda: call(*words))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_well(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    async with admin(Address(host, 0)) as one:
        assert await asked(probe.ask, one.address, "/healthz") == (200, b'{"healthy": true, "unwell": []}\n')
        assert await asked(probe.health, one.address) == 0
    assert capsys.readouterr() == ("well\n", "")


async def test_well_on_a_unix_socket(tmp_path: Path) -> None:
    async with admin(tmp_path / "admin.sock"):
        assert await asked(probe.health, f"unix:{tmp_path}/admin.sock") == 0


async def test_not_well_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    async with admin(Address("127.0.0.1", 0), healthy=False, unwell=["its certificate ended"], draining=True) as one:
        assert await asked(probe.health, one.address) == 1
    assert capsys.readouterr() == ("", "not well: its certificate ended; it is draining\n")


@pytest.mark.parametrize(
    "listen",
    [
        "127.0.0.1:1",
        "unix:/not/there",
        "localhost",
        "",
        "127.0.0.1:http",
        "unix:",
        "127.0.0.1:",
        "127.0.0.1:99999999999",
    ],
)
def test_nobody_there(listen: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert probe.health(listen) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: no sidecar answers at {listen}: ")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "is not a sidecar"),
        (b"+PONG\r\n", "is not a sidecar"),
        (b"HTTP/1.1 200 OK\r\n", "is not a sidecar"),
        (b"HTTP/1.1 what\r\n\r\n", "is not a sidecar"),
        (b"SSH-2.0 200 \r\n\r\n", "is not a sidecar"),
        (b"HTTP/1.1 500 -\r\n\r\n<html>", "status 500"),
        (b"HTTP/1.1 404 -\r\n\r\n[]", "status 404"),
        (b'HTTP/1.1 503 -\r\n\r\n{"unwell": [1]}', "status 503"),
        (b'HTTP/1.1 503 -\r\n\r\n{"unwell": 5}', "status 503"),
        (b"HTTP/1.1 503 -\r\n\r\n" + b"[" * 100_000, "status 503"),
        (b'HTTP/1.1 503 -\r\n\r\n{"unwell": ["\\u001b[2J\\n\\u202egood"]}', r"not well: \x1b[2J\n\u202egood"),
        (b"HTTP/1.1 503 -\r\n\r\n" + bytes(probe.MAX_ANSWER_BYTES), "does not stop after 4 MiB"),
    ],
)
async def test_somebody_else_there_is_not_a_well_sidecar(
    answer: bytes, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def one() -> None:
            sock, _ = server.accept()
            with sock:
                sock.recv(1000)
                with contextlib.suppress(ConnectionError):  # it need not read all
                    sock.sendall(answer)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, one)
            assert await asked(probe.health, f"127.0.0.1:{server.getsockname()[1]}") == 1
    assert said in capsys.readouterr().err


def test_an_answer_that_only_drips_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each byte came within the time for one byte."""
    now = 0.0

    class Dripping:
        def __enter__(self) -> Dripping:
            return self

        def __exit__(self, *_: object) -> None: ...

        def settimeout(self, seconds: float) -> None:
            assert 0 < seconds <= probe.SECONDS - now

        def sendall(self, _: bytes) -> None: ...

        def recv(self, _: int) -> bytes:
            nonlocal now
            now += 1
            return b"x"

    monkeypatch.setattr(probe, "_connect", lambda _: Dripping())
    monkeypatch.setattr("sidecar.observe.probe.time.monotonic", lambda: now)
    assert probe.health("127.0.0.1:1") == 1
    assert "no complete answer within 5 s" in capsys.readouterr().err
    assert now == probe.SECONDS


_LOADS = """
import sys
sys.argv[1:] = ["health"]
before = set(sys.modules)
try:
    from sidecar.__main__ import main
    main()
except SystemExit as end:
    print(end.code, *sorted(set(sys.modules) - before))
"""


async def test_a_health_check_loads_nothing_but_sockets() -> None:
    async with admin(Address("127.0.0.1", 0)) as one:
        environ = os.environ | {probe.LISTEN: one.address}
        done = await trio.run_process([sys.executable, "-c", _LOADS], env=environ, capture_stdout=True)
    said, loaded = done.stdout.decode().splitlines()
    assert said == "well"
    code, *modules = loaded.split()
    assert code == "0"
    ours = {name for name in modules if name.startswith("sidecar")}
    assert ours == {"sidecar", "sidecar.__main__", "sidecar.observe", "sidecar.observe.probe"}
    assert {name.split(".")[0] for name in modules} & {
        "click",
        "pydantic",
        "yaml",
        "trio",
        "ssl",
        "json",
        "http",
    } == set()


def test_with_a_file_or_without_the_variable_it_is_the_command(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != probe.LISTEN}
    for words, more in ((["health"], {}), (["health", "sidecar.yaml"], {probe.LISTEN: "127.0.0.1:1"})):
        done = subprocess.run(
            [sys.executable, "-m", "sidecar", *words],
            env=environ | more, cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert "sidecar.yaml" in done.stderr
