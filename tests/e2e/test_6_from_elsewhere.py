"""Callers from elsewhere: the host, at a port that the mesh publishes, and a service that is not in the mesh."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from tests.e2e.ask import REACH
from tests.e2e.engine import ROOT, Application, run, until
from tests.e2e.test_1_probes import said

OLD = """\
services:
  old:
    image: ${PYTHON_IMAGE:-python:3.14-slim}
    command: [python3, "-c", "import http.server as h; h.test(h.SimpleHTTPRequestHandler, port=9000)"]
    stop_grace_period: 1s
    environment: {STORE: "redis://cache:6379"}
    expose: ["9000"]
    x-mesh: {mesh: false}
  api:
    depends_on: [old]
"""
PING = """
import socket, sys
with socket.create_connection((sys.argv[1], 6379), 5) as s:
    s.settimeout(5)
    try:
        s.sendall(b"PING\\r\\n")
        print(s.recv(100).decode().strip() or "closed")
    except OSError as error:
        print(type(error).__name__)
"""


def _free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def port(mesh: Application) -> Iterator[int]:
    """The shop with its cache published, and an outsider: both taken away again."""
    number = _free()
    (mesh.directory / "old.yaml").write_text(OLD)
    mesh.inject("compose.yaml", "old.yaml", "--publish-mesh", f"cache={number}")
    mesh.files = ("compose.yaml", "old.yaml", "compose.mesh.yaml")
    mesh.up()
    yield number
    mesh.compose("down", "--remove-orphans", "--timeout", "2")  # its networks too, which later files do not name
    (mesh.directory / "old.yaml").unlink()
    mesh.inject("compose.yaml", "--publish-mesh", "cache=none")
    mesh.up("--remove-orphans")


def _openssl(mesh: Application, number: int, who: str | None) -> str:
    """What the cache says to PING in mutual TLS, as a service, or as nobody."""
    own = []
    if who is not None:
        out = mesh.state.parent / f"{who}-from-elsewhere"
        certs = (sys.executable, "-m", "certs", "issue", str(mesh.state / "ca"), who, "--out", str(out), "--force")
        run(*certs, env=os.environ | {"PYTHONPATH": str(ROOT)})
        chain = str(out / "certificate.pem")
        own = ["-cert", chain, "-cert_chain", chain, "-key", str(out / "key.pem")]
    root = str(mesh.state / "trust" / "root.pem")
    words = ["openssl", "s_client", "-quiet", "-connect", f"127.0.0.1:{number}", "-CAfile", root, *own]
    shown = " ".join(words)
    return run("bash", "-c", f"(sleep 0.3; printf 'PING\\r\\n'; sleep 2) | timeout 10 {shown} 2>&1 || true")


def test_a_published_port_answers_mutual_tls_and_as_the_policy_says(mesh: Application, port: int) -> None:
    assert "+PONG" in _openssl(mesh, port, "api")
    assert "PONG" not in _openssl(mesh, port, "reporting"), "no rule names it"
    assert "PONG" not in _openssl(mesh, port, None)


def test_attack_a_published_port_never_takes_plaintext(mesh: Application, port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), 5) as one:
        one.settimeout(5)
        one.sendall(b"PING\r\n")
        with contextlib.suppress(OSError):
            assert b"PONG" not in one.recv(100)
    assert mesh.logged("cache-mesh", lambda it: it.get("reason") == "plaintext_refused"), "by the mesh's listener"


def test_attack_the_host_may_use_no_plaintext_listener(mesh: Application, port: int) -> None:
    """In the name of a network's gateway come the host's programs, and what a userland proxy carries."""
    address = mesh.address("api-mesh", "api-private")
    with contextlib.suppress(OSError), socket.create_connection((address, 6379), 5) as one:
        one.settimeout(5)
        one.sendall(b"PING\r\n")
        assert one.recv(100) == b"", "the cache answered the host as api"
    refused = mesh.logged("api-mesh", lambda it: "takes calls to cache:6379 from" in it.get("message", ""))
    assert all("only, as its allow_from says" in it["message"] for it in refused)
    assert mesh.python("api", PING, "cache").strip() == "+PONG", "the twin: api itself may"


def test_on_the_published_network_is_the_sidecar_alone_and_answers_that_port_alone(
    mesh: Application, port: int
) -> None:
    address = mesh.address("cache-mesh", "cache-mesh-published")
    inside = int(next(iter(mesh.inspect("cache-mesh")["NetworkSettings"]["Ports"])).partition("/")[0])
    numbers = (*range(1, 1024), 5432, 6379, 8000, 8443, 15_000, 15_090, *range(15_100, 15_110), *range(20_000, 20_010))
    assert [number for number in numbers if _opens(address, number)] == [inside]


def _opens(address: str, number: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex((address, number)) == 0


def test_an_outsider_meets_the_sidecar_under_the_app_s_name_and_is_counted(mesh: Application, port: int) -> None:
    assert mesh.python("old", PING, "cache").strip() == "+PONG"
    lines = mesh.logged("cache-mesh", lambda it: it["event"] == "connection" and it.get("plaintext"))
    assert {(it["peer_id"], it["decision"]) for it in lines} == {(None, "allow")}
    told = said(mesh, 0, "status", "--all")["sidecars"]["cache"]
    assert [(it["port"], it["allowed"]) for it in told["plaintext"]] == [("6379", True)]
    assert mesh.python("old", REACH, "api", "8000", "0.5").strip() == "open"


def test_the_app_that_calls_the_outsider_still_does_and_that_is_said(mesh: Application, port: int) -> None:
    assert mesh.python("api", REACH, "old", "9000", "0.5").strip() == "open"
    assert said(mesh, 0, "status", "--all")["not_seen"]["api"] == ["by old, not in the mesh (the app calls it)"]
    # The names lead to the sidecar nevertheless: only who knows the app's address passes it by.
    code = "import socket, sys; print(socket.gethostbyname(sys.argv[1]))"
    assert mesh.python("old", code, "api").strip() == mesh.address("api-mesh", "api-plain")
    assert mesh.python("old", REACH, mesh.address("api", "api-plain-beside"), "8000", "0.5").strip() == "open"


def test_verify_leaves_them_out_and_says_so(mesh: Application, port: int) -> None:
    report = said(mesh, 0, "verify")
    assert any("--publish-mesh" in it for it in report["not_covered"])


def test_after_its_day_the_outsider_is_cut_and_the_mesh_goes_on(mesh: Application, port: int) -> None:
    file = mesh.directory / "mesh" / "mesh.yaml"
    before = file.read_text()
    (day,) = {it["until"] for it in yaml.safe_load(before)["policy"] if it["from"] == "plaintext"}
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    file.write_text(before.replace(str(day), str(yesterday)))
    mesh.inject("compose.yaml", "old.yaml")
    mesh.files = ("compose.yaml", "old.yaml", "compose.mesh.yaml")
    mesh.up("--force-recreate", "cache-mesh", "api-mesh")
    until("old is cut", lambda: mesh.python("old", PING, "cache").strip() != "+PONG", 20)
    by_mode = mesh.logged("cache-mesh", lambda it: it.get("reason") == "plaintext_refused")
    assert by_mode, "of the port: its day is over"
    until("the shop works", lambda: "costs" in mesh.page())
    told = Path(mesh.directory / "compose.mesh.yaml").read_text()
    assert json.dumps(str(yesterday)) not in told.partition("services:")[0], "the recorded day is the first one"
