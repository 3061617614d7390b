"""What a sidecar believes: which bundles and lists count, what they may not go back behind, what a stolen key is worth."""

from __future__ import annotations

import json
from base64 import b64encode
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from certs.authority import authority
from certs.authority.authority import Made
from certs.protocol import documents, x509_profile
from certs.protocol.documents import (
    LISTS_A_SECOND,
    Bundle,
    BundleName,
    RevocationList,
    UntrustedError,
    version_at,
)
from certs.protocol.x509_profile import Issuer
from sidecar.agent import trust as trust_module
from sidecar.agent.trust import AHEAD, PROOF_AGE, Floor, Instant, Learnt, Trust
from sidecar.identity.judge import Presented, VerifyParams, judge
from sidecar.identity.keys import certificate_digest, key_digest, new_key
from sidecar.identity.reasons import Reason, Refused
from sidecar.identity.spiffe import SpiffeId
from tests.beds.certificates import HOUR

NOW = datetime.now(UTC).replace(microsecond=0)
SECONDS = int(NOW.timestamp())
MESH = "shop.internal"
API, WEB = SpiffeId(MESH, ("api",)), SpiffeId(MESH, ("web",))
MINUTE, SECOND = timedelta(minutes=1), timedelta(seconds=1)
FIRST, SECOND_CA, THIRD = (authority.make(MESH, NOW - 10 * 24 * HOUR) for _ in range(3))
PIN = certificate_digest(FIRST.root.certificate)


def delegate(made: Made = FIRST) -> Issuer:
    """Another one, of the same root."""
    key = new_key()
    return Issuer(x509_profile.delegate(key.public_key(), made.root, NOW), key)


STOLEN, RENEWED = FIRST.delegate, delegate()
STOLEN_KEYS = frozenset({key_digest(FIRST.issuing.certificate), key_digest(STOLEN.certificate)})


def at(after: timedelta = timedelta(), set_by: timedelta = timedelta()) -> Instant:
    """Some time after the beginning, the wall clock having been set by somebody."""
    return Instant(NOW + after + set_by, 1000.0 + after.total_seconds())


def bundle(
    version: int, *roots: Made, active: Made | None = None, distrusted: frozenset[bytes] = frozenset()
) -> Bundle:
    certificates = tuple(root.root.certificate for root in roots)
    return Bundle(MESH, version, certificates, certificate_digest((active or roots[0]).root.certificate), distrusted)


def signed(wanted: Bundle, *signers: Made) -> bytes:
    return documents.sign_bundle(wanted, [signer.root for signer in signers or (FIRST,)])


def learn(*documents: bytes, have: Trust | None = None) -> Learnt:
    return (have or Trust(MESH, PIN)).learn(documents, at())


def believing(*wanted: Bundle) -> Trust:
    """With these bundles, which the first root signed."""
    return learn(*(signed(one) for one in wanted or (bundle(1, FIRST),))).trust


def name_of(wanted: Bundle) -> BundleName:
    found = learn(signed(wanted)).trust.bundle
    assert found is not None
    return found.name


def listed(
    version: int = 5, issued_at: datetime = NOW, signer: Issuer = FIRST.delegate, trust_domain: str = MESH, **said: Any
) -> bytes:
    return documents.sign_revocations(RevocationList(trust_domain, version, issued_at, **said), signer)


def why(trust: Trust, document: bytes, now: Instant | None = None) -> str:
    with pytest.raises(UntrustedError) as refused:
        trust.take(document, now or at())
    return str(refused.value)


# -- trust bundles -----------------------------------------------------------------------------------------------------


def test_the_first_bundle_is_one_that_the_pinned_root_signed() -> None:
    document = signed(bundle(1, FIRST))
    learnt = learn(document)
    assert (learnt.trust.bundle, learnt.document, learnt.faults) == (bundle(1, FIRST), document, ())
    foreign = learn(signed(bundle(1, SECOND_CA), SECOND_CA))
    assert foreign.trust.bundle is None
    assert foreign.faults == ("it is signed not by a root that is trusted here",)


