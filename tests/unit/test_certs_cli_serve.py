"""``certs serve``: mistakes are told before it listens, and it serves until it is told to stop."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest
from cryptography.x509 import load_pem_x509_certificate

from certs.trust import digest
from tests.commands import ran, refused
from tests.integration.processes import CERTS, MESH, output, running

SERVE = ["serve", "ca", "--mesh", "mesh.yaml", "--listen", "127.0.0.1:0"]


@pytest.fixture(autouse=True)
def _with_a_ca(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran("init", "ca", "--trust-domain", "shop.internal")
    Path("mesh.yaml").write_text(MESH)
    Path("foreign.yaml").write_text(MESH.replace("shop.internal", "other.internal"))


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--listen", "nonsense"], "--listen: "),
        (["--listen", "127.0.0.1:99999"], "--listen: "),
        (["--ttl", "soon"], "--ttl: 'soon' is not a duration"),
        (["--ttl", "1m"], "--ttl: a certificate lives from 5 minutes to 24 hours"),
        (["--ttl", "25h"], "--ttl: a certificate lives from 5 minutes to 24 hours"),
        (["--mesh", "none.yaml"], "none.yaml"),
        (["--mesh", "ca/root.pem"], "ca/root.pem"),
        (["--mesh", "foreign.yaml"], "its trust_domain is other.internal, and the CA in ca is of shop.internal"),
        (["--store", "sqlite:///ca/root.pem"], "cannot open the store"),
        (["--store", "nonsense"], "the store's URL cannot be read"),
        (["--store", "postgresql://ca:hunter2@127.0.0.1:1/mesh"], "give the URL by $CERTS_STORE"),
    ],
)
def test_a_mistake_is_told_in_a_sentence_before_it_listens(more: list[str], why: str) -> None:
    told = refused(*SERVE, *more)
    assert why in told
    assert "hunter2" not in told


def test_the_store_of_another_ca_is_told_to_be_so() -> None:
    ran("init", "other", "--trust-domain", "shop.internal")
    told = refused(*SERVE, "--store", "sqlite:///other/store.db")
    assert "the store's trust bundle is not of the CA in ca" in told
    assert "is it the store of another CA?" in told


def test_a_ca_without_its_issuing_key_does_not_start() -> None:
    Path("ca/issuing.key").unlink()
    assert "issuing.key missing" in refused(*SERVE)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}" in refused(*SERVE, "--listen", f"127.0.0.1:{port}")


def take_the_root_s_key_away() -> str:
    """Returns the root's SHA-256."""
    Path("ca/root.key").rename("safe.key")
    return digest(load_pem_x509_certificate(Path("ca/root.pem").read_bytes())).hex()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_serves_without_the_root_s_key_until_it_is_told_to_stop(number: int) -> None:
    pinned = take_the_root_s_key_away()
    async with running(*CERTS, *SERVE, "--log", "json") as program:
        started = await program.event("started")
        assert started["message"] == "CA of shop.internal for 4 services"
        assert started["root_sha256"] == pinned
        host, _, port = started["listen"].rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10):
            pass
        program.signal(number)
        assert await program.ended() == 0, program.text
        assert program.events("stopped")
        assert program.errors == ""


async def test_it_is_found_by_variable_and_other_commands_work_beside_it() -> None:
    variables = {"CERTS_DIR": "ca", "CERTS_STORE": "sqlite:///shared.db"}
    async with running(
        *CERTS, "serve", "--mesh", "mesh.yaml", "--listen", "127.0.0.1:0", "--log", "json", variables=variables
    ) as program:
        await program.event("started")
        store = ["--store", variables["CERTS_STORE"]]
        assert (await output(*CERTS, "token", "ca", "web", *store)).startswith("mesh-token.")
        assert "revoked all" in await output(*CERTS, "revoke", "ca", "web", *store)
        assert "as they were written" in await output(*CERTS, "audit", "ca", "--verify", *store)
        program.signal(signal.SIGTERM)
        assert await program.ended() == 0, program.text


async def test_a_mistake_as_a_process_is_one_sentence_and_exit_code_2() -> None:
    async with running(*CERTS, *SERVE, "--mesh", "foreign.yaml") as program:
        assert await program.ended() == 2
        assert program.lines == []
        assert program.errors.startswith("error: foreign.yaml: its trust_domain is other.internal")
        assert program.errors.count("\n") == 1
