"""How a sidecar is asked: an answer that is none is told, and raises nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.observe import probe
from sidecar.verify.doors import CommandDoor, SocketDoor, ask_lines


class Socket:
    """Stands in for the client of the admin port."""

    def __init__(self, status: int, body: bytes) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self._answer = status, body

    def ask(self, listen: str, target: str, sent: bytes | None = None, _seconds: float = 0) -> tuple[int, bytes]:
        self.asked.append((listen, target, None if sent is None else json.loads(sent)))
        return self._answer


def test_by_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    socket = Socket(200, b'{"a": 1}')
    monkeypatch.setattr(probe, "ask", socket.ask)
    door = SocketDoor("unix:/x", "we b")
    assert door.seen() == door.expect(["c"], ["s"], 5) == door.probe("api:http", True) == {"a": 1}
    assert socket.asked == [
        ("unix:/x", "/probe/seen?service=we+b", None),
        ("unix:/x", "/probe/expect", {"callers": ["c"], "strangers": ["s"], "seconds": 5, "service": "we b"}),
        ("unix:/x", "/probe", {"to": "api:http", "through_app": True, "service": "we b"}),
    ]


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, b'{"message": "no such thing"}', "no such thing"),
        (500, b"{}", "HTTP 500"),
        (200, b"[]", "what answers there is not a sidecar"),
        (200, b"<html>", "Expecting value"),
        (200, b"[" * 100_000, "what answers there is nested too deeply for a sidecar"),
    ],
)
def test_an_answer_that_is_none(monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, error: str) -> None:
    monkeypatch.setattr(probe, "ask", Socket(status, body).ask)
    assert error in SocketDoor("unix:/x").seen()["error"]


def test_nobody_there() -> None:
    assert "No such file" in SocketDoor("unix:/nonexistent/x").seen()["error"]


def test_by_a_command_in_its_container() -> None:
    ran: list[tuple[list[str], str]] = []

    def run(command: list[str], stdin: str) -> str:
        ran.append((command, stdin))
        return '{"a": 1}'

    door = CommandDoor(run)
    assert door.seen() == door.expect(["c"], ["s"], 5) == door.probe_all(["api:http"], False)[0] == {"a": 1}
    assert ran[0] == (["sidecar", "probe", "--raw", "/probe/seen"], "")
    assert json.loads(ran[2][1]) == {"to": "api:http", "through_app": False}
    assert "each question" in door.probe_all(["api:http", "db:sql"], False)[1]["error"]


def test_a_command_asks_all_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    socket = Socket(200, b'{"a": 1}')
    monkeypatch.setattr(probe, "ask", socket.ask)
    door = CommandDoor(lambda command, stdin: ask_lines("unix:/x", command[-1], stdin))
    assert door.seen() == {"a": 1}
    assert door.probe_all(["api:http", "db:sql"], True) == [{"a": 1}] * 2
    assert [sent for _, _, sent in socket.asked[:1]] == [None]
    assert {sent["to"] for _, _, sent in socket.asked[1:]} == {"api:http", "db:sql"}


def test_a_container_that_does_not_run() -> None:
    def run(_command: list[str], _stdin: str) -> str:
        raise OSError("docker compose exec: x\ndocker compose exec: it is not running")

    assert CommandDoor(run).seen() == {"error": "docker compose exec: it is not running"}