def test_it_follows_the_signatures_from_one_root_to_the_next() -> None:
    both = signed(bundle(2, FIRST, SECOND_CA), FIRST, SECOND_CA)
    alone = signed(bundle(3, SECOND_CA), SECOND_CA)
    again = signed(bundle(4, SECOND_CA, THIRD), SECOND_CA)
    last = signed(bundle(5, THIRD), THIRD)
    learnt = learn(both, alone, again, last)
    assert (learnt.trust.bundle, learnt.document, learnt.faults) == (bundle(5, THIRD), last, ())


def test_a_link_that_is_missing_ends_the_way() -> None:
    learnt = learn(signed(bundle(2, FIRST, SECOND_CA)), signed(bundle(5, THIRD), THIRD))
    assert learnt.trust.bundle == bundle(2, FIRST, SECOND_CA)
    assert len(learnt.faults) == 1


def test_an_older_bundle_is_no_news() -> None:
    have = believing(bundle(7, FIRST))
    for version in (1, 6, 7):
        learnt = learn(signed(bundle(version, FIRST)), have=have)
        assert (learnt.trust, learnt.document) == (have, b"")
        assert learnt.faults == (f"version {version} is no newer than 7, which is in force",)
    assert learn(signed(bundle(8, FIRST)), have=have).trust.bundle == bundle(8, FIRST)


def test_a_root_that_is_retired_signs_nothing_more_not_even_the_pinned_one() -> None:
    """It is for the first contact; whoever has stolen an old root's key must not bring it back."""
    have = learn(signed(bundle(2, FIRST, SECOND_CA)), signed(bundle(7, SECOND_CA), SECOND_CA)).trust
    assert learn(signed(bundle(9, FIRST)), have=have).trust is have
    assert learn(signed(bundle(9, FIRST), SECOND_CA), have=have).trust.bundle == bundle(9, FIRST)


def test_nothing_and_garbage() -> None:
    empty = Trust(MESH, PIN)
    assert learn() == Learnt(empty, b"", ())
    assert learn(b"", b"garbage", b"[]").trust == empty
    assert learn(b"garbage", signed(bundle(1, FIRST))).trust.bundle == bundle(1, FIRST)
    payload = b64encode(json.dumps({"trust_domain": MESH}).encode()).decode()
    assert learn(json.dumps({"type": documents.BUNDLE, "payload": payload, "signatures": []}).encode()).faults == (
        "it is not signed",
    )


def test_a_token_is_of_this_mesh_if_its_root_is_pinned_or_trusted_by_now() -> None:
    second = certificate_digest(SECOND_CA.root.certificate)
    assert Trust(MESH, PIN).has_root(PIN)
    assert not Trust(MESH, PIN).has_root(second)
    both = believing(bundle(2, FIRST, SECOND_CA))
    assert both.has_root(second)
    assert not both.has_root(bytes(32))
    assert learn(signed(bundle(3, SECOND_CA), FIRST), have=both).trust.has_root(PIN), "the pinned one still is"


# -- lists -------------------------------------------------------------------------------------------------------------


def test_a_list_is_taken_if_it_is_no_older_than_the_newest_that_was() -> None:
    have = believing().take(listed(5, NOW - HOUR), at())
    for version, issued_at in ((5, NOW), (5, NOW - HOUR), (6, NOW - 2 * HOUR)):
        found = have.take(listed(version, issued_at), at()).listed
        assert found is not None
        assert (found.version, found.issued_at) == (version, issued_at)
    for version, issued_at in ((4, NOW), (5, NOW - 2 * HOUR)):
        assert "it is older (version" in why(have, listed(version, issued_at))


def test_nothing_is_taken_without_a_bundle_or_by_whom_nobody_trusts() -> None:
    assert why(Trust(MESH, PIN), listed()) == "there is no trust bundle to verify it by"
    assert "by a certificate that no trusted root issued" in why(believing(), listed(signer=SECOND_CA.delegate))
    assert "such as an issuing CA's" in why(believing(), listed(signer=FIRST.issuing))


