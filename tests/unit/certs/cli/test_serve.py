"""``certs serve``: what the command line may say; what is wrong is told in a sentence before anything is served."""

from __future__ import annotations

import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import certs
from certs.cli.commands import main
from certs.registrar.commands import ANYWHERE, Commands
from certs.service import serve as serving
from certs.service.api import daily
from certs.service.serve import Settings
from certs.store.store import file_url
from sidecar.documents.address import Address
from tests.beds.store import DOMAIN

MESH = f"trust_domain: {DOMAIN}\nservices: {{api: {{}}}}\n"


@pytest.fixture(autouse=True)
def _ca(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CA in ./ca, and its mesh."""
    monkeypatch.chdir(tmp_path)
    for name in ("CERTS_DIR", "CERTS_STORE"):
        monkeypatch.delenv(name, raising=False)
    assert run("init", "ca", "--trust-domain", DOMAIN).exit_code == 0
    Path("mesh.yaml").write_text(MESH)


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(main, arguments, prog_name="certs")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What would be served."""
    found: list[Settings] = []

    async def serve(settings: Settings, _log: Any, _clock: Any) -> None:
        found.append(settings)

    monkeypatch.setattr(serving, "serve", serve)
    return found


def test_what_is_served_when_nothing_else_is_said(served: list[Settings]) -> None:
    assert run("serve", "--mesh", "mesh.yaml").exit_code == 0
    assert served == [
        Settings(
            Path("ca"), Path("mesh.yaml"), Address("0.0.0.0", 8443), file_url(Path("ca/store.db")), timedelta(hours=1)
        )
    ]


def test_in_a_container_of_inject_its_messages_name_places_on_the_host(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    for state in ("/s", ""):
        monkeypatch.setenv("MESH_STATE", state)
        assert run("serve", "--mesh", "mesh.yaml").exit_code == 0
    assert [one.commands for one in served] == [Commands("/s"), ANYWHERE]


def test_what_is_said_is_served(served: list[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CERTS_STORE", "postgresql://host/database")
    words = ["serve", "ca", "--mesh", "mesh.yaml", "--listen", "127.0.0.1:9443", "--ttl", "5m"]
    assert run(*words).exit_code == 0
    (settings,) = served
    assert settings.listen == Address("127.0.0.1", 9443)
    assert settings.ttl == timedelta(minutes=5)
    assert settings.limits.day == daily(timedelta(minutes=5)), "shorter lives, more certificates a day"
    assert settings.store_url == "postgresql://host/database"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "Missing option '--mesh'"),
        (["--mesh", "mesh.yaml", "--ttl", "4m"], "error: --ttl: a certificate is valid for 5 minutes to 24 hours"),
        (["--mesh", "mesh.yaml", "--ttl", "25h"], "error: --ttl: a certificate is valid for 5 minutes to 24 hours"),
        (["--mesh", "mesh.yaml", "--ttl", "soon"], "error: --ttl: 'soon' is not a duration"),
        (["--mesh", "mesh.yaml", "--listen", "8443"], "error: --listen: "),
        (["--mesh", "mesh.yaml", "--listen", "localhost:99999"], "error: --listen: "),
        (["--mesh", "mesh.yaml", "--log", "xml"], "'xml' is not one of"),
        (["none", "--mesh", "mesh.yaml"], "error: none holds no CA"),
    ],
)
def test_a_mistake_on_the_command_line(served: list[Settings], words: list[str], told: str) -> None:
    result = run("serve", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr
    assert served == []


def without_store(bundle: str | None) -> None:
    """The store is lost, and with it, or instead of it, the bundle that a new one would begin with."""
    Path("ca/store.db").unlink()
    if bundle is None:
        Path("ca/bundle.json").unlink()
    else:
        Path("ca/bundle.json").write_text(bundle)


def test_the_twin_a_store_that_was_lost_begins_with_the_directory_s_bundle(served: list[Settings]) -> None:
    Path("ca/store.db").unlink()
    assert run("serve", "--mesh", "mesh.yaml").exit_code == 0
    assert len(served) == 1


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda: Path("mesh.yaml").unlink(), "mesh.yaml"),
        (lambda: Path("mesh.yaml").write_text("services: []"), "mesh.yaml"),
        (lambda: Path("mesh.yaml").write_text(MESH.replace("shop", "other")), "its trust_domain is other.internal"),
        (lambda: Path("ca/issuing.key").unlink(), "issuing.key missing"),
        (lambda: Path("ca/issuing.key").chmod(0o644), "chmod 600"),
        (lambda: Path("ca/revocation.pem").unlink(), "revocation.pem is missing: this CA was made by an older version"),
        (lambda: Path("ca/store.db").write_bytes(b"junk" * 1000), "cannot open the store"),
        (lambda: without_store(None), "bundle.json is missing"),
        (lambda: without_store("{}"), "trust bundle is not of the CA"),
    ],
)
def test_a_ca_that_cannot_serve_says_so_at_start(spoil: Any, told: str) -> None:
    spoil()
    for each in Path("ca").glob("store.db-*"):
        each.unlink()
    result = run("serve", "--mesh", "mesh.yaml", "--listen", "127.0.0.1:0")
    assert result.exit_code == 2
    assert told in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_in_a_process_of_its_own_it_serves_until_it_is_told_to_end(end: signal.Signals) -> None:
    words = ["serve", "ca", "--mesh", "mesh.yaml", "--listen", "127.0.0.1:0", "--log", "json"]
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "certs", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PYTHONPATH": str(Path(certs.__file__).parent.parent), "PATH": "/usr/bin"},
        text=True,
    ) as process:
        assert process.stdout is not None
        started = process.stdout.readline()
        process.send_signal(end)
        rest, errors = process.communicate(timeout=60)
    assert '"event": "started"' in started or '"event":"started"' in started
    assert "stopped" in rest
    assert (process.returncode, errors) == (0, "")
