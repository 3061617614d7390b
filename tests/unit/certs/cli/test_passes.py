"""``certs pass``: one file for a person, recorded; what is refused leaves neither a file nor a certificate."""

from __future__ import annotations

import json
import os
import stat
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import Encoding

from certs.cli.commands import main
from certs.protocol import access_pass
from sidecar.identity.spiffe import parse_svid
from tests.commands import ran, refused, run, spawn

MESH = """\
trust_domain: shop.internal
services: {db: {ports: {postgres: 5432}}, web: {}}
people: [alice, bob]
policy: [{from: user/alice, to: db}]
"""
ALICE = "spiffe://shop.internal/user/alice"
ASKED = ("pass", "ca", "--person", "alice", "--to", "db:postgres", "--at", "127.0.0.1:15432")


@pytest.fixture(autouse=True)
def _with_a_ca(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran("init", "ca", "--trust-domain", "shop.internal")
    Path("mesh.yaml").write_text(MESH)


def audited() -> list[tuple[str, str, dict[str, Any]]]:
    """What the audit log has since ``init``."""
    entries = [json.loads(line) for line in ran("audit", "ca", "--json").splitlines()]
    return [(entry["event"], entry["identity"], entry["detail"]) for entry in entries[2:]]


def test_a_pass_is_one_file_for_its_owner_and_two_records() -> None:
    made = spawn(*ASKED, "--ttl", "90m", "--out", "for/alice.pass")
    assert (made.returncode, made.stdout) == (0, b""), made.stderr
    assert made.stderr.startswith(b"a pass for user/alice to call db:postgres at 127.0.0.1:15432, good until ")
    assert b"certs revoke user/alice" in made.stderr
    file = Path("for/alice.pass")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = access_pass.parse(file.read_bytes())
    leaf = found.chain[0]
    assert (str(found.person), str(found.callee), found.port, str(found.at)) == (
        ALICE,
        "spiffe://shop.internal/db",
        "postgres",
        "127.0.0.1:15432",
    )
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == timedelta(minutes=91)
    serial = f"{leaf.serial_number:x}"
    (issued, _, how), (event, identity, detail) = audited()
    assert (issued, how["how"], how["serial"]) == ("issued", "pass", serial)
    assert (event, identity) == ("pass_made", ALICE)
    assert detail == {
        "to": "db:postgres",
        "at": "127.0.0.1:15432",
        "seconds": 5400,
        "serial": serial,
        "by_user": os.getuid(),
    }


def test_stdout_has_the_file_and_nothing_else() -> None:
    result = CliRunner().invoke(main, [*ASKED, "--out", "-"], prog_name="certs")
    assert result.exit_code == 0, result.output
    assert str(access_pass.parse(result.stdout_bytes).person) == ALICE
    assert "chmod 600" in result.stderr
    assert not Path("-").exists()


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (("--person", "bob"), "user/bob may not call db:postgres: no rule allows it"),
        (("--person", "alcie"), "did you mean 'alice'?"),
        (("--to", "db:mysql"), "--to: service 'db' has no port 'mysql'"),
        (("--at", "db"), "--at: 'db' is no host:port"),
        (("--at", "0.0.0.0:5432"), "--at: '0.0.0.0:5432' can be listened on, not connected to"),
        (("--ttl", "59s"), "--ttl: a pass is good for 1 minute to 24 hours"),
        (("--ttl", "1x"), "--ttl: '1x' is not a duration"),
        (("--mesh", "nowhere.yaml"), "nowhere.yaml"),
    ],
)
def test_what_is_refused_makes_nothing(more: tuple[str, str], why: str) -> None:
    assert why in refused(*ASKED, "--out", "x.pass", *more)
    assert not Path("x.pass").exists()
    assert audited() == []


def test_an_existing_file_stays_unless_forced() -> None:
    Path("x.pass").write_text("mine")
    assert "already there: x.pass" in refused(*ASKED, "--out", "x.pass")
    assert Path("x.pass").read_text() == "mine"
    assert audited() == []
    ran(*ASKED, "--out", "x.pass", "--force")
    assert access_pass.parse(Path("x.pass").read_bytes())


def test_a_mesh_of_another_ca() -> None:
    Path("mesh.yaml").write_text(MESH.replace("shop.internal", "other"))
    assert refused(*ASKED, "--out", "x") == "error: mesh.yaml is of other, and this CA of shop.internal\n"
    assert audited() == []


def test_where_the_mesh_file_is() -> None:
    Path("mesh").mkdir()
    Path("mesh.yaml").rename("mesh/mesh.yaml")
    ran(*ASKED, "--out", "x")
    Path("mesh/mesh.yaml").rename("elsewhere")
    assert "there is no mesh.yaml nor mesh/mesh.yaml here" in refused(*ASKED, "--out", "y")
    ran(*ASKED, "--out", "y", "--mesh", "elsewhere")


def test_revoked_people_get_a_pass_that_is_no_older_than_that() -> None:
    ran(*ASKED, "--out", "x")
    assert "revoked all certificates of spiffe://shop.internal/user/alice" in ran("revoke", "ca", "user/alice")
    ran(*ASKED, "--out", "y")
    before, after = (
        parse_svid(access_pass.parse(Path(name).read_bytes()).chain[0].public_bytes(Encoding.DER)) for name in "xy"
    )
    assert after.not_before > before.not_before + timedelta(seconds=30)


@pytest.mark.parametrize("command", ["token", "enrolment"])
def test_people_do_not_enrol(command: str) -> None:
    assert "is not the identity of a service, and only services enrol" in refused(command, "ca", "user/alice")
    assert run(command, "ca", "web").exit_code == 0
