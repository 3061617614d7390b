"""Who gets a certificate: each way to one, and beside it each way to be told no; nothing is left of what was refused."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from certs.authority import authority
from certs.authority.authority import Authority
from certs.protocol import enrolment
from certs.protocol.csr import key_hash, proof_of_possession
from certs.protocol.denial import Denial, Denied
from certs.registrar import followers, registrar, revocations
from certs.registrar.commands import Commands
from certs.registrar.followers import Follower
from certs.store.store import enrolment_credentials, issued, revoked_serials
from certs.store.store import followers as followers_table
from sidecar.identity.keys import key_digest
from sidecar.identity.spiffe import parse_svid
from tests.beds.certificates import DAY, HOUR, ec_key, rsa_key
from tests.beds.certificates import Authority as Factory
from tests.beds.clock import NOW
from tests.beds.store import API, DOMAIN, OWN, WEB, MiniCa, csr, ders, leaves, new_authority

WEB_URI = "spiffe://shop.internal/web"
NONCE = b"nonce"


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[MiniCa]:
    made = MiniCa(tmp_path / "store.db")
    yield made
    made.store.close()


def refused(call: Callable[[], object]) -> Denial:
    with pytest.raises(Denied) as denied:
        call()
    return denied.value.denial


def signature(key: ec.EllipticCurvePrivateKey, new: ec.EllipticCurvePrivateKey, nonce: bytes = NONCE) -> bytes:
    return key.sign(proof_of_possession(nonce, new.public_key()), ec.ECDSA(hashes.SHA256()))


def enrolled(ca: MiniCa, key: ec.EllipticCurvePrivateKey | None = None) -> list[bytes]:
    """A certificate of api's, with its chain, in DER."""
    return ders(ca.enrol(ca.make_credential(), csr(key or ec_key())))


def by_hand(ca: MiniCa, name: str, own: Authority | None = None) -> authority.Issued:
    """As ``certs issue`` does."""
    made = authority.issue(own or ca.authority, name, ca.clock.now)
    ca.store.write(lambda transaction: registrar.remember(transaction, made.chain, "command"))
    return made


def der_of(made: authority.Issued) -> bytes:
    return made.chain[0].public_bytes(Encoding.DER)


# -- enrolment ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["token", "secret"])
def test_whoever_has_a_pass_gets_its_service_s_certificate(ca: MiniCa, kind: enrolment.Kind) -> None:
    key = ec_key()
    leaf, issuer = leaves(ca.enrol(ca.make_credential(kind), csr(key)))
    svid = parse_svid(leaf.public_bytes(Encoding.DER))
    assert svid.id == API
    assert leaf.public_key() == key.public_key()
    assert issuer == ca.authority.issuer.certificate
    leaf.verify_directly_issued_by(issuer)
    assert (svid.not_before, svid.not_after) == (NOW - timedelta(minutes=1), NOW + HOUR)
    assert ca.events() == [(f"{kind}_made", str(API)), ("issued", str(API))]


def test_the_lifetime_is_the_ca_s_to_say(ca: MiniCa) -> None:
    (leaf, _) = leaves(ca.enrol(ca.make_credential(), csr(), terms=ca.but(ttl=5 * HOUR)))
    assert leaf.not_valid_after_utc == NOW + 5 * HOUR


def test_a_token_is_used_once(ca: MiniCa) -> None:
    token = ca.make_credential("token")
    assert ca.enrol(token, csr())
    assert refused(lambda: ca.enrol(token, csr())) is Denial.PASS_USED
    assert len(ca.events()) == 2


def test_a_secret_as_often_as_its_service_starts(ca: MiniCa) -> None:
    secret = ca.make_credential("secret")
    chains = [ca.enrol(secret, csr()) for _ in range(5)]
    assert len(set(chains)) == 5
    ca.clock.pass_by(days=365)
    assert refused(lambda: ca.enrol(secret, csr())) is Denial.UNAVAILABLE, "the issuing CA has ended, not the secret"
    ca.clock.pass_by(days=-300)
    assert ca.enrol(secret, csr())


