"""The demo's stage: a log is searched for what must be in it, and its absence is told with what was there instead."""

from __future__ import annotations

import errno
import json
import socket
import sys
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from sidecar.config.sidecar_yaml import CaIdentity
from sidecar.config.wiring import parse_config
from sidecar.demo.stage import MOST_PORTS, LogFile, StoryError, free_ports, from_ca, from_files, hold, stage, wiring
from sidecar.policy.mesh import parse_mesh
from tests.beds.mesh import MESH


async def test_a_line_is_found_whether_it_is_there_or_comes() -> None:
    log = LogFile("web")
    log.add('{"event": "connection", "reason": "ok"}')
    assert (await log.find(reason="ok"))["event"] == "connection"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.find, 1)
        await trio.testing.wait_all_tasks_blocked()
        log.add('{"event": "connection", "reason": "late"}')
    assert (await log.find(1))["reason"] == "late"


async def test_a_line_that_never_comes_fails_with_what_came_instead(autojump_clock: MockClock) -> None:
    log = LogFile("web")
    log.add('{"event": "connection", "reason": "ok"}')
    with pytest.raises(StoryError, match=r"web's sidecar never logged reason=unknown_ca; it logged: connection ok"):
        await log.find(reason="unknown_ca")
    with pytest.raises(StoryError, match="it logged: nothing"):
        await log.find(since=1, reason="ok")


def test_a_line_that_is_no_json_is_told() -> None:
    with pytest.raises(StoryError, match="not JSON"):
        LogFile("web").add("Traceback (most recent call last):")


def test_the_wiring_is_a_file_that_the_sidecar_takes() -> None:
    inbound = [{"port": "http", "listen": "127.0.0.1:1", "app": "127.0.0.1:2"}]
    text = wiring("api", from_files("stolen"), inbound=inbound)
    config = parse_config(text, "api.yaml", {}, parse_mesh(MESH, "mesh.yaml"))
    assert config.inbound[0].port == "http"
    assert json.loads(text)["identity"]["files"]["key"] == "stolen/key.pem"
    config = parse_config(wiring("api", from_ca("api", 8443)), "api.yaml", {}, parse_mesh(MESH, "mesh.yaml"))
    assert isinstance(config.identity, CaIdentity)
    assert config.identity.ca == "https://127.0.0.1:8443"


def test_free_ports_are_distinct_and_free() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    for port in ports:
        socket.create_server(("127.0.0.1", port)).close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a port that is bound is nobody else's")
def test_a_port_that_was_found_is_found_by_nobody_else_and_is_for_its_server() -> None:
    (port,) = free_ports(1)
    with socket.socket() as seeker, pytest.raises(OSError, match="in use"):
        seeker.bind(("127.0.0.1", port))
    assert hold(port) is None
    with socket.socket() as caller:
        assert caller.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED
    with (
        socket.create_server(("127.0.0.1", port)),
        socket.create_connection(("127.0.0.1", port)),
        pytest.raises(OSError, match="in use"),
    ):
        socket.create_server(("127.0.0.1", port))
    for _ in range(MOST_PORTS):
        free_ports(1)
    with socket.socket() as seeker:
        seeker.bind(("127.0.0.1", port))  # given back


async def test_a_sidecar_that_does_not_start_ends_the_stage_with_its_words(tmp_path: Path) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(StoryError, match=r"exit code 2: error: broken\.yaml")):
        async with stage(tmp_path) as made:
            made.write("broken.yaml", "nonsense: true")
            await made.sidecar("broken")
