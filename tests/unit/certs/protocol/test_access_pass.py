"""A pass is read as it was written; what was changed, cut off or made too large is no pass."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from certs.protocol import access_pass
from certs.protocol.access_pass import Pass, encode, parse
from sidecar.documents.address import Address
from sidecar.identity.spiffe import parse_spiffe_id
from tests.beds.certificates import Authority, ec_key

MESH = Authority()
ALICE = "spiffe://shop.internal/user/alice"
KEY = ec_key()
LEAF = MESH.leaf(uris=[ALICE], key=KEY)


def made(**changes: Any) -> Pass:
    found = Pass(
        parse_spiffe_id(ALICE),
        parse_spiffe_id("spiffe://shop.internal/db"),
        "postgres",
        Address("db.example.org", 5432),
        90000,
        (MESH.root.certificate,),
        LEAF.chain,
        KEY,
    )
    return replace(found, **changes)


def changed(**fields: Any) -> bytes:
    return json.dumps(json.loads(encode(made())) | fields).encode()


def test_it_is_read_as_it_was_written() -> None:
    written = made()
    found = parse(encode(written))
    assert replace(found, key=written.key) == written
    assert found.key.public_key() == written.key.public_key()
    assert found.target == "db:postgres"
    assert len(encode(written)) < access_pass.MAX_BYTES / 10


MANY = json.loads(encode(made()))["roots"] * 17


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is no pass of `certs pass`, or it is damaged: it is not JSON"),
        (b"\xff\xfe", "is no pass of `certs pass`, or it is damaged: it is not JSON"),
        (b"[" * 60000, "is no pass of `certs pass`, or it is damaged: it is not JSON"),
        (encode(made())[:-100], "is no pass of `certs pass`, or it is damaged: it is not JSON"),
        (b'{"mesh_pass": 1, "mesh_pass": 1}', "is no pass of `certs pass`, or it is damaged: it is not JSON"),
        (b"[]", "is no pass of `certs pass`: it is not a JSON object"),
        (b"{}", "is no pass of `certs pass`"),
        (changed(mesh_pass="1"), "is no pass of `certs pass`"),
        (changed(mesh_pass=True), "is no pass of `certs pass`"),
        (changed(mesh_pass=2), "is a pass of version 2, and this program reads version 1: update it"),
        (b'{"mesh_pass": 1}', "lacks the field 'at': it was changed, or cut off"),
        (changed(more="x"), "has the unknown field 'more': it was changed, or cut off"),
        (changed(port=5432), "has a field of the wrong type: it was changed"),
        (changed(max_leaf_ttl="1h"), "has a field of the wrong type: it was changed"),
        (changed(max_leaf_ttl=True), "has a field of the wrong type: it was changed"),
        (changed(max_leaf_ttl=0), "has a max_leaf_ttl that cannot be: it was changed"),
        (changed(max_leaf_ttl=10**12), "has a max_leaf_ttl that cannot be: it was changed"),
        (changed(roots="x"), "is damaged: its roots cannot be read as PEM"),
        (changed(certificate=""), "is damaged: its certificate cannot be read as PEM"),
        (changed(certificate=MANY), "has 17 certificates as its certificate: it was changed"),
        (changed(key="x"), "is damaged: its key cannot be read as PEM"),
        (b"x" * (access_pass.MAX_BYTES + 1), "has more than 64 KiB, so it is no pass"),
    ],
)  # fmt: skip
def test_what_is_no_pass(content: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(why)}$"):
        parse(content)


@pytest.mark.parametrize(
    "fields",
    [
        {"person": "spiffe://shop.internal/web"},
        {"person": "spiffe://shop.internal/user/alice/x"},
        {"person": "alice"},
        {"callee": "spiffe://shop.internal/user/bob"},
        {"callee": "spiffe://other/db"},
        {"at": "0.0.0.0:5432"},
        {"at": "db"},
    ],
)
def test_who_calls_whom_and_where_must_be_possible(fields: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"^was changed: "):
        parse(changed(**fields))


def test_no_message_quotes_the_key() -> None:
    key = json.loads(encode(made()))["key"]
    for text in (key[:100], key.replace("PRIVATE", "SECRET"), key[:-60]):
        with pytest.raises(ValueError, match="is damaged: its key") as raised:
            parse(changed(key=text))
        assert text[40:60] not in str(raised.value)


def test_a_key_of_another_kind() -> None:
    other = ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(ValueError, match="its key is not an ECDSA key"):
        parse(changed(key=other.decode()))
    assert parse(encode(made(key=ec_key()))).key


def test_what_is_as_large_as_may_be() -> None:
    root = json.loads(encode(made()))["roots"]
    assert len(parse(changed(roots=root * access_pass.MAX_CERTIFICATES)).roots) == access_pass.MAX_CERTIFICATES
    assert parse(encode(made()).ljust(access_pass.MAX_BYTES))
    ten_years = 10 * 365 * 86400
    assert parse(changed(max_leaf_ttl=ten_years)).max_leaf_ttl == ten_years
    with pytest.raises(ValueError, match="a max_leaf_ttl that cannot be"):
        parse(changed(max_leaf_ttl=ten_years + 1))