def test_a_list_of_another_signer_is_not_taken_either_if_it_is_older() -> None:
    """A floor is kept of each, and each counts: a replayed list of last week's delegate undoes no revocation."""
    have = believing().take(listed(6, NOW, RENEWED, identities={WEB: NOW}), at())
    assert "it is older" in why(have, listed(5, NOW, STOLEN))
    assert have.take(listed(6, NOW, STOLEN), at()).listed


def test_a_list_that_is_dated_or_numbered_ahead_is_refused() -> None:
    edge, beyond = SECONDS + 300, SECONDS + 301
    have = believing()
    assert have.take(listed(1, NOW + AHEAD), at()).listed
    assert "are both clocks right" in why(have, listed(1, NOW + AHEAD + SECOND))
    highest = version_at(NOW + AHEAD, LISTS_A_SECOND)
    assert have.take(listed(highest), at()).listed
    assert f"its version is {highest + 1}" in why(have, listed(highest + 1))
    assert "its version is" in why(have, listed((1 << 53) - 1))
    assert have.take(listed(bundle=BundleName(edge, b"\1")), at()).missing
    assert f"the bundle that it names is {beyond}" in why(have, listed(bundle=BundleName(beyond, b"\1")))


def test_a_bundle_that_is_ahead_may_be_named_once_it_is_here() -> None:
    """A root signed it: the clock of whoever rotated was wrong, and that is no reason to go without lists."""
    ahead = bundle(SECONDS + 7200, FIRST)
    assert believing(ahead).take(listed(bundle=name_of(ahead)), at()).missing is None
    other = BundleName(SECONDS + 7200, b"\2" * 32)
    assert "the bundle that it names" in why(believing(ahead), listed(bundle=other))


def test_a_list_that_was_taken_stays_a_floor_when_the_clock_goes_back_and_stops_being_fresh() -> None:
    have = believing().take(listed(5), at())
    back = at(MINUTE, set_by=-2 * HOUR)
    assert "it is older" in why(have, listed(4, NOW - 2 * HOUR), back)
    assert "it is older" in why(have, listed(5, NOW - 3 * HOUR), back)
    assert have.fresh_until(back, HOUR) < back.wall
    assert have.fresh_until(at(MINUTE), HOUR) == NOW + HOUR, "and is again when the clock is right again"
    slightly = at(MINUTE, set_by=-4 * MINUTE)
    assert have.fresh_until(slightly, HOUR) > slightly.wall


def test_fresh_is_fresh_by_both_clocks() -> None:
    have = believing().take(listed(), at())
    assert have.fresh_until(at(), HOUR) == NOW + HOUR
    assert have.fresh_until(at(HOUR), HOUR) == NOW + HOUR
    late = at(HOUR + MINUTE, set_by=-2 * MINUTE)
    assert late.wall < NOW + HOUR
    assert have.fresh_until(late, HOUR) < late.wall, "an hour has passed, whatever the wall clock says"
    early = at(MINUTE, set_by=2 * HOUR)
    assert have.fresh_until(early, HOUR) == NOW + HOUR < early.wall
    assert have.take(listed(), late).fresh_until(late, HOUR) < late.wall, "the same list gets no younger"
    assert have.take(listed(5, late.wall), late).fresh_until(late, HOUR) > late.wall


def test_a_list_is_as_old_as_it_says_when_it_comes() -> None:
    have = believing().take(listed(5, NOW - 40 * MINUTE), at())
    assert have.fresh_until(at(19 * MINUTE), HOUR) > at(19 * MINUTE).wall
    late = at(21 * MINUTE, set_by=-10 * MINUTE)
    assert have.fresh_until(late, HOUR) < late.wall


