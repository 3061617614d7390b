"""The wiring of one sidecar: what can be wrong is found before anything is served; signals drain, then cut."""

from __future__ import annotations

import json
import os
import resource
import signal
from pathlib import Path

import pytest
import trio

from sidecar import run as run_module
from sidecar.config import Config, load_config
from sidecar.logs import Log
from sidecar.process import raise_descriptor_limit
from sidecar.reasons import UsageError
from sidecar.run import machinery, prepare, run
from tests.certificates import Authority
from tests.harness import MESH, PATIENCE, LogSink


def wiring(directory: Path, authority: Authority | None = None, **more: str) -> Config:
    (authority or Authority()).leaf("api").write(directory)
    (directory / "mesh.yaml").write_text(MESH)
    file = directory / "sidecar.yaml"
    file.write_text(
        "service: api\nmesh: mesh.yaml\nlog_format: json\n"
        "identity: {files: {certificate: certificate.pem, key: key.pem, bundle: bundle.pem}}\n"
        'inbound: [{port: http, listen: "127.0.0.1:0", app: "127.0.0.1:9"}]\n'
        'outbound: [{to: db, listen: "127.0.0.1:0", peers: ["127.0.0.1:9"]}]\n'
    )
    return load_config(file, more)


async def test_prepare_opens_what_the_file_says(tmp_path: Path) -> None:
    server, _ = prepare(wiring(tmp_path), {}, Log(LogSink(), "json"))
    assert [listener.port for listener in server.listeners] == ["http", "5432"]
    assert str(server.node.current.id) == "spiffe://shop.internal/api"
    server.close()


async def test_prepare_refuses_before_it_opens_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = wiring(tmp_path)
    (tmp_path / "key.pem").chmod(0o644)

    def opened(*_: object) -> None:
        pytest.fail("a listener was opened with a key that others can read")

    monkeypatch.setattr("sidecar.sockets.listen", opened)
    with pytest.raises(UsageError, match="chmod 600"):
        prepare(config, {}, Log(LogSink(), "json"))


async def test_machinery_ends_with_its_block(tmp_path: Path) -> None:
    server, _ = prepare(wiring(tmp_path), {}, Log(LogSink(), "json"))
    before = trio.lowlevel.current_statistics().tasks_living
    with trio.fail_after(PATIENCE):
        async with machinery(server.node):
            assert trio.lowlevel.current_statistics().tasks_living > before
    assert trio.lowlevel.current_statistics().tasks_living == before
    server.close()


class Console:
    """What ``run`` writes to stdout, and a wait for one of its events."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sink = LogSink()
        monkeypatch.setattr(run_module, "Log", lambda style: Log(self.sink, style))

    async def event(self, name: str) -> None:
        await self.sink.until(lambda: bool(self.sink.events(name)))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(monkeypatch)
    monkeypatch.setattr(run_module, "raise_descriptor_limit", lambda: None)
    handler = signal.getsignal(number)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, wiring(tmp_path), {})
        await console.event("started")
        os.kill(os.getpid(), number)
        await console.event("stopped")
    assert [line["event"] for line in console.sink.lines] == ["started", "draining", "stopped"]
    assert signal.getsignal(number) is handler  # given back
    started = console.sink.events("started")[0]
    assert started["identity"] == "spiffe://shop.internal/api"
    assert started["inbound"][0].startswith("http on 127.0.0.1:")
    assert started["outbound"][0].startswith("db:5432 on 127.0.0.1:")
    assert json.dumps(started).isascii()


def test_the_descriptor_limit_is_raised_to_what_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: said.append(limits))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    raise_descriptor_limit()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (4096, 4096))
    raise_descriptor_limit()
    assert said == [(4096, 4096)]
