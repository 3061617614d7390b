"""Evidence: whole, escaped, private, bounded; and its loss changes nothing else."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sidecar.observe import evidence
from sidecar.observe.alarms import Alarm
from sidecar.observe.evidence import MAX_CERTIFICATES, MAX_FILES
from tests.beds.certificates import Authority

NOW = datetime(2026, 11, 30, 6, 0, tzinfo=UTC)
LEAF = Authority().leaf("web")
CHAIN = tuple(one.public_bytes(Encoding.DER) for one in LEAF.chain)


def alarm(upstream: str = "db:5432") -> Alarm:
    return Alarm("mitm_suspected", "api", "met web", NOW, NOW, upstream=upstream, peer_address="10.0.0.7:5432")


def test_the_chain_can_be_read_again(tmp_path: Path) -> None:
    path = evidence.keep(tmp_path / "evidence", alarm(), CHAIN, NOW)
    kept = json.loads(path.read_text())
    found = [x509.load_pem_x509_certificate(one["pem"].encode()) for one in kept["certificates"]]
    assert [one.public_bytes(Encoding.DER) for one in found] == list(CHAIN)
    assert kept["certificates"][0]["uris"] == repr("spiffe://shop.internal/web")
    assert kept["alarm"] == alarm().to_dict()
    assert kept["kept_at"] == "2026-11-30T06:00:00Z"
    assert path.name == f"20261130T060000Z-{alarm().id}.json"


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    path = evidence.keep(tmp_path / "evidence", alarm(), CHAIN, NOW)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_directory_that_others_can_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "evidence").mkdir()
    (tmp_path / "evidence").chmod(0o777)
    with pytest.raises(PermissionError):
        evidence.keep(tmp_path / "evidence", alarm(), CHAIN, NOW)
    assert list((tmp_path / "evidence").iterdir()) == []


def test_a_symlink_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "evidence").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="evidence"):
        evidence.keep(tmp_path / "evidence", alarm(), CHAIN, NOW)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_the_oldest_give_way_and_nothing_else_does(tmp_path: Path) -> None:
    directory = tmp_path / "evidence"
    evidence.keep(directory, alarm("first"), CHAIN, NOW)
    (directory / "notes.txt").write_text("of a person")
    for number in range(MAX_FILES):
        evidence.keep(directory, alarm(str(number)), CHAIN, NOW + timedelta(seconds=1 + number))
    names = [one.name for one in directory.iterdir()]
    assert len(names) == MAX_FILES + 1
    assert "notes.txt" in names
    assert not any(name.endswith(f"{alarm('first').id}.json") for name in names)


def test_rubbish_is_kept_escaped_and_bounded(tmp_path: Path) -> None:
    path = evidence.keep(tmp_path / "evidence", alarm(), (b"\x1b[2J" * 40,) * 20, NOW)
    text = path.read_text()
    assert text.isascii()
    assert "\x1b" not in text
    assert len(json.loads(text)["certificates"]) == MAX_CERTIFICATES


def test_a_disk_that_fails_adds_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        evidence.keep(tmp_path / "nowhere" / "evidence", alarm(), CHAIN, NOW)
