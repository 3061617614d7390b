"""``sidecar probe``: whom it asks, what it prints, and its mistakes. With a running sidecar it is tried elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sidecar.cli.commands import main
from sidecar.verify import doors, remote

FILE = """\
service: web
mesh: mesh.yaml
identity: {files: {certificate: c, key: k, bundle: b}}
outbound: [{to: "api:http", listen: "127.0.0.1:1", peers: ["127.0.0.1:2"]}]
"""
MESH = "trust_domain: shop.internal\nservices: {web: {}, api: {ports: {http: 1}}}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "mesh.yaml").write_text(MESH)
    path = tmp_path / "web.yaml"
    path.write_text(FILE)
    return path


def ran(*words: str | Path, env: dict[str, str] | None = None, stdin: str = "") -> Result:
    return CliRunner(env={"SIDECAR_ADMIN_SOCKET": None, "SIDECAR_ADMIN_LISTEN": None, **(env or {})}).invoke(
        main, ["probe", *map(str, words)], input=stdin
    )


def answering(monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any]) -> list[tuple[Any, ...]]:
    asked: list[tuple[Any, ...]] = []

    def ask(*words: Any) -> dict[str, Any]:
        asked.append(words)
        return answer

    monkeypatch.setattr(doors, "ask", ask)
    return asked


OK = {"to": "api:http", "results": [{"address": "1.2.3.4:5", "result": "ok", "peer_id": "spiffe://d/api"}]}


@pytest.mark.parametrize(
    ("admin", "listen"),
    [('{listen: "127.0.0.1:3", socket: a.sock}', "a.sock"), ('{listen: "unix:/run/b.sock"}', "/run/b.sock")],
)
def test_it_asks_at_the_socket_of_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch, admin: str, listen: str
) -> None:
    file.write_text(f"{FILE}admin: {admin}\n")
    asked = answering(monkeypatch, OK)
    assert ran(file, "api:http").exit_code == 0
    assert asked[0][0] == f"unix:{file.parent / listen}"


@pytest.mark.parametrize("env", [{"SIDECAR_ADMIN_SOCKET": "/x"}, {"SIDECAR_ADMIN_LISTEN": "unix:/x"}])
def test_or_at_that_of_the_environment(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    asked = answering(monkeypatch, OK)
    result = ran("api:http", env=env)
    assert (result.exit_code, asked[0][0]) == (0, "unix:/x")
    assert result.output == "api:http  1.2.3.4:5  ok  spiffe://d/api, None\n"


@pytest.mark.parametrize("admin", ["", 'admin: {listen: "127.0.0.1:3"}\n'])
def test_a_port_of_tcp_is_not_asked(file: Path, admin: str) -> None:
    file.write_text(FILE + admin)
    result = ran(file, "api:http")
    assert (result.exit_code, "has no Unix socket" in result.output) == (2, True)


def test_what_was_refused_ends_with_1_and_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = {"address": "1.2.3.4:5", "result": "refused", "reason": "unexpected_peer", "message": "met \x1b[2J"}
    answering(monkeypatch, {"to": "api:http", "results": [refused]})
    result = ran("api:http", env={"SIDECAR_ADMIN_SOCKET": "/x"})
    assert result.exit_code == 1
    assert "\\x1b[2J" in result.output
    answering(monkeypatch, {"to": "api:http", "results": [], "reason": "not_declared"})
    result = ran("api:http", "--json", env={"SIDECAR_ADMIN_SOCKET": "/x"})
    assert (result.exit_code, json.loads(result.output)[0]["reason"]) == (1, "not_declared")
    assert "NOT CALLED: not_declared" in ran("api:http", env={"SIDECAR_ADMIN_SOCKET": "/x"}).output


def test_mistakes(file: Path) -> None:
    file.write_text(FILE + 'admin: {listen: "unix:/run/b.sock"}\n')
    for words, text in (([file], "name what to call"), ([file, "other.yaml"], "give one FILE")):
        result = ran(*words)
        assert (result.exit_code, text in result.output) == (2, True)


def test_for_verify_it_passes_a_question_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering(monkeypatch, {"a": 1})
    env = {"SIDECAR_ADMIN_SOCKET": "/x"}
    assert json.loads(ran("--raw", "/probe/seen", env=env).output) == {"a": 1}
    ran("--raw", "/probe", env=env, stdin='{"to": "x"}')
    assert asked == [("unix:/x", "/probe/seen", None), ("unix:/x", "/probe", b'{"to": "x"}')]


def test_for_verify_it_plays_the_stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "play", lambda text: f"played {text}")
    assert ran("--stranger", stdin="this").output == "played this\n"