def test_without_any_list_nobody_is_let_in() -> None:
    key = new_key()
    leaf = x509_profile.leaf(API, key.public_key(), FIRST.issuing, NOW, 2 * HOUR)
    chain = (leaf, FIRST.issuing.certificate, FIRST.root.certificate)
    path = tuple(one.public_bytes(serialization.Encoding.DER) for one in chain)

    def judged(trust: Trust, now: Instant) -> str:
        try:
            judge(Presented(path[:2], path), VerifyParams(MESH, revocations=trust.revocations(now, HOUR)), now.wall)
        except Refused as refused:
            return str(refused.reason)
        return "ok"

    assert judged(believing(), at()) == Reason.REVOCATIONS_STALE
    have = believing().take(listed(), at())
    assert judged(have, at(30 * MINUTE)) == "ok"
    assert judged(have, at(59 * MINUTE, set_by=2 * MINUTE)) == Reason.REVOCATIONS_STALE
    assert judged(believing().take(listed(identities={API: NOW}), at()), at()) == Reason.REVOKED
    distrusted = believing().take(listed(signer=RENEWED, distrusted=STOLEN_KEYS), at())
    assert judged(distrusted, at()) == Reason.REVOKED, "the issuing key of its CA"


def test_the_ca_is_judged_by_the_whole_list_however_old_it_is() -> None:
    serials = frozenset({(b"name", 7)})
    have = believing().take(listed(identities={API: NOW}, serials=serials), at()).of_the_ca()
    assert (dict(have.identities), have.serials, have.fresh_until) == ({API: NOW}, serials, None)
    assert believing(bundle(2, FIRST, distrusted=STOLEN_KEYS)).of_the_ca().keys == STOLEN_KEYS


# -- a bundle that a list names and that is missing --------------------------------------------------------------------


def test_a_bundle_that_is_named_and_missing_takes_secrets_and_certificates_and_closes_after_the_staleness() -> None:
    """The thief relays genuine lists, and the old bundle. It is counted from the first list that named it."""
    new = bundle(2, FIRST, distrusted=STOLEN_KEYS)
    have = believing()
    for minutes in range(0, 61, 10):
        now = at(minutes * MINUTE)
        have = have.take(listed(5, now.wall, RENEWED, bundle=name_of(new), distrusted=STOLEN_KEYS), now)
        assert have.why_incomplete() == "trust bundle 2 is in force in the mesh, and the newest that is known here is 1"
        assert have.why_no_secret(now) == have.why_incomplete()
        assert have.fresh_until(now, HOUR) == NOW + HOUR
        assert have.revocations(now, HOUR).keys >= STOLEN_KEYS
    whole = have.learn([signed(new)], at(HOUR)).trust
    assert (whole.why_no_secret(at(HOUR)), whole.missing) == (None, None)
    assert whole.fresh_until(at(HOUR), HOUR) == NOW + 2 * HOUR
    assert whole.revocations(at(HOUR), HOUR).keys >= STOLEN_KEYS


def test_an_older_bundle_that_is_named_by_a_replica_that_lags_closes_nothing() -> None:
    have = believing(bundle(1, FIRST), bundle(2, FIRST)).take(listed(bundle=name_of(bundle(1, FIRST))), at())
    assert (have.why_no_secret(at()), have.missing) == (None, None)
    nothing = believing().take(listed(), at())
    assert nothing.why_no_secret(at()) is None


def test_another_bundle_of_the_same_version_is_missing_too() -> None:
    other = name_of(bundle(1, FIRST, SECOND_CA))
    assert believing().take(listed(bundle=other), at()).why_no_secret(at())
    assert believing().take(listed(bundle=name_of(bundle(1, FIRST))), at()).why_no_secret(at()) is None


def test_what_was_named_or_distrusted_stays_so_whatever_later_lists_say() -> None:
    first = believing().take(listed(5, bundle=BundleName(9, b"\1"), distrusted=frozenset({b"\3"})), at())
    later = first.take(listed(6, NOW + MINUTE), at(MINUTE))
    assert later.missing is not None
    assert later.missing.named == BundleName(9, b"\1")
    assert later.fresh_until(at(MINUTE), HOUR) == NOW + HOUR
    assert b"\3" in later.distrusted


