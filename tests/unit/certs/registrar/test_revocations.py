"""What is revoked, as the store has it: no revocation is taken back, and each leaves the list when it matters no more."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from certs.authority import authority
from certs.authority.authority import Made
from certs.protocol import documents
from certs.protocol.documents import Bundle, RevocationList
from certs.registrar import revocations
from certs.store.store import enrolment_credentials
from sidecar.identity.keys import certificate_digest
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import SpiffeId, parse_svid
from tests.beds.certificates import HOUR
from tests.beds.clock import NOW
from tests.beds.store import API, DOMAIN, WEB, MiniCa, csr, ders

MADE: Made = authority.make(DOMAIN, NOW)
ROOT = MADE.root.certificate
OWN = authority.Authority(DOMAIN, (ROOT,), ROOT, MADE.issuing, MADE.delegate)
SECOND = timedelta(seconds=1)


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[MiniCa]:
    made = MiniCa(tmp_path / "store.db", OWN)
    yield made
    made.store.close()


def listed(ca: MiniCa) -> RevocationList:
    return ca.store.read(lambda connection: revocations.current_list(connection, DOMAIN, ca.clock.now))


def test_an_empty_list(ca: MiniCa) -> None:
    assert listed(ca) == RevocationList(DOMAIN, 1, NOW)


def test_an_identity_is_revoked_with_all_that_was_issued_in_this_second_too(ca: MiniCa) -> None:
    chain = ders(ca.enrol(ca.make_credential("secret"), csr()))
    token = ca.make_credential("token")
    web = ca.make_credential("secret", WEB)
    assert ca.revoke() == 2, "its secret and its token end"
    found = listed(ca)
    assert found.identities == {API: NOW + SECOND}
    assert parse_svid(chain[0]).not_before < found.identities[API]
    assert found.version == int(NOW.timestamp())
    assert ca.events()[-1] == ("revoked", str(API))
    query = sa.select(enrolment_credentials).where(enrolment_credentials.c.ended_at > 0)
    ended = ca.store.read(lambda connection: connection.execute(query).all())
    assert len(ended) == 2
    assert ca.enrol(web, csr(uris=[str(WEB)]), "web"), "web's are good"
    assert token


def test_each_change_has_a_higher_version(ca: MiniCa) -> None:
    versions = [listed(ca).version]
    for identity in (API, WEB, API):
        ca.revoke(identity)
        versions.append(listed(ca).version)
    assert versions == sorted(set(versions))
    ca.clock.pass_by(hours=-5)
    ca.revoke(WEB)
    assert listed(ca).version > versions[-1], "whatever the clock says"


def test_revoked_again_is_revoked_until_then(ca: MiniCa) -> None:
    ca.revoke()
    ca.clock.pass_by(hours=3)
    ca.revoke()
    assert listed(ca).identities == {API: NOW + 3 * HOUR + SECOND}


def test_a_clock_that_was_set_back_takes_no_revocation_back(ca: MiniCa) -> None:
    ca.revoke()
    ca.clock.pass_by(hours=-2)
    ca.revoke()
    assert listed(ca).identities == {API: NOW + SECOND}


def test_one_certificate_is_revoked_by_its_serial(ca: MiniCa) -> None:
    svid = parse_svid(ders(ca.enrol(ca.make_credential(), csr()))[0])

    def revoke(serial: int) -> str:
        return ca.store.write(lambda transaction: revocations.revoke_certificate(transaction, serial))

    assert revoke(svid.serial) == str(API)
    found = listed(ca)
    assert found.serials == {(svid.issuer, svid.serial)}
    assert found.identities == {}
    assert revoke(svid.serial) == str(API), "again changes nothing"
    assert listed(ca).version == found.version
    assert ca.events().count(("revoked", str(API))) == 1
    for unknown in (0, 1, -1, svid.serial + 1, 1 << 200):
        with pytest.raises(UsageError, match=r"this CA issued no certificate with the serial .*certs list"):
            revoke(unknown)


def test_what_can_matter_no_more_leaves_the_list_and_nothing_sooner(ca: MiniCa) -> None:
    svid = parse_svid(ders(ca.enrol(ca.make_credential(), csr()))[0])
    ca.store.write(lambda transaction: revocations.revoke_certificate(transaction, svid.serial))
    ca.revoke(WEB)
    ca.clock.now = svid.not_after
    assert listed(ca).serials
    ca.clock.pass_by(seconds=1)
    assert not listed(ca).serials
    ca.clock.now = NOW + timedelta(hours=25)
    assert WEB in listed(ca).identities, "a leaf of 25 hours may be good still"
    ca.clock.now = NOW + timedelta(hours=27)
    assert not listed(ca).identities


def test_the_list_is_what_its_readers_read(ca: MiniCa) -> None:
    ca.revoke(SpiffeId(DOMAIN, ("batch", "nightly")))
    found = listed(ca)
    document = documents.sign_revocations(found, MADE.delegate)
    assert documents.read_revocations(document, Bundle(DOMAIN, 1, (ROOT,), certificate_digest(ROOT)), NOW) == found
