"""Which certificates of an identity its sidecars hear of: each holder's newest, and nothing that is over."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from certs.authority import authority
from certs.protocol.csr import key_hash
from certs.registrar import registrar, revocations, twins
from certs.store.store import issued
from sidecar.identity.spiffe import SpiffeId, parse_svid
from tests.beds.certificates import ec_key
from tests.beds.store import API, WEB, MiniCa, csr, ders


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[MiniCa]:
    made = MiniCa(tmp_path / "store.db")
    yield made
    made.store.close()


def live(ca: MiniCa, identity: SpiffeId = API) -> list[dict[str, Any]]:
    now = int(ca.clock.now.timestamp())
    return ca.store.read(lambda connection: twins.live_serials(connection, identity, now))


def serials(ca: MiniCa, identity: SpiffeId = API) -> list[str]:
    return [one["serial"] for one in live(ca, identity)]


def serial(path: list[bytes]) -> str:
    return f"{parse_svid(path[0]).serial:x}"


def enrolled(ca: MiniCa) -> list[bytes]:
    return ders(ca.enrol(ca.make_credential("secret"), csr(ec_key())))


def renewed(ca: MiniCa, path: list[bytes]) -> list[bytes]:
    return ders(ca.renew(path, csr(ec_key())))


def test_what_is_told_of_one(ca: MiniCa) -> None:
    key = ec_key()
    path = ders(ca.enrol(ca.make_credential("secret"), csr(key)))
    now = int(ca.clock.now.timestamp())
    assert live(ca) == [
        {
            "serial": serial(path),
            "key": key_hash(key.public_key()),
            "how": "secret",
            "issued_at": now,
            "not_after": now + 3600,
        }
    ]
    assert live(ca, WEB) == []


def test_of_a_chain_of_renewals_the_last_is_told(ca: MiniCa) -> None:
    path = enrolled(ca)
    for _ in range(3):
        path = renewed(ca, path)
    assert serials(ca) == [serial(path)]
    assert live(ca)[0]["how"] == "renewal"


def test_two_renewals_from_one_certificate_are_both_told(ca: MiniCa) -> None:
    path = enrolled(ca)
    ours, copy = renewed(ca, path), renewed(ca, path)
    assert set(serials(ca)) == {serial(ours), serial(copy)}


def test_two_enrolments_are_both_told(ca: MiniCa) -> None:
    assert set(serials(ca)) == set()
    both = {serial(enrolled(ca)), serial(enrolled(ca))}
    assert set(serials(ca)) == both


def test_a_repeated_answer_is_one(ca: MiniCa) -> None:
    path, request = enrolled(ca), csr(ec_key())
    assert ca.renew(path, request) == ca.renew(path, request)
    assert len(serials(ca)) == 1


def test_what_has_ended_or_was_revoked_is_not_told(ca: MiniCa) -> None:
    path = enrolled(ca)
    ca.clock.now += timedelta(seconds=3599)
    assert serials(ca) == [serial(path)]
    ca.clock.now += timedelta(seconds=1)
    assert serials(ca) == []
    enrolled(ca)
    ca.clock.now += timedelta(minutes=2)
    ca.revoke()
    assert serials(ca) == []


def test_one_revoked_serial_is_not_told_and_the_other_is(ca: MiniCa) -> None:
    gone, stays = enrolled(ca), enrolled(ca)
    ca.store.write(lambda transaction: revocations.revoke_certificate(transaction, parse_svid(gone[0]).serial))
    assert serials(ca) == [serial(stays)]


def test_what_is_made_by_hand_is_not_told(ca: MiniCa) -> None:
    made = authority.issue(ca.authority, "api", ca.clock.now)
    ca.store.write(lambda transaction: registrar.remember(transaction, made.chain, twins.BY_HAND))
    assert serials(ca) == []


def test_when_it_was_last_used_to_poll(ca: MiniCa) -> None:
    path = enrolled(ca)
    at = ca.clock.now + timedelta(seconds=7)
    ca.store.write(lambda transaction: twins.saw(transaction, parse_svid(path[0]).sha256, at))
    assert live(ca)[0]["seen_at"] == int(at.timestamp())


def test_what_was_issued_before_the_store_could_tell_is_told_once_it_polls(ca: MiniCa) -> None:
    path = enrolled(ca)
    ca.store.write(lambda transaction: transaction.connection.execute(sa.update(issued).values(seen_at=0)))
    assert serials(ca) == []
    ca.store.write(lambda transaction: twins.saw(transaction, parse_svid(path[0]).sha256, ca.clock.now))
    assert serials(ca) == [serial(path)]


def test_an_answer_is_bounded_and_has_the_newest(ca: MiniCa, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twins, "MOST_TIPS", 2)
    enrolled(ca)
    ca.clock.now += timedelta(seconds=1)
    second = enrolled(ca)
    ca.clock.now += timedelta(seconds=1)
    third = enrolled(ca)
    assert serials(ca) == [serial(second), serial(third)]