def test_a_second_bundle_that_is_missing_gives_no_more_time() -> None:
    first = believing().take(listed(5, bundle=BundleName(9, b"\1")), at())
    second = first.take(listed(6, NOW + 30 * MINUTE, bundle=BundleName(10, b"\1")), at(30 * MINUTE))
    assert second.fresh_until(at(30 * MINUTE), HOUR) == NOW + HOUR


# -- no secret ---------------------------------------------------------------------------------------------------------


def test_a_secret_is_sent_with_a_list_of_the_last_three_minutes_by_both_clocks() -> None:
    assert believing().why_no_secret(at()) == "there is no list of revocations in force"
    have = believing().take(listed(bundle=name_of(bundle(1, FIRST))), at())
    assert have.why_no_secret(at(PROOF_AGE)) is None
    ahead = believing().take(listed(5, NOW + AHEAD, bundle=name_of(bundle(1, FIRST))), at())
    assert ahead.why_no_secret(at()) is None
    for now in (
        at(PROOF_AGE + SECOND),
        at(PROOF_AGE + SECOND, set_by=-MINUTE),
        at(MINUTE, set_by=3 * MINUTE),
        at(MINUTE, set_by=-7 * MINUTE),
    ):
        assert "it may be 3 minutes old at most" in (have.why_no_secret(now) or "")


# -- stolen keys -------------------------------------------------------------------------------------------------------


def test_a_bundle_that_distrusts_a_signer_erases_all_that_it_said() -> None:
    """As high as the thief may number, and dated as late."""
    worst = listed(
        version_at(NOW + AHEAD, LISTS_A_SECOND),
        NOW + AHEAD,
        STOLEN,
        bundle=BundleName(SECONDS + 300, b"\1"),
        distrusted=frozenset({b"\7"}),
    )
    poisoned = believing().take(worst, at())
    honest = listed(version_at(NOW, LISTS_A_SECOND), NOW, RENEWED, identities={WEB: NOW})
    assert "it is older" in why(poisoned, honest)
    clean = poisoned.learn([signed(bundle(2, FIRST, distrusted=STOLEN_KEYS))], at()).trust
    assert clean.listed is None
    assert clean.fresh_until(at(), HOUR) < NOW, "until there is an honest one"
    assert clean.missing is None
    assert b"\7" not in clean.distrusted
    later = clean.take(listed(version_at(NOW, LISTS_A_SECOND), NOW + AHEAD, RENEWED), at(MINUTE))
    assert later.heard == at(MINUTE).of(NOW + AHEAD), "which was never heard before, though the thief's had its date"
    taken = clean.take(honest, at())
    assert taken.listed is not None
    assert taken.listed.identities == {WEB: NOW}
    assert "with a key that is distrusted" in why(clean, worst)


def test_a_bundle_without_a_root_erases_the_floors_of_its_signers_and_keeps_the_list_until_the_next() -> None:
    """An ordinary rotation closes nothing."""
    both, alone = bundle(2, FIRST, SECOND_CA), bundle(3, SECOND_CA)
    have = believing(both).take(
        listed(version_at(NOW + 3 * MINUTE, LISTS_A_SECOND), bundle=BundleName(SECONDS + 200, b"\1")), at()
    )
    retired = have.learn([signed(alone)], at()).trust
    assert retired.listed == have.listed
    assert retired.floors == {}
    assert retired.take(listed(6, signer=SECOND_CA.delegate), at()).listed


def test_what_other_signers_said_stays() -> None:
    have = believing().take(listed(7, NOW, RENEWED, identities={WEB: NOW}), at())
    have = have.take(listed(8, NOW + MINUTE, STOLEN), at(MINUTE))
    clean = have.learn([signed(bundle(2, FIRST, distrusted=STOLEN_KEYS))], at(MINUTE)).trust
    assert "it is older" in why(clean, listed(6, NOW + MINUTE, RENEWED))
    assert clean.take(listed(7, NOW + MINUTE, RENEWED), at(MINUTE)).listed


