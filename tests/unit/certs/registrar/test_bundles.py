"""What everybody is told, as the store has it: bundles only newer, revocations never taken back, and who has heard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from certs.registrar.followers import Follower

from certs.authority import authority
from certs.authority.authority import Made
from certs.protocol import documents as trust
from certs.protocol.documents import Bundle, RevocationList, UntrustedError, digest
from certs.registrar import bundles, registrar, revocations
from certs.registrar import followers as standing_followers
from certs.registrar.bundles import MOST_BUNDLES
from certs.store.store import followers, issued, passes, revoked_serials
from sidecar.identity.judge import key_digest
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import SpiffeId, parse_svid
from tests.beds.certificates import DAY, HOUR
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


def bundle(version: int) -> Bundle:
    return Bundle(DOMAIN, version, (ROOT,), digest(ROOT))


def publish(ca: MiniCa, version: int) -> str:
    document = trust.sign_bundle(bundle(version), [MADE.root])
    ca.store.write(lambda transaction: bundles.publish(transaction, bundle(version), document))
    return document.decode()


def after(ca: MiniCa, version: int) -> list[str]:
    return ca.store.read(lambda connection: bundles.bundles_after(connection, version))


def listed(ca: MiniCa) -> RevocationList:
    return ca.store.read(lambda connection: bundles.revocations(connection, DOMAIN, ca.clock.now))


# -- bundles -----------------------------------------------------------------------------------------------------------


def test_a_new_store_has_none(ca: MiniCa) -> None:
    assert ca.store.read(bundles.newest_bundle) is None
    assert ca.store.read(lambda connection: bundles.bundles_after(connection, 0)) == []


def test_the_newest_is_told_and_those_after_one_that_a_reader_has_oldest_first(ca: MiniCa) -> None:
    first, second, third = (publish(ca, version) for version in (5, 6, 9))
    assert ca.store.read(bundles.newest_bundle) == third
    assert [after(ca, version) for version in (0, 5, 8, 9)] == [[first, second, third], [second, third], [third], []]
    assert ca.events()[-1] == ("bundle", "")


@pytest.mark.parametrize("version", [5, 4, 1])
def test_one_that_is_no_newer_is_not_published(ca: MiniCa, version: int) -> None:
    first = publish(ca, 5)
    with pytest.raises(UsageError, match=f"a bundle of version {version} is no news after 5"):
        publish(ca, version)
    assert ca.store.read(bundles.newest_bundle) == first
    assert len(ca.events()) == 1
    publish(ca, 6)


def test_an_answer_has_the_newest_of_many(ca: MiniCa) -> None:
    documents = [publish(ca, version) for version in range(1, MOST_BUNDLES + 4)]
    told = ca.store.read(lambda connection: bundles.bundles_after(connection, 1))
    assert told == documents[-MOST_BUNDLES:]


def test_a_store_of_another_ca_is_not_taken_for_ours(ca: MiniCa) -> None:
    document = publish(ca, 5)
    assert bundles.own_bundle(document, DOMAIN, [ROOT], NOW) == bundle(5)
    other = authority.make(DOMAIN, NOW).root.certificate
    with pytest.raises(UntrustedError, match="not by a root that is trusted here"):
        bundles.own_bundle(document, DOMAIN, [other], NOW)
    with pytest.raises(UntrustedError, match="of the trust domain"):
        bundles.own_bundle(document, "other.internal", [ROOT], NOW)


def test_a_stolen_issuing_key_is_distrusted_by_a_bundle_that_the_root_signs(ca: MiniCa) -> None:
    gone, later = key_digest(MADE.issuing.certificate), b"\x02" * 32

    def distrust(key: bytes) -> int:
        return ca.store.write(lambda transaction: bundles.distrust(transaction, key, OWN, MADE.root, NOW))

    with pytest.raises(UsageError, match="no trust bundle yet"):
        distrust(gone)
    publish(ca, 5)
    version = distrust(gone)
    newest = bundles.own_bundle(str(ca.store.read(bundles.newest_bundle)), DOMAIN, [ROOT], NOW)
    assert newest == replace(bundle(version), distrusted=frozenset({gone}))
    assert version == int(NOW.timestamp())
    assert distrust(later) == version + 1
    newest = bundles.own_bundle(str(ca.store.read(bundles.newest_bundle)), DOMAIN, [ROOT], NOW)
    assert newest.distrusted == {gone, later}, "the one before is not forgotten"
    assert ca.events()[-1] == ("distrusted", "")


# -- revocations -------------------------------------------------------------------------------------------------------


def test_an_empty_list(ca: MiniCa) -> None:
    assert listed(ca) == RevocationList(DOMAIN, 1, NOW)


def test_an_identity_is_revoked_with_all_that_was_issued_in_this_second_too(ca: MiniCa) -> None:
    chain = ders(ca.enrol(ca.make_pass("secret"), csr()))
    token = ca.make_pass("token")
    web = ca.make_pass("secret", WEB)
    assert ca.revoke() == 2, "its secret and its token end"
    found = listed(ca)
    assert found.identities == {API: NOW + SECOND}
    assert parse_svid(chain[0]).not_before < found.identities[API]
    assert found.version == int(NOW.timestamp())
    assert ca.events()[-1] == ("revoked", str(API))
    ended = ca.store.read(lambda connection: connection.execute(sa.select(passes).where(passes.c.ended_at > 0)).all())
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
    svid = parse_svid(ders(ca.enrol(ca.make_pass(), csr()))[0])

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
    svid = parse_svid(ders(ca.enrol(ca.make_pass(), csr()))[0])
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
    document = trust.sign_revocations(found, MADE.delegate)
    assert trust.read_revocations(document, bundle(1), NOW) == found


# -- who follows -------------------------------------------------------------------------------------------------------


def follower(
    instance: str, identity: SpiffeId = API, *, not_after: datetime = NOW + HOUR, version: int = 5
) -> Follower:
    return Follower(instance, str(identity), version, "0" * 64, not_after, NOW)


def note(ca: MiniCa, one: Follower) -> None:
    ca.store.write(lambda transaction: standing_followers.seen(transaction, one))


def all_of(ca: MiniCa) -> list[Follower]:
    return ca.store.read(lambda connection: standing_followers.all_followers(connection, ca.clock.now))


def test_who_says_to_be_ever_more_replicas_is_not_believed_without_end(
    ca: MiniCa, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "MOST_FOLLOWERS", 3)
    honest = follower("f" * 32, WEB)
    note(ca, honest)
    for number in range(10):
        note(ca, replace(follower(f"{number:032}"), seen_at=NOW + timedelta(seconds=number)))
    assert [one.instance for one in all_of(ca)] == [*(f"{number:032}" for number in (7, 8, 9)), honest.instance]
    note(ca, replace(follower(f"{7:032}"), seen_at=NOW + timedelta(seconds=20)))
    note(ca, replace(follower(f"{10:032}"), seen_at=NOW + timedelta(seconds=21)))
    assert {one.instance for one in all_of(ca)} >= {f"{7:032}", f"{10:032}"}, "whoever goes on asking stays"


def test_each_sidecar_is_remembered_as_it_was_last(ca: MiniCa) -> None:
    web, one, two = follower("c" * 32, WEB), follower("b" * 32), follower("a" * 32)
    for each in (web, one, two):
        note(ca, each)
    assert all_of(ca) == [two, one, web]
    newer = replace(one, bundle=6, seen_at=NOW + HOUR, not_after=NOW + 2 * HOUR, root="1" * 64)
    note(ca, newer)
    assert all_of(ca) == [two, newer, web]


def test_whoever_s_certificate_has_ended_is_not_counted(ca: MiniCa) -> None:
    note(ca, follower("a" * 32))
    ca.clock.now = NOW + HOUR
    assert len(all_of(ca)) == 1
    ca.clock.pass_by(seconds=1)
    assert all_of(ca) == []


# -- what is forgotten -------------------------------------------------------------------------------------------------


def counted(ca: MiniCa) -> dict[str, int]:
    tables = (issued, followers, passes, revoked_serials)
    return ca.store.read(
        lambda connection: {
            table.name: connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            for table in tables
        }
    )


def test_a_month_after_its_end_a_thing_is_forgotten_and_the_audit_log_forgets_nothing(ca: MiniCa) -> None:
    svid = parse_svid(ders(ca.enrol(ca.make_pass("token"), csr()))[0])
    ca.store.write(lambda transaction: revocations.revoke_certificate(transaction, svid.serial))
    note(ca, follower("a" * 32))
    ca.make_pass("secret")
    ca.store.write(lambda transaction: registrar.end_passes(transaction, API, "secret"))
    lasting = ca.make_pass("secret")
    before, told = counted(ca), ca.events()
    ca.clock.now = NOW + 30 * DAY
    ca.store.write(bundles.prune)
    assert counted(ca) == before
    ca.clock.now = NOW + 30 * DAY + HOUR + SECOND
    ca.store.write(bundles.prune)
    assert counted(ca) == {"issued": 0, "followers": 0, "passes": 1, "revoked_serials": 0}
    assert ca.events() == told
    assert ca.enrol(lasting, csr()), "a secret that nobody ended is as good as ever"
