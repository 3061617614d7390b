"""What is revoked, as the store has it: no revocation is taken back, and each leaves the list when it matters no more."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa

from certs.authority import authority
from certs.authority.authority import Made
from certs.protocol import documents
from certs.protocol.documents import LISTS_A_SECOND, Bundle, RevocationList
from certs.registrar import revocations
from certs.store.store import Transaction, enrolment_credentials, revoked_identities, revoked_serials
from sidecar.agent.trust import Instant, Trust
from sidecar.identity.keys import certificate_digest
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import SpiffeId, Svid, parse_svid
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
    assert found.version == documents.version_at(NOW, LISTS_A_SECOND)
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


def test_a_list_after_a_thousand_revocations_in_a_second_is_taken_by_a_sidecar(ca: MiniCa) -> None:
    """Its version is not so far ahead of the clock that it looks like one by a thief, who wants no other to count."""

    def burst(transaction: Transaction) -> None:
        revocations.revoke_identity(transaction, API)
        for _ in range(998):
            revocations.raise_version(transaction)  # as each revocation does
        revocations.revoke_identity(transaction, WEB)

    ca.store.write(burst)
    bundle = Bundle(DOMAIN, 1, (ROOT,), certificate_digest(ROOT))
    trust = Trust(DOMAIN, bundle.active, bundle)
    taken = trust.take(documents.sign_revocations(listed(ca), MADE.delegate), Instant(ca.clock.now, 0.0))
    assert set(taken.of_the_ca().identities) == {API, WEB}


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
    ca.clock.now = svid.not_after + HOUR
    assert listed(ca).serials, "a reader's clock may be an hour behind"
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


# -- clocks that are apart ---------------------------------------------------------------------------------------------


def enrolled_when(ca: MiniCa, ahead: timedelta, identity: SpiffeId = API) -> Svid:
    """A certificate from a replica whose clock is ahead."""
    ca.clock.now += ahead
    chain = ca.enrol(ca.make_credential("secret", identity), csr(uris=[str(identity)]), str(identity.service))
    ca.clock.now -= ahead
    return parse_svid(ders(chain)[0])


def revokes(found: RevocationList, svid: Svid) -> bool:
    """What a reader of the list makes of a certificate."""
    return (svid.issuer, svid.serial) in found.serials or svid.not_before < found.identities.get(
        svid.id, NOW - 99 * HOUR
    )


@pytest.mark.parametrize("ahead", [timedelta(0), timedelta(seconds=61), timedelta(seconds=62), HOUR, 30 * HOUR])
def test_what_a_clock_that_is_ahead_dated_later_is_revoked_by_its_serial(ca: MiniCa, ahead: timedelta) -> None:
    svid, webs = enrolled_when(ca, ahead), enrolled_when(ca, ahead, WEB)
    ca.revoke()
    found = listed(ca)
    assert revokes(found, svid)
    assert not revokes(found, webs), "another service's is left alone"
    assert found.identities == {API: NOW + SECOND}, "so that the service may come back now"
    assert len(found.serials) == (ahead > timedelta(seconds=60)), "none of which the time revokes too"
    assert not revokes(found, enrolled_when(ca, SECOND)), "and it does"


def test_revoking_with_a_clock_that_is_behind_revokes_what_there_is(ca: MiniCa) -> None:
    svid = enrolled_when(ca, timedelta())
    ca.clock.pass_by(hours=-3)
    ca.revoke()
    assert revokes(listed(ca), svid)


def test_what_begins_at_the_very_time_of_an_earlier_revocation_is_revoked_again(ca: MiniCa) -> None:
    ca.revoke()
    svid = enrolled_when(ca, timedelta())
    assert svid.not_before == NOW + SECOND
    ca.revoke()
    assert revokes(listed(ca), svid)


def test_what_has_ended_is_not_listed(ca: MiniCa) -> None:
    svid = enrolled_when(ca, 3 * HOUR)
    ca.clock.now = svid.not_after + HOUR + SECOND
    ca.clock.now, later = NOW, ca.clock.now
    ca.revoke(WEB)
    ca.clock.now = later
    ca.revoke()
    assert not listed(ca).serials


def test_a_serial_that_the_time_revokes_too_leaves_the_list(ca: MiniCa) -> None:
    svid, later = enrolled_when(ca, timedelta()), enrolled_when(ca, HOUR)
    for one in (svid, later):
        ca.store.write(partial(revocations.revoke_certificate, serial=one.serial))
    assert len(listed(ca).serials) == 2
    ca.revoke()
    found = listed(ca)
    assert found.serials == {(later.issuer, later.serial)}
    assert revokes(found, svid)


# -- a list that its readers can read ----------------------------------------------------------------------------------


def fill_the_list(ca: MiniCa) -> None:
    """Revoked serials, so many that one more has no room."""
    issuer = b64encode(MADE.issuing.certificate.subject.public_bytes()).decode()
    each = len(issuer) + 40 + 8
    ended = int((NOW + HOUR).timestamp())
    rows = [
        {"issuer": issuer, "serial": f"{(1 << 159) + number:040x}", "not_after": ended}
        for number in range(revocations.ROOM_BYTES // each)
    ]
    ca.store.write(lambda it: it.connection.execute(revoked_serials.insert(), rows))


def is_readable(ca: MiniCa) -> bool:
    """Also with as much more as a list may hold of other things."""
    document = documents.sign_revocations(listed(ca), MADE.delegate)
    bundle = Bundle(DOMAIN, 1, (ROOT,), certificate_digest(ROOT))
    return documents.read_revocations(document, bundle, NOW) == listed(ca) and len(document) <= documents.MAX_BYTES - (
        120 << 10
    )


@pytest.mark.parametrize("missing", [0, 1])
def test_the_last_byte_of_the_room_is_used_and_no_more(
    ca: MiniCa, monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    svid = enrolled_when(ca, timedelta())
    entry = len(b64encode(svid.issuer)) + len(f"{svid.serial:x}") + 8
    monkeypatch.setattr(revocations, "ROOM_BYTES", entry - missing)
    revoke = partial(revocations.revoke_certificate, serial=svid.serial)
    with pytest.raises(UsageError) if missing else nullcontext():
        ca.store.write(revoke)


def test_of_what_is_not_revoked_nothing_is_dated_later(ca: MiniCa) -> None:
    enrolled_when(ca, HOUR)
    assert ca.store.write(lambda it: revocations.dated_later(it, API)) == []
    ca.revoke()
    assert len(ca.store.write(lambda it: revocations.dated_later(it, API))) == 1


def test_a_serial_that_the_list_has_no_room_for_is_refused_with_what_to_do(ca: MiniCa) -> None:
    svid = enrolled_when(ca, timedelta())
    fill_the_list(ca)
    version = listed(ca).version
    with pytest.raises(UsageError, match=r"no more single certificates.*certs revoke api$"):
        ca.store.write(lambda it: revocations.revoke_certificate(it, svid.serial))
    assert is_readable(ca)
    assert listed(ca).version == version
    ca.clock.now = NOW + 2 * HOUR + SECOND
    assert ca.store.write(lambda it: revocations.revoke_certificate(it, svid.serial)) == str(API), "there is room again"


def test_a_service_with_more_later_certificates_than_there_is_room_for_is_revoked_by_a_later_time(ca: MiniCa) -> None:
    svids = [enrolled_when(ca, HOUR), enrolled_when(ca, 2 * HOUR)]
    fill_the_list(ca)
    ca.store.write(
        lambda it: it.connection.execute(
            revoked_serials.delete().where(revoked_serials.c.serial == f"{(1 << 159):040x}")
        )
    )
    ca.revoke()
    found = listed(ca)
    assert all(revokes(found, svid) for svid in svids)
    assert found.identities == {API: svids[1].not_before + SECOND}
    assert is_readable(ca)


def test_a_full_list_is_said_and_nothing_is_half_revoked(ca: MiniCa) -> None:
    secret = ca.make_credential("secret")
    fill_the_list(ca)
    fill = sa.insert(revoked_identities).values(identity=f"spiffe://{DOMAIN}/{'x' * 100}", before=int(NOW.timestamp()))
    ca.store.write(lambda it: it.connection.execute(fill))
    with pytest.raises(UsageError, match=r"no more services.*certs renew-issuing --distrust"):
        ca.revoke()
    assert API not in listed(ca).identities
    assert ca.enrol(secret, csr())
    ca.store.write(lambda it: it.connection.execute(revoked_serials.delete()))
    assert ca.revoke() == 1