def test_a_key_that_a_list_distrusts_signs_no_list_any_more_and_no_list_distrusts_its_own() -> None:
    have = believing().take(listed(5, signer=RENEWED, distrusted=STOLEN_KEYS), at())
    assert "with a key that is distrusted" in why(have, listed(6, signer=STOLEN))
    own = frozenset({key_digest(RENEWED.certificate)})
    assert why(believing(), listed(5, signer=RENEWED, distrusted=own)) == "it distrusts the key that signed it"


# -- the operator ------------------------------------------------------------------------------------------------------


def test_what_the_operator_demands_is_missing_until_it_is_here() -> None:
    have = believing().take(listed(), at()).demand(3, at())
    assert have.why_no_secret(at()) == "trust bundle 3 is in force in the mesh, and the newest that is known here is 1"
    assert have.fresh_until(at(), HOUR) == NOW + HOUR
    older = have.learn([signed(bundle(2, FIRST))], at()).trust
    assert older.missing
    for version in (3, 4):
        assert older.learn([signed(bundle(version, FIRST))], at()).trust.missing is None
    assert believing().take(listed(), at()).demand(1, at()).missing is None


# -- what is kept ------------------------------------------------------------------------------------------------------


def through_json(trust: Trust, now: Instant) -> dict[bytes, Floor]:
    return {key: Floor.from_json(json.loads(json.dumps(one.as_json())), now) for key, one in trust.floors.items()}


def test_a_restart_forgets_nothing() -> None:
    document = listed(6, NOW + MINUTE, bundle=BundleName(9, b"\1"), distrusted=frozenset({b"\3"}))
    have = believing().take(listed(5, bundle=BundleName(9, b"\1")), at()).take(document, at(MINUTE))
    assert have.bundle is not None
    again = Instant(NOW + 2 * MINUTE, 7.0)
    kept = Trust(MESH, PIN).restored(have.bundle, through_json(have, again), document, again)
    assert kept.listed == have.listed
    assert kept.fresh_until(again, HOUR) == NOW + HOUR, "since the first list that named it"
    assert kept.distrusted == have.distrusted
    assert "it is older" in why(kept, listed(5, NOW), again)
    nothing = Trust(MESH, PIN).restored(have.bundle, {}, None, again)
    assert (nothing.listed, nothing.floors) == (None, {})


def test_a_list_that_was_kept_is_a_floor_also_without_the_floors_and_before_its_date_and_its_signer_s() -> None:
    document = listed(6, NOW, bundle=BundleName(SECONDS + 250, b"\1"))
    have = believing()
    assert have.bundle is not None
    for now in (Instant(NOW - 400 * 24 * HOUR, 7.0), Instant(NOW + 400 * 24 * HOUR, 7.0)):
        kept = Trust(MESH, PIN).restored(have.bundle, {}, document, now)
        assert kept.missing is not None
        assert kept.fresh_until(now, HOUR) < now.wall
        assert "it is older" in why(kept, listed(5, NOW - HOUR), at())


def test_floors_that_are_newer_than_the_list_that_was_kept_count() -> None:
    """The process was killed between the two writes."""
    have = believing().take(listed(7), at())
    assert have.bundle is not None
    kept = Trust(MESH, PIN).restored(have.bundle, through_json(have, at()), listed(6), at())
    assert "it is older" in why(kept, listed(6))
    assert kept.take(listed(7), at()).listed


def test_what_was_kept_of_a_signer_that_counts_no_longer_is_erased() -> None:
    have = believing().take(listed(7, bundle=BundleName(9, b"\1")), at())
    distrusting = learn(signed(bundle(2, FIRST, distrusted=STOLEN_KEYS))).trust.bundle
    assert distrusting is not None
    with pytest.raises(UntrustedError, match="with a key that is distrusted"):
        Trust(MESH, PIN).restored(distrusting, through_json(have, at()), listed(7), at())
    assert Trust(MESH, PIN).restored(distrusting, through_json(have, at()), None, at()).floors == {}
    demanded = replace(have, floors={}).demand(4, at())
    kept = Trust(MESH, PIN).restored(distrusting, through_json(demanded, at()), None, at())
    assert kept.missing, "what the operator demands is no signer's"
    assert trust_module.OPERATOR in kept.floors
