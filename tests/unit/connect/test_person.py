"""A pass becomes a sidecar's configuration; one that is ended, changed, or another's to read does not."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from certs.protocol.access_pass import encode
from sidecar.connect.person import Person, load
from sidecar.documents.address import Address
from sidecar.identity.reasons import UsageError
from tests.beds.certificates import HOUR, Authority, ec_key, pem
from tests.unit.certs.protocol.test_access_pass import ALICE, MESH, made

LISTEN = Address("127.0.0.1", 0)
NOW = MESH.now


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    path.chmod(0o600)
    return path


def of(tmp_path: Path, later: timedelta = timedelta(), **fields: Any) -> Person:
    content = json.dumps(json.loads(encode(made())) | fields).encode()
    return load(write(tmp_path / "alice.pass", content), LISTEN, NOW + later)


def refused(tmp_path: Path, later: timedelta = timedelta(), **fields: Any) -> str:
    with pytest.raises(UsageError) as raised:
        of(tmp_path, later, **fields)
    text = str(raised.value)
    assert text.startswith(f"{tmp_path / 'alice.pass'}: ")
    return text.partition("alice.pass: ")[2]


def test_what_a_pass_says_is_what_is_called(tmp_path: Path) -> None:
    person = of(tmp_path)
    (route,) = person.config.outbound
    assert (person.name, person.target, str(person.at)) == ("user/alice", "db:postgres", "db.example.org:5432")
    assert (str(route.target), route.listen, route.peers) == ("db:postgres", LISTEN, (person.at,))
    assert str(person.snapshot.id) == ALICE
    assert str(person.snapshot.mesh.identity("db")) == "spiffe://shop.internal/db"
    assert person.snapshot.context.params.max_leaf_ttl == timedelta(seconds=90000)
    assert person.until == made().chain[0].not_valid_after_utc
    assert person.config.inbound == ()


def test_the_port_of_a_sidecar_itself(tmp_path: Path) -> None:
    (route,) = of(tmp_path, port="mesh-admin").config.outbound
    assert str(route.target) == "db:mesh-admin"


def test_a_long_lived_mesh(tmp_path: Path) -> None:
    assert of(tmp_path, max_leaf_ttl=30 * 86400).snapshot.mesh.max_leaf_ttl == timedelta(days=30)


def test_one_that_has_ended_or_has_not_begun(tmp_path: Path) -> None:
    leaf = made().chain[0]
    after = leaf.not_valid_after_utc - NOW + timedelta(seconds=1)
    assert refused(tmp_path, after) == (
        f"this pass was good until {leaf.not_valid_after_utc:%F %T} UTC and has ended; "
        "ask whoever gave it to you for another one"
    )
    assert "is the clock right?" in refused(tmp_path, leaf.not_valid_before_utc - NOW - timedelta(seconds=1))
    for second in (leaf.not_valid_after_utc, leaf.not_valid_before_utc):
        assert of(tmp_path, second - NOW)


def test_what_was_changed(tmp_path: Path) -> None:
    other, bob = Authority(), MESH.leaf(uris=["spiffe://shop.internal/user/bob"])
    parts = json.loads(encode(made(chain=bob.chain, key=bob.key)))
    assert "its key does not belong to its certificate" in refused(tmp_path, key=parts["key"])
    assert refused(tmp_path, key=parts["key"], certificate=parts["certificate"]) == (
        f"was changed: it is for {ALICE}, and its certificate for spiffe://shop.internal/user/bob"
    )
    assert "is damaged, or was changed: its certificate" in refused(
        tmp_path, roots=pem(other.root.certificate).decode()
    )
    assert "is damaged, or was changed" in refused(tmp_path, certificate=pem(made().chain[0]).decode())
    assert "longer than max_leaf_ttl" in refused(tmp_path, max_leaf_ttl=60)
    assert "was changed: " in refused(tmp_path, port="No Port")
    assert "is no pass" in refused(tmp_path, mesh_pass=None)


def test_a_file_that_others_can_read_or_that_is_none(tmp_path: Path) -> None:
    file = write(tmp_path / "alice.pass", encode(made()))
    for mode in (0o640, 0o604, 0o660):
        file.chmod(mode)
        with pytest.raises(UsageError, match="can be read by others, and who reads it can use it: chmod 600"):
            load(file, LISTEN, NOW)
    file.chmod(0o400)
    assert load(file, LISTEN, NOW)
    with pytest.raises(UsageError, match="cannot read the pass: No such file"):
        load(tmp_path / "none", LISTEN, NOW)
    with pytest.raises(UsageError, match="is no regular file"):
        load(tmp_path, LISTEN, NOW)
    with pytest.raises(UsageError, match="more than 64 KiB"):
        load(write(tmp_path / "large", b"x" * 70000), LISTEN, NOW)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user(tmp_path: Path) -> None:
    file = write(tmp_path / "alice.pass", encode(made()))
    os.chown(file, 65534, 65534)
    with pytest.raises(UsageError, match="belongs to another user, who could replace it"):
        load(file, LISTEN, NOW)


def test_a_key_that_is_another_one(tmp_path: Path) -> None:
    other = json.loads(encode(made(key=ec_key())))["key"]
    assert "its key does not belong to its certificate" in refused(tmp_path, key=other)


def test_it_is_good_for_an_hour_here() -> None:
    assert made().chain[0].not_valid_after_utc - NOW <= HOUR