def test_of_many_who_use_one_token_at_once_exactly_one_wins(ca: MiniCa) -> None:
    """Two threads, each with a store of its own, as two replicas have; ten times."""
    another = ca.another_store()
    for _ in range(10):
        token, barrier = ca.make_credential(), threading.Barrier(2)
        outcomes: list[object] = []

        def race(store: Any, token: Any = token, outcomes: list[object] = outcomes, barrier: Any = barrier) -> None:
            request = csr()
            barrier.wait(10)
            try:
                outcomes.append(ca.enrol(token, request, store=store))
            except Denied as denied:
                outcomes.append(denied.denial)

        threads = [threading.Thread(target=race, args=(store,)) for store in (ca.store, another)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(outcomes) == 2
        assert outcomes.count(Denial.PASS_USED) == 1
    assert (
        ca.store.read(lambda connection: connection.execute(sa.select(sa.func.count(issued.c.serial))).scalar()) == 10
    )
    another.close()


def test_the_same_request_again_gets_the_same_certificate_for_five_minutes(ca: MiniCa) -> None:
    """The answer was lost on its way, and the token with it, if it were not so."""
    token, key = ca.make_credential("token"), ec_key()
    first = ca.enrol(token, csr(key))
    assert ca.enrol(token, csr(key)) == first
    ca.clock.pass_by(minutes=5)
    assert ca.enrol(token, csr(key, uris=())) == first
    ca.clock.pass_by(seconds=1)
    assert refused(lambda: ca.enrol(token, csr(key))) is Denial.KEY_REUSED
    assert ca.events().count(("issued", str(API))) == 1


def test_a_token_is_good_for_five_minutes(ca: MiniCa) -> None:
    early, late = ca.make_credential("token"), ca.make_credential("token")
    ca.clock.pass_by(seconds=299)
    assert ca.enrol(early, csr())
    ca.clock.pass_by(seconds=1)
    assert refused(lambda: ca.enrol(late, csr())) is Denial.PASS_EXPIRED


@pytest.mark.parametrize("kind", ["token", "secret"])
def test_a_pass_that_was_ended(ca: MiniCa, kind: enrolment.Kind) -> None:
    mine, other = ca.make_credential(kind), ca.make_credential(kind, WEB)
    assert ca.store.write(lambda transaction: registrar.end_credentials(transaction, API)) == 1
    assert refused(lambda: ca.enrol(mine, csr())) is Denial.PASS_EXPIRED
    assert ca.enrol(other, csr(uris=[WEB_URI]), "web"), "web's is good still"
    assert ca.store.write(lambda transaction: registrar.end_credentials(transaction, API)) == 0


def test_passes_of_one_kind_are_ended(ca: MiniCa) -> None:
    token, secret = ca.make_credential("token"), ca.make_credential("secret")
    assert ca.store.write(lambda transaction: registrar.end_credentials(transaction, API, "secret")) == 1
    assert refused(lambda: ca.enrol(secret, csr())) is Denial.PASS_EXPIRED
    assert ca.enrol(token, csr())


def test_a_pass_of_another_service(ca: MiniCa) -> None:
    token = ca.make_credential("token", WEB)
    with pytest.raises(Denied, match="this CA has no such token or enrolment secret of api"):
        ca.enrol(token, csr())
    assert refused(lambda: ca.enrol(token, csr(uris=[WEB_URI]))) is Denial.BAD_PASS, "nor by asking for both"
    assert refused(lambda: ca.enrol(token, csr(), "web")) is Denial.BAD_CSR
    assert ca.enrol(token, csr(uris=[WEB_URI]), "web"), "and it is not used up by that"


def test_a_forged_pass(ca: MiniCa) -> None:
    token = ca.make_credential("token")
    forged = enrolment.make("token", token.root)
    as_secret = enrolment.EnrolmentCredential("secret", token.secret, token.root)
    for other in (forged, as_secret):
        assert refused(lambda other=other: ca.enrol(other, csr())) is Denial.BAD_PASS  # type: ignore[misc]
    assert ca.enrol(token, csr())


def test_what_is_kept_of_a_pass_opens_nothing(ca: MiniCa) -> None:
    token = ca.make_credential("token")
    rows = ca.store.read(lambda connection: connection.execute(sa.select(enrolment_credentials)).all())
    assert token.secret not in repr(rows)
    assert (
        refused(lambda: ca.enrol(enrolment.EnrolmentCredential("token", rows[0].hash[:32], token.root), csr()))
        is Denial.BAD_PASS
    )


@pytest.mark.parametrize("service", ["db", "ca", "mesh/ca", "api/", "../api", "API", "", "api\n", "*", "a" * 3000])
def test_a_service_that_is_not_in_the_mesh(ca: MiniCa, service: str) -> None:
    with pytest.raises(Denied, match="or no such service") as denied:
        ca.enrol(ca.make_credential(), csr(uris=()), service)
    assert denied.value.denial is Denial.BAD_PASS, "which says nothing about the mesh"
    assert len(denied.value.message) < 250


def test_a_service_that_has_left_the_mesh_has_nothing_of_its_pass(ca: MiniCa) -> None:
    token = ca.make_credential()
    with pytest.raises(Denied, match=r"there is no service 'api' in the CA's mesh\.yaml") as denied:
        ca.enrol(token, csr(), terms=ca.but(services={"web"}))
    assert denied.value.denial is Denial.UNKNOWN_SERVICE
    assert ca.enrol(token, csr())


@pytest.mark.parametrize(
    "request_", ["junk", csr(uris=[WEB_URI]), csr(cn="api"), csr(rsa_key())], ids=["junk", "web", "CN", "RSA"]
)
def test_a_bad_csr_uses_up_no_token(ca: MiniCa, request_: str) -> None:
    token = ca.make_credential()
    assert refused(lambda: ca.enrol(token, request_)) is Denial.BAD_CSR
    assert ca.enrol(token, csr())


def test_a_ca_that_nobody_would_believe_issues_nothing(ca: MiniCa) -> None:
    secret = ca.make_credential("secret")
    with pytest.raises(Denied, match="this CA cannot issue now: a key is distrusted") as denied:
        ca.enrol(secret, csr(), terms=ca.but(unfit="a key is distrusted"))
    assert denied.value.denial is Denial.UNAVAILABLE
    assert ca.enrol(secret, csr())


def test_a_key_is_certified_for_one_service_and_once(ca: MiniCa) -> None:
    key = ec_key()
    ca.enrol(ca.make_credential(), csr(key))
    assert (
        refused(lambda: ca.enrol(ca.make_credential("token", WEB), csr(key, uris=[WEB_URI]), "web"))
        is Denial.KEY_REUSED
    )
    assert ca.enrol(ca.make_credential("token", WEB), csr(uris=[WEB_URI]), "web")


# -- the rate limit ----------------------------------------------------------------------------------------------------


def test_whether_it_is_too_often_is_asked_last(ca: MiniCa) -> None:
    asked: list[str] = []

    def admit(identity: str) -> bool:
        asked.append(identity)
        return False

    terms = ca.but(admit=admit)
    token, key = ca.make_credential(), ec_key()
    for wrong in (
        lambda: ca.enrol(enrolment.make("token", token.root), csr(), terms=terms),
        lambda: ca.enrol(token, csr(uris=[WEB_URI]), terms=terms),
        lambda: ca.enrol(token, csr(), "db", terms=terms),
    ):
        assert refused(wrong) is not Denial.RATE_LIMITED
    assert asked == [], "nobody takes another's turns by asking wrongly"
    assert refused(lambda: ca.enrol(token, csr(key), terms=terms)) is Denial.RATE_LIMITED
    assert asked == [str(API)]
    first = ca.enrol(token, csr(key))
    assert ca.enrol(token, csr(key), terms=terms) == first, "the same answer again costs no turn"
    assert asked == [str(API)]


def test_a_token_is_not_used_up_by_coming_too_often(ca: MiniCa) -> None:
    token = ca.make_credential()
    assert refused(lambda: ca.enrol(token, csr(), terms=ca.but(admit=lambda _: False))) is Denial.RATE_LIMITED
    assert ca.enrol(token, csr())


# -- renewal -----------------------------------------------------------------------------------------------------------


def test_a_certificate_is_renewed_for_another_key(ca: MiniCa) -> None:
    old, key = enrolled(ca), ec_key()
    ca.clock.pass_by(minutes=30)
    leaf, _ = leaves(ca.renew(old, csr(key)))
    assert leaf.public_key() == key.public_key()
    assert leaf.not_valid_after_utc == NOW + timedelta(minutes=90)
    assert ca.events()[-1] == ("issued", str(API))


def test_not_for_the_key_that_it_has(ca: MiniCa) -> None:
    key = ec_key()
    old = enrolled(ca, key)
    ca.clock.pass_by(minutes=30)
    assert refused(lambda: ca.renew(old, csr(key))) is Denial.KEY_REUSED


def test_not_for_another_service(ca: MiniCa) -> None:
    old = enrolled(ca)
    assert refused(lambda: ca.renew(old, csr(uris=[WEB_URI]))) is Denial.BAD_CSR
    assert ca.renew(old, csr())


def test_not_on_a_connection_that_outlived_its_certificate(ca: MiniCa) -> None:
    old = enrolled(ca)
    ca.clock.now = NOW + HOUR
    assert ca.renew(old, csr())
    ca.clock.pass_by(seconds=1)
    assert refused(lambda: ca.renew(old, csr())) is Denial.EXPIRED


def test_not_when_it_was_revoked(ca: MiniCa) -> None:
    old, other = enrolled(ca), ders(ca.enrol(ca.make_credential("token", WEB), csr(uris=[WEB_URI]), "web"))
    ca.revoke()
    with pytest.raises(Denied, match="was revoked; if its service may come back: certs enrolment api") as denied:
        ca.renew(old, csr())
    assert denied.value.denial is Denial.REVOKED
    assert ca.renew(other, csr(uris=[WEB_URI])), "web was not"


def test_nor_when_it_alone_was(ca: MiniCa) -> None:
    old, twin = enrolled(ca), enrolled(ca)
    ca.store.write(lambda transaction: revocations.revoke_certificate(transaction, parse_svid(old[0]).serial))
    assert refused(lambda: ca.renew(old, csr())) is Denial.REVOKED
    assert ca.renew(twin, csr())


def test_not_when_its_service_left_the_mesh(ca: MiniCa) -> None:
    old = enrolled(ca)
    assert refused(lambda: ca.renew(old, csr(), ca.but(services=set()))) is Denial.UNKNOWN_SERVICE


@pytest.mark.parametrize("name", ["mesh/ca", "batch/nightly"])
def test_a_name_that_is_no_service_s_renews_nothing(ca: MiniCa, name: str) -> None:
    made = by_hand(ca, name)
    request = csr(uris=[f"spiffe://{DOMAIN}/{name}"])
    terms = ca.but(services={"ca", "mesh", "None", name})
    assert refused(lambda: ca.renew([der_of(made)], request, terms)) is Denial.NOT_ENTITLED


def test_another_trust_domain_s_certificate(ca: MiniCa) -> None:
    made = authority.issue(new_authority("other.internal"), "api", NOW)
    assert refused(lambda: ca.renew([der_of(made)], csr())) is Denial.NOT_ENTITLED


def test_a_distrusted_issuer_s_certificate_is_renewed_only_if_this_ca_made_it(ca: MiniCa) -> None:
    """Whoever stole the issuing key can make certificates, and cannot enter them in the store."""
    known = enrolled(ca)
    forged = [one.public_bytes(Encoding.DER) for one in authority.issue(ca.authority, "api", NOW).chain]
    assert ca.renew(forged, csr()), "nothing is wrong with it before"
    terms = ca.but(distrusted=frozenset({key_digest(ca.authority.issuer.certificate)}))
    assert refused(lambda: ca.renew(forged, csr(), terms)) is Denial.REVOKED
    assert ca.renew(known, csr(), terms)


# -- re-enrolment, by the key of a certificate that has ended ----------------------------------------------------------


def test_by_the_old_key_a_service_that_slept_comes_back(ca: MiniCa) -> None:
    old_key, new = ec_key(), ec_key()
    old = enrolled(ca, old_key)[0]
    ca.clock.pass_by(hours=10)
    leaf, _ = leaves(ca.reenrol(old, NONCE, signature(old_key, new), csr(new)))
    assert leaf.public_key() == new.public_key()
    row = ca.store.read(
        lambda connection: connection.execute(
            sa.select(issued).where(issued.c.key_hash == key_hash(new.public_key()))
        ).one()
    )
    assert row.how == "re-enrolment"


@pytest.mark.parametrize(("after", "good"), [(timedelta(0), True), (DAY, True), (DAY + timedelta(seconds=1), False)])
def test_until_the_window_has_closed(ca: MiniCa, after: timedelta, good: bool) -> None:
    old_key, new = ec_key(), ec_key()
    old = enrolled(ca, old_key)[0]
    ca.clock.now = NOW + HOUR + after
    if good:
        assert ca.reenrol(old, NONCE, signature(old_key, new), csr(new))
    else:
        with pytest.raises(Denied, match=r"could be renewed until .* enrol anew: certs token api") as denied:
            ca.reenrol(old, NONCE, signature(old_key, new), csr(new))
        assert denied.value.denial is Denial.EXPIRED


def test_the_window_is_the_mesh_s_to_say(ca: MiniCa) -> None:
    old_key, new = ec_key(), ec_key()
    old = enrolled(ca, old_key)[0]
    ca.clock.now = NOW + HOUR + timedelta(seconds=1)
    proof = signature(old_key, new)
    assert refused(lambda: ca.reenrol(old, NONCE, proof, csr(new), ca.but(window=timedelta(0)))) is Denial.EXPIRED
    assert ca.reenrol(old, NONCE, proof, csr(new))


def test_the_wrong_key_s_signature(ca: MiniCa) -> None:
    old_key, new = ec_key(), ec_key()
    old = enrolled(ca, old_key)[0]
    for proof in (signature(new, new), signature(ec_key(), new), b"", b"junk"):
        assert refused(lambda proof=proof: ca.reenrol(old, NONCE, proof, csr(new))) is Denial.NOT_ENTITLED  # type: ignore[misc]
    assert ca.reenrol(old, NONCE, signature(old_key, new), csr(new))


def test_a_proof_that_was_overheard_helps_nobody_to_another_key(ca: MiniCa) -> None:
    old_key, new, thief = ec_key(), ec_key(), ec_key()
    old = enrolled(ca, old_key)[0]
    proof = signature(old_key, new)
    assert refused(lambda: ca.reenrol(old, NONCE, proof, csr(thief))) is Denial.NOT_ENTITLED
    assert refused(lambda: ca.reenrol(old, b"later", proof, csr(new))) is Denial.NOT_ENTITLED, (
        "nor is it of a later nonce"
    )
    first = ca.reenrol(old, NONCE, proof, csr(new))
    assert ca.reenrol(old, NONCE, proof, csr(new)) == first, "who repeats it gets what is no secret"


def test_a_certificate_that_this_ca_did_not_issue(ca: MiniCa) -> None:
    new = ec_key()
    forged = authority.issue(ca.authority, "api", NOW)
    proof = signature(forged.key, new)
    assert refused(lambda: ca.reenrol(der_of(forged), NONCE, proof, csr(new))) is Denial.NOT_ENTITLED
    for junk in (b"", b"junk"):
        assert refused(lambda junk=junk: ca.reenrol(junk, NONCE, proof, csr(new))) is Denial.NOT_ENTITLED  # type: ignore[misc]
    known = by_hand(ca, "api")
    assert ca.reenrol(der_of(known), NONCE, signature(known.key, new), csr(new))


def test_one_that_was_revoked(ca: MiniCa) -> None:
    old_key, new = ec_key(), ec_key()
    old = enrolled(ca, old_key)[0]
    ca.revoke()
    ca.clock.pass_by(hours=2)
    assert refused(lambda: ca.reenrol(old, NONCE, signature(old_key, new), csr(new))) is Denial.REVOKED


def test_not_for_another_service_nor_after_it_left_the_mesh(ca: MiniCa) -> None:
    old_key, new = ec_key(), ec_key()
    old, proof = enrolled(ca, old_key)[0], signature(old_key, new)
    assert refused(lambda: ca.reenrol(old, NONCE, proof, csr(new, uris=[WEB_URI]))) is Denial.BAD_CSR
    assert refused(lambda: ca.reenrol(old, NONCE, proof, csr(new), ca.but(services={"web"}))) is Denial.UNKNOWN_SERVICE


@pytest.mark.parametrize("name", ["mesh/ca", "batch/nightly"])
def test_the_mesh_s_own_names_come_back_as_nobody(ca: MiniCa, name: str) -> None:
    """Not even where a service has the name that Python has for nothing."""
    new, made = ec_key(), by_hand(ca, name)
    terms = ca.but(services={"None", "ca", "nightly"})
    proof = signature(made.key, new)
    assert refused(lambda: ca.reenrol(der_of(made), NONCE, proof, csr(new, uris=()), terms)) is Denial.NOT_ENTITLED


def test_a_certificate_of_the_trust_domain_that_this_store_was_of_before(ca: MiniCa) -> None:
    new, made = ec_key(), by_hand(ca, "api", new_authority("other.internal"))
    assert refused(lambda: ca.reenrol(der_of(made), NONCE, signature(made.key, new), csr(new))) is Denial.NOT_ENTITLED


# -- after a revocation ------------------------------------------------------------------------------------------------


def test_what_is_issued_after_a_revocation_is_not_under_it(ca: MiniCa) -> None:
    ca.revoke()
    before = ca.store.read(lambda connection: registrar.revoked_until(connection, API))
    assert before == NOW + timedelta(seconds=1)
    chain = ders(ca.enrol(ca.make_credential(), csr()))
    assert parse_svid(chain[0]).not_before == before, "not dated back a minute, as others are"
    assert ca.renew(chain, csr())
    ca.clock.pass_by(hours=1)
    late = parse_svid(ders(ca.enrol(ca.make_credential(), csr()))[0])
    assert late.not_before == ca.clock.now - timedelta(minutes=1)


def test_one_that_nobody_revoked_is_dated_back(ca: MiniCa) -> None:
    ca.revoke(WEB)
    assert ca.store.read(lambda connection: registrar.revoked_until(connection, API)) is None
    assert parse_svid(enrolled(ca)[0]).not_before == NOW - timedelta(minutes=1)


def test_when_the_clock_was_set_back_behind_a_revocation_nothing_is_issued_and_it_is_said(ca: MiniCa) -> None:
    ca.clock.pass_by(days=1)
    ca.revoke()
    ca.clock.pass_by(hours=-2)
    token = ca.make_credential()
    with pytest.raises(Denied, match=r"this CA cannot issue now: .* which is never") as denied:
        ca.enrol(token, csr())
    assert denied.value.denial is Denial.UNAVAILABLE
    ca.clock.pass_by(hours=2)
    assert ca.enrol(ca.make_credential(), csr())


# -- what is remembered ------------------------------------------------------------------------------------------------


def test_no_certificate_leaves_that_is_not_in_the_store(ca: MiniCa) -> None:
    chain = ca.enrol(ca.make_credential(), csr())
    row = ca.store.read(lambda connection: connection.execute(sa.select(issued)).one())
    svid = parse_svid(ders(chain)[0])
    assert (row.certificate, row.sha256, row.serial) == (chain, svid.sha256, f"{svid.serial:x}")
    assert (row.identity, row.how, row.not_after) == (str(API), "token", int(svid.not_after.timestamp()))


def test_only_a_leaf_of_ours_is_remembered(ca: MiniCa) -> None:
    foreign = Factory(now=NOW).leaf("api", key=rsa_key())
    with pytest.raises(TypeError, match="elliptic-curve"):
        ca.store.write(lambda transaction: registrar.remember(transaction, foreign.chain, "command"))
    assert ca.events() == []


def test_an_issuing_ca_that_ended_issues_nothing(ca: MiniCa) -> None:
    ca.clock.now = OWN.issuer.certificate.not_valid_after_utc
    token = ca.make_credential()
    assert refused(lambda: ca.enrol(token, csr())) is Denial.UNAVAILABLE
    ca.clock.pass_by(seconds=-1)
    assert ca.enrol(token, csr())


# -- what is forgotten -------------------------------------------------------------------------------------------------


def counted(ca: MiniCa) -> dict[str, int]:
    tables = (issued, followers_table, enrolment_credentials, revoked_serials)
    return ca.store.read(
        lambda connection: {
            table.name: connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            for table in tables
        }
    )


def test_a_month_after_its_end_a_thing_is_forgotten_and_the_audit_log_forgets_nothing(ca: MiniCa) -> None:
    svid = parse_svid(ders(ca.enrol(ca.make_credential("token"), csr()))[0])
    ca.store.write(lambda transaction: revocations.revoke_certificate(transaction, svid.serial))
    follower = Follower("a" * 32, str(API), 5, "0" * 64, NOW + HOUR, NOW)
    ca.store.write(lambda transaction: followers.save(transaction, follower))
    ca.make_credential("secret")
    ca.store.write(lambda transaction: registrar.end_credentials(transaction, API, "secret"))
    lasting = ca.make_credential("secret")
    before, told = counted(ca), ca.events()
    ca.clock.now = NOW + 30 * DAY
    ca.store.write(registrar.prune)
    assert counted(ca) == before
    ca.clock.now = NOW + 30 * DAY + HOUR + timedelta(seconds=1)
    ca.store.write(registrar.prune)
    assert counted(ca) == {"issued": 0, "followers": 0, "passes": 1, "revoked_serials": 0}
    assert ca.events() == told
    assert ca.enrol(lasting, csr()), "a secret that nobody ended is as good as ever"


def test_of_one_identity_s_ended_certificates_few_are_kept_and_all_that_may_renew(
    ca: MiniCa, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registrar, "MOST_ENDED", 2)
    ca.enrol(ca.make_credential("token", WEB), csr(uris=[WEB_URI]), "web")
    for _ in range(5):
        enrolled(ca)
        ca.clock.pass_by(hours=1)
    serials = ca.store.read(
        lambda it: (
            it.execute(sa.select(issued.c.serial).order_by(issued.c.issued_at, issued.c.identity.desc()))
            .scalars()
            .all()
        )
    )

    def kept(window: timedelta) -> list[str]:
        ca.store.write(lambda it: registrar.prune(it, window=window))
        order = sa.select(issued.c.serial).order_by(issued.c.issued_at, issued.c.identity.desc())
        return list(ca.store.read(lambda it: it.execute(order).scalars()))

    assert kept(DAY) == serials, "each may renew still"
    ca.clock.pass_by(hours=2)
    assert kept(4 * HOUR) == serials, "of two that may not"
    assert kept(HOUR) == [serials[0], *serials[4:]], "web's is not touched by what api has"


@pytest.mark.parametrize(("kind", "command"), [("token", "token"), ("secret", "enrolment")])
def test_which_command_makes_a_new_one(ca: MiniCa, kind: enrolment.Kind, command: str) -> None:
    shown = ca.make_credential(kind)
    ca.revoke()
    with pytest.raises(Denied, match=f"this {kind} was revoked; for a new one: certs {command} api$"):
        ca.enrol(shown, csr())
    with pytest.raises(Denied, match=f"this {kind} was revoked; for a new one: certs enrolment /s/ca api --out-dir "):
        ca.enrol(shown, csr(), terms=ca.but(commands=Commands("/s")))


def test_only_a_good_secret_is_one_that_is_held(ca: MiniCa) -> None:
    def held() -> list[bool]:
        return ca.store.read(lambda connection: [registrar.holds_secret(connection, who) for who in (API, WEB)])

    ca.make_credential("token")
    assert held() == [False, False]
    ca.make_credential("secret")
    assert held() == [True, False]
    ca.revoke()
    assert held() == [False, False]


def test_an_identity_is_known_by_its_certificate_or_its_credential(ca: MiniCa) -> None:
    def known() -> list[bool]:
        return ca.store.read(lambda connection: [registrar.is_known(connection, who) for who in (API, WEB)])

    assert known() == [False, False]
    ca.make_credential(identity=WEB)
    assert known() == [False, True]
    by_hand(ca, "api")
    assert known() == [True, True]
