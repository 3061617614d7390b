"""What a sidecar does next: transcripts of steps and answers, and generated schedules of a CA that fails in every way.

A transcript reads ``it.does(Poll())``, ``it.lists()``, ``it.does(Enrol())``: the step that is next, then what came of it.
A schedule draws what happens next, and asserts after every step what must hold. ``MEMBERSHIP_EXAMPLES=10000`` makes a long
run.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from certs.authority import authority
from certs.authority.authority import Made
from certs.protocol import x509_profile
from certs.protocol.documents import (
    LISTS_A_SECOND,
    Bundle,
    BundleName,
    RevocationList,
    UntrustedError,
    next_version,
    sign_bundle,
    sign_revocations,
    version_at,
)
from certs.protocol.x509_profile import Issuer
from sidecar.agent.membership import (
    Enrol,
    Failure,
    FetchBundles,
    GiveUp,
    Membership,
    Own,
    Poll,
    Reenrol,
    Renew,
    Step,
    Wait,
    Why,
)
from sidecar.agent.trust import Floor, Instant, Trust
from sidecar.identity.keys import certificate_digest, key_digest, new_key
from sidecar.identity.spiffe import SpiffeId, Svid
from sidecar.observe.catalogue import MemberNumbers
from tests.beds.certificates import DAY, HOUR

START = datetime(2026, 6, 1, 12, tzinfo=UTC)
MESH = "shop.internal"
API = SpiffeId(MESH, ("api",))
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
POLL = 5.0

MADE, NEXT = authority.make(MESH, START - DAY), authority.make(MESH, START - DAY)
PIN = certificate_digest(MADE.root.certificate)


def another(made: Made) -> tuple[Issuer, Issuer]:
    """An issuing CA and a delegate of the same root, as ``renew-issuing`` makes them."""
    issuing, delegate = new_key(), new_key()
    return (
        Issuer(x509_profile.intermediate(MESH, issuing.public_key(), made.root, START - DAY), issuing),
        Issuer(x509_profile.delegate(delegate.public_key(), made.root, START - DAY), delegate),
    )


ISSUING, DELEGATE = another(MADE)
STOLEN = frozenset({key_digest(MADE.issuing.certificate), key_digest(MADE.delegate.certificate)})


def bundle(version: int, *roots: Made, distrusted: frozenset[bytes] = frozenset()) -> Bundle:
    roots = roots or (MADE,)
    return Bundle(
        MESH,
        version,
        tuple(root.root.certificate for root in roots),
        certificate_digest(roots[-1].root.certificate),
        distrusted,
    )


@cache
def signed(version: int, distrusted: frozenset[bytes] = frozenset()) -> tuple[bytes, BundleName]:
    """A bundle that the root signed, and its name."""
    document = sign_bundle(bundle(version, distrusted=distrusted), [MADE.root])
    found = Trust(MESH, PIN).learn([document], Instant(START, 0.0)).trust.bundle
    assert found is not None
    return document, found.name


def own(begin: datetime, issuer: Issuer = MADE.issuing, life: timedelta = HOUR) -> Own:
    svid = Svid(
        id=API,
        issuer=b"issuer",
        serial=int(begin.timestamp()),
        not_before=begin - MINUTE,
        not_after=begin + life,
        sha256="",
    )
    return Own(svid, (issuer.certificate,))


# -- transcripts -------------------------------------------------------------------------------------------------------


@dataclass
class It:
    """A membership, and the time. Chance is a half, so nothing is spread."""

    wall: datetime = START
    monotonic: float = 0.0
    membership: Membership = field(init=False)

    def __post_init__(self) -> None:
        self.membership = Membership(Trust(MESH, PIN), True, POLL, lambda: HOUR, lambda: 0.5)

    @property
    def now(self) -> Instant:
        return Instant(self.wall, self.monotonic)

    @property
    def next(self) -> Step:
        return self.membership.next(self.now)

    def does(self, *steps: Step) -> None:
        """Asserts what is next."""
        assert self.next == steps[0]

    def waits(self, seconds: float) -> None:
        step = self.next
        assert isinstance(step, Wait)
        assert step.until - self.monotonic == pytest.approx(seconds)

    def passes(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.monotonic += seconds

    def until_next(self) -> Step:
        """Waits as it is told, and returns what comes then."""
        while isinstance(step := self.next, Wait):
            self.passes(max(0.001, step.until - self.monotonic))
        return step

    def learns(self, *documents: bytes) -> None:
        self.membership.learned(self.membership.trust.learn(documents, self.now).trust, self.now)

    def lists(self, version: int = 1, named: int = 1, signer: Issuer = MADE.delegate) -> None:
        name = signed(named)[1]
        document = sign_revocations(RevocationList(MESH, version, self.wall, bundle=name), signer)
        self.membership.polled(self.membership.trust.take(document, self.now), self.now)

    def obtains(self, certificate: Own | None = None) -> None:
        self.membership.obtained(certificate or own(self.wall), self.now)

    def fails(self, step: Step, why: Why, message: str = "no") -> None:
        assert self.next == step
        self.membership.failed(step, Failure(why, message), self.now)

    def said(self, topic: str) -> list[str]:
        return [one.message for one in self.membership.reports if one.topic == topic and one.message is not None]

    def joins(self) -> It:
        self.does(FetchBundles(verified=False))
        self.learns(signed(1)[0])
        self.does(Poll())
        self.lists()
        self.does(Enrol())
        self.obtains()
        self.membership.joined()
        self.does(Poll())
        self.lists()
        self.membership.reports.clear()
        return self


def test_first_contact_is_bundle_then_list_then_secret() -> None:
    It().joins().waits(5 * 0.95)


def test_its_numbers_are_of_what_it_has() -> None:
    assert It().membership.numbers(It().now) == MemberNumbers(), "nothing yet"
    it = It().joins()
    found, trust = it.membership.numbers(it.now), it.membership.trust
    assert trust.listed is not None
    assert (found.bundle, found.list_version, found.obtained, found.failing) == (1, trust.listed.version, 1, False)
    assert found.listed_at == START.timestamp()
    assert found.fresh_until == (START + HOUR).timestamp()
    assert found.renews_at is not None
    assert START.timestamp() < found.renews_at < (START + HOUR).timestamp()


def test_no_secret_before_a_list_and_the_bundle_that_it_names() -> None:
    it = It()
    it.learns(signed(1)[0])
    it.fails(Poll(), Why.OTHER, "cannot be reached")
    assert it.said("joining") == ["cannot join the mesh yet: cannot be reached; trying again"]
    it.waits(0.375)
    assert it.until_next() == Poll()
    it.lists(named=2)
    it.does(FetchBundles(verified=True))
    it.learns()
    assert "trust bundle 2 is in force in the mesh" in it.said("joining")[-1]
    assert it.until_next() == Poll()
    it.lists(named=2)
    it.learns(signed(2)[0])
    it.does(Poll())
    it.lists(named=2)
    it.does(Enrol())


def test_no_secret_by_an_old_list() -> None:
    it = It()
    it.learns(signed(1)[0])
    document = sign_revocations(RevocationList(MESH, 1, it.wall - 4 * MINUTE, bundle=signed(1)[1]), MADE.delegate)
    it.membership.polled(it.membership.trust.take(document, it.now), it.now)
    it.waits(0.375)
    assert "no token or secret is sent: the list of revocations is of" in it.said("joining")[0]


def test_it_renews_at_half_life_by_either_clock() -> None:
    for wall, monotonic in ((29.5 * 60, 0.0), (0.0, 30 * 60.0)):
        it = It().joins()
        it.monotonic += 4
        it.wall += timedelta(seconds=wall)
        it.monotonic += monotonic
        if it.next == Poll():
            it.lists(version=2)
        it.does(Renew())
        it.obtains()
        it.does(Poll())


def test_a_renewal_that_fails_goes_on_to_the_old_key_and_that_to_the_secret() -> None:
    it = It().joins()
    it.passes(40 * 60)
    it.lists()
    it.fails(Renew(), Why.DENIED, "revoked")
    it.fails(Reenrol(), Why.DENIED, "revoked too")
    told = it.membership
    assert (told.certificates, told.failed_attempts, told.is_failing) == (1, 0, False), "the attempt is not over yet"
    it.fails(Enrol(), Why.UNUSABLE, "no secret")
    assert (told.certificates, told.failed_attempts, told.is_failing) == (1, 1, True)
    [said] = it.said("certificate")
    assert said.startswith("revoked; revoked too; no secret; the certificate in force is good until")
    it.waits(0.375)
    it.obtains()
    assert (told.certificates, told.failed_attempts, told.is_failing) == (2, 1, False)


@pytest.mark.parametrize(("last", "reported"), [(Why.UNUSABLE, Why.DENIED), (Why.OTHER, Why.OTHER)])
def test_without_a_usable_secret_what_failed_is_what_the_ca_refused(last: Why, reported: Why) -> None:
    it = It().joins()
    it.passes(70 * 60)
    it.lists()
    it.fails(Reenrol(), Why.DENIED, "revoked")
    it.fails(Enrol(), last)
    [failure] = [one.failure for one in it.membership.reports if one.topic == "certificate" and one.message is not None]
    assert failure is not None
    assert failure.why is reported


@pytest.mark.parametrize(
    ("means", "failure", "then"),
    [
        (Renew(), Why.OTHER, Reenrol()),
        (Renew(), Why.DENIED, Reenrol()),
        (Renew(), Why.PASSING, None),
        (Renew(), Why.UNVERIFIED, None),
        (Renew(), Why.INVALID, None),
        (Renew(), Why.LOCAL, None),
        (Reenrol(), Why.DENIED, Enrol()),
        (Reenrol(), Why.OTHER, None),
        (Reenrol(), Why.PASSING, None),
        (Reenrol(), Why.UNVERIFIED, None),
    ],
)
def test_what_is_tried_after_what(means: Step, failure: Why, then: Step | None) -> None:
    it = It().joins()
    it.passes(40 * 60 if means == Renew() else 70 * 60)
    it.lists()
    it.fails(means, failure)
    if then is None:
        it.waits(0.375)
    else:
        it.does(then)


def test_without_a_secret_the_old_key_is_the_last_means() -> None:
    it = It().joins()
    it.membership.has_secret = False
    it.passes(70 * 60)
    it.lists()
    it.fails(Reenrol(), Why.DENIED, "too late")
    [said] = it.said("certificate")
    assert said.startswith("our certificate ended at ")
    assert "UTC; too late; the certificate" in said


def test_failures_are_tried_again_after_half_a_second_to_a_minute() -> None:
    it = It().joins()
    it.passes(31 * 60)
    it.lists()
    times: list[float] = []
    while len(times) < 10:
        if it.until_next() == Poll():
            it.lists()
        else:
            times.append(it.monotonic)
            it.fails(Renew(), Why.PASSING)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps == pytest.approx([0.375, 0.75, 1.5, 3, 6, 12, 24, 45, 45], abs=0.01)


def test_a_ca_that_cannot_be_verified_is_asked_for_bundles_that_a_known_root_signed() -> None:
    it = It().joins()
    it.passes(5)
    it.fails(Poll(), Why.UNVERIFIED, "another root")
    it.does(FetchBundles(verified=False))
    it.learns(signed(2)[0])
    it.does(Poll())
    it.fails(Poll(), Why.UNVERIFIED, "another root")
    it.does(FetchBundles(verified=False))
    it.learns()
    [said] = it.said("revocations")
    assert said.startswith("another root; the list of revocations in force lets new connections in until ")
    it.waits(5 * 0.95)


def test_a_list_that_is_refused_may_be_good_with_a_newer_bundle() -> None:
    it = It().joins()
    it.passes(5)
    it.fails(Poll(), Why.INVALID, "of another delegate")
    it.does(FetchBundles(verified=True))
    it.membership.failed(FetchBundles(verified=True), Failure(Why.OTHER, "gone"), it.now)
    assert "of another delegate" in it.said("revocations")[0]


def test_a_failing_bundle_does_not_keep_the_list_from_being_taken() -> None:
    it = It().joins()
    it.passes(60)
    it.lists(version=2, named=2)
    assert it.membership.trust.listed is not None
    assert it.membership.trust.listed.version == 2
    it.fails(FetchBundles(verified=True), Why.OTHER, "500")
    [said] = it.said("bundle")
    assert said.startswith("trust bundle 2 is in force in the mesh, and the newest that is known here is 1: 500; ")
    assert "until it is here no secret is sent and no certificate is taken" in said
    assert it.said("revocations") == []


def test_a_bundle_that_the_operator_demands_is_asked_for_at_once_and_no_certificate_is_taken_without_it() -> None:
    it = It()
    it.learns(signed(1)[0])
    it.lists()
    it.membership.demand(1, it.now)
    assert it.next == Enrol(), "it is here"
    it.membership.demand(2, it.now)
    it.does(FetchBundles(verified=True))
    it.membership.failed(it.next, Failure(Why.OTHER, "no answer"), it.now)
    assert not isinstance(it.next, Enrol)
    it.membership.demand(0, it.now)
    assert it.membership.trust.missing is None


def test_while_a_bundle_is_missing_no_certificate_is_taken_and_with_it_one_is() -> None:
    it = It().joins()
    it.passes(31 * 60)
    for _ in range(5):
        assert it.until_next() == Poll()
        it.lists(named=2)
        it.does(FetchBundles(verified=True))
        it.learns()
    assert it.until_next() == Poll()
    it.lists(named=2)
    it.learns(signed(2)[0])
    it.does(Poll())
    it.lists(named=2)
    it.does(Renew())


def test_an_attempt_that_began_before_is_not_ended_while_a_bundle_is_missing() -> None:
    it = It().joins()
    it.passes(31 * 60)
    it.lists()
    it.fails(Renew(), Why.OTHER)
    it.passes(10)
    it.does(Poll())
    it.lists(named=2)
    it.learns()
    it.next  # noqa: B018 (it is asked)
    assert "no certificate is taken: trust bundle 2 is in force" in it.said("certificate")[0]


def test_a_refusal_for_good_before_the_first_certificate_gives_up() -> None:
    it = It()
    it.learns(signed(1)[0])
    it.lists()
    it.fails(Enrol(), Why.DENIED, "unknown service")
    step = it.next
    assert isinstance(step, GiveUp)
    assert step.failure.message == "unknown service"


def test_a_ca_that_goes_on_issuing_under_the_wrong_root_is_not_asked_without_end() -> None:
    it = It().joins()
    document = sign_bundle(bundle(2, MADE, NEXT), [MADE.root])
    it.learns(document)
    it.does(Poll())
    it.lists()
    it.does(Renew())
    it.obtains()
    it.does(Poll())
    it.lists()
    it.waits(5 * 0.95)


def test_what_must_be_replaced_whatever_its_age() -> None:
    trust = Trust(MESH, PIN).learn([signed(1)[0]], Instant(START, 0.0)).trust
    mine = own(START)
    assert not mine.must_be_replaced(trust)
    for one in (bundle(2, MADE, NEXT), bundle(2, NEXT), bundle(2, distrusted=STOLEN)):
        later = trust.learn([sign_bundle(one, [MADE.root])], Instant(START, 0.0)).trust
        assert mine.must_be_replaced(later), one
    assert mine.must_be_replaced(replace(trust, bundle=replace(bundle(2), active=b"unknown")))
    both = Bundle(MESH, 2, bundle(2, MADE, NEXT).roots, certificate_digest(MADE.root.certificate))
    assert not mine.must_be_replaced(trust.learn([sign_bundle(both, [MADE.root])], Instant(START, 0.0)).trust)
    for listed, must in (
        (RevocationList(MESH, 2, START, {API: START}), True),
        (RevocationList(MESH, 2, START, {API: START - HOUR}), False),
        (RevocationList(MESH, 2, START, {SpiffeId(MESH, ("web",)): START}), False),
        (RevocationList(MESH, 2, START, {}, frozenset({(b"issuer", mine.svid.serial)})), True),
        (RevocationList(MESH, 2, START, distrusted=STOLEN), True),
    ):
        signer = DELEGATE if listed.distrusted else MADE.delegate
        assert mine.must_be_replaced(trust.take(sign_revocations(listed, signer), Instant(START, 0.0))) is must


def test_it_wakes_when_its_list_is_no_longer_fresh() -> None:
    it = It().joins()
    it.membership._staleness = lambda: timedelta(seconds=3)
    it.waits(3)


# -- generated schedules -----------------------------------------------------------------------------------------------


@dataclass
class Replica:
    """A CA: honest, but it may be down, lag, be restored from a copy, or have a clock of its own."""

    ahead: timedelta = timedelta()
    bundle: int = 1
    version: int = 1
    down: bool = False
    no_bundles: bool = False


class Schedules(RuleBasedStateMachine):
    """The operator changes things, machines fail, clocks jump, and a thief is on the path with one of the keys. Then an
    honest CA answers, and the sidecar must come back."""

    def __init__(self) -> None:
        super().__init__()
        self.wall, self.monotonic = START, 1000.0
        self.membership = Membership(Trust(MESH, PIN), True, POLL, lambda: HOUR, lambda: 0.5)
        self.replicas = [Replica(), Replica()]
        self.truth = Replica()
        self.distrusted = {1: frozenset[bytes]()}
        """What each bundle distrusts."""
        self.thief = ""
        self.demanded = 0
        self.kept: bytes | None = None
        """The newest list that was taken, as ``state_dir`` has it."""
        self.floors: dict[bytes, tuple[int, datetime]] = {}
        self.newest = 0
        self.secrets_to_nobody = 0

    @property
    def now(self) -> Instant:
        return Instant(self.wall, self.monotonic)

    # what happens

    @initialize(offset=st.integers(-60, 60), member=st.booleans())
    def begins(self, offset: int, member: bool) -> None:
        self.replicas[1].ahead = offset * SECOND
        while member and self.membership.own is None:
            self._step(self.replicas[0], "", 0)

    @rule(seconds=st.sampled_from([1, 5, 30, 120, 600, 1900, 3700]))
    def time_passes(self, seconds: int) -> None:
        self.wall += seconds * SECOND
        self.monotonic += seconds

    @rule(seconds=st.sampled_from([-7200, -400, -100, 100, 400, 7200]))
    def the_clock_is_set(self, seconds: int) -> None:
        self.wall += seconds * SECOND

    @rule(which=st.integers(0, 1), what=st.sampled_from(["down", "up", "no bundles", "lags", "restored"]))
    def a_replica(self, which: int, what: str) -> None:
        replica = self.replicas[which]
        replica.down = what == "down"
        replica.no_bundles = what == "no bundles"
        if what == "up":
            self._catch_up(replica)
        elif what == "restored":
            replica.version, replica.bundle = max(1, replica.version - 1), max(1, replica.bundle - 1)

    @rule(what=st.sampled_from(["revokes", "publishes", "distrusts"]))
    def the_operator(self, what: str) -> None:
        self.truth.version = next_version(self.truth.version, self.wall, LISTS_A_SECOND)
        if what != "revokes":
            self._publish(distrusting=what == "distrusts")
        self._catch_up(self.replicas[0])

    def _publish(self, *, distrusting: bool) -> None:
        before = self.distrusted[self.truth.bundle]
        self.truth.bundle += 1
        self.distrusted[self.truth.bundle] = STOLEN if distrusting else before

    @rule(ahead=st.sampled_from([None, -1, 0, 1]))
    def the_operator_demands(self, ahead: int | None) -> None:
        """A bundle in mesh.yaml: one of before, the newest, one that will never be; or none."""
        self.demanded = 0 if ahead is None else self.truth.bundle + ahead

    @rule(key=st.sampled_from(["", "issuing", "delegate"]))
    def somebody_on_the_path(self, key: str) -> None:
        """Has this key, and answers in the CA's place; or is gone."""
        self.thief = key

    @rule(steps=st.integers(1, 20), which=st.integers(0, 1), poison=st.integers(0, 3))
    def the_sidecar_goes_on(self, steps: int, which: int, poison: int) -> None:
        for _ in range(steps):
            self._step(self.replicas[which], self.thief, poison)

    @rule()
    def it_restarts(self) -> None:
        old = self.membership
        trust = Trust(MESH, PIN)
        if old.trust.bundle is not None:
            floors = {
                key: Floor.from_json(floor.as_json(), Instant(self.wall, 5.0))
                for key, floor in old.trust.floors.items()
            }
            now = Instant(self.wall, 5.0)
            try:
                trust = trust.restored(old.trust.bundle, floors, self.kept, now)
            except UntrustedError:  # of a key that is distrusted by now
                trust = trust.restored(old.trust.bundle, floors, None, now)
        self.monotonic = 5.0
        self.membership = Membership(trust, True, POLL, lambda: HOUR, lambda: 0.5)
        if old.own is not None:
            self.membership.obtained(old.own, self.now)
        if self.membership.is_usable(self.now):
            self.membership.joined()

    # how the world answers

    def _catch_up(self, replica: Replica) -> None:
        replica.version, replica.bundle = self.truth.version, self.truth.bundle

    def _documents(self, up_to: int) -> list[bytes]:
        have = 0 if self.membership.trust.bundle is None else self.membership.trust.bundle.version
        return [self._bundle(version)[0] for version in range(have + 1, up_to + 1)]

    def _bundle(self, version: int) -> tuple[bytes, BundleName]:
        return signed(version, self.distrusted[version])

    def _list(self, replica: Replica) -> bytes:
        """The list of an honest CA: by the new delegate once it has the bundle that distrusts the old one."""
        distrusted = self.distrusted[replica.bundle]
        issued_at = (self.wall + replica.ahead).replace(microsecond=0)
        listed = RevocationList(
            MESH,
            replica.version,
            issued_at,
            bundle=self._bundle(replica.bundle)[1],
            distrusted=distrusted,
        )
        return sign_revocations(listed, DELEGATE if distrusted else MADE.delegate)

    def _poison(self, kind: int) -> bytes:
        """What a thief of the old delegate's key signs."""
        late = self.wall + 299 * SECOND
        version, latest = (version_at(time, LISTS_A_SECOND) for time in (self.wall, late))
        listed = (
            RevocationList(MESH, latest, late),
            RevocationList(MESH, (1 << 53) - 1, self.wall + 10 * 365 * DAY),
            RevocationList(MESH, version, self.wall, bundle=BundleName(version_at(self.wall), b"\1" * 32)),
            RevocationList(MESH, version, self.wall, distrusted=frozenset({key_digest(DELEGATE.certificate)})),
        )[kind]
        return sign_revocations(replace(listed, issued_at=listed.issued_at.replace(microsecond=0)), MADE.delegate)

    def _step(self, replica: Replica, thief: str, poison: int) -> None:
        membership = self.membership
        membership.demand(self.demanded, self.now)
        step = membership.next(self.now)
        if isinstance(step, Wait | GiveUp):
            if isinstance(step, Wait):
                passed = max(0.001, step.until - self.monotonic)
                self.wall, self.monotonic = self.wall + timedelta(seconds=passed), self.monotonic + passed
            return
        believed = key_digest(MADE.issuing.certificate) not in membership.trust.distrusted
        in_place = thief == "issuing" and believed
        if isinstance(step, Enrol):
            self._may_send_a_secret(in_place)
        if isinstance(step, Enrol | Renew | Reenrol):
            assert membership.trust.missing is None, "no certificate while a bundle is missing"
        if thief == "issuing" and not believed and not (isinstance(step, FetchBundles) and not step.verified):
            membership.failed(step, Failure(Why.UNVERIFIED, "a distrusted key"), self.now)
        elif replica.down and not thief:
            membership.failed(step, Failure(Why.OTHER, "down"), self.now)
        elif isinstance(step, FetchBundles):
            if replica.no_bundles or thief:
                membership.learned(membership.trust, self.now)
            else:
                documents = self._documents(replica.bundle)
                membership.learned(membership.trust.learn(documents, self.now).trust, self.now)
        elif isinstance(step, Poll):
            try:
                document = self._poison(poison) if thief == "delegate" else self._list(replica)
                taken, self.kept = membership.trust.take(document, self.now), document
                membership.polled(taken, self.now)
            except UntrustedError as error:
                membership.failed(step, Failure(Why.INVALID, str(error)), self.now)
        elif in_place:
            membership.failed(step, Failure(Why.DENIED, "a thief says no"), self.now)
        else:
            begin = self.wall.replace(microsecond=0)
            membership.obtained(own(begin, ISSUING if self.distrusted[replica.bundle] else MADE.issuing), self.now)
            membership.joined()

    def _may_send_a_secret(self, in_place: bool) -> None:
        trust = self.membership.trust
        assert trust.listed is not None
        assert trust.why_no_secret(self.now) is None
        assert self.now.since(trust.heard) <= 3 * MINUTE
        is_known = (
            key_digest(MADE.issuing.certificate) in trust.listed.distrusted
        )  # and not only a key that poison names
        assert not (in_place and is_known), "the thief's key is known to be stolen"

    # what must hold

    @invariant()
    def never_on_an_older_bundle(self) -> None:
        version = 0 if self.membership.trust.bundle is None else self.membership.trust.bundle.version
        assert version >= self.newest
        self.newest = version

    @invariant()
    def never_on_an_older_list_of_a_signer_that_is_trusted(self) -> None:
        trust = self.membership.trust
        if trust.bundle is None:
            return
        self.floors = {key: seen for key, seen in self.floors.items() if key not in trust.bundle.distrusted}
        if trust.listed is not None and trust.listed.signer is not None:
            newest = trust.listed.version, trust.listed.issued_at
            assert newest >= max(self.floors.values(), default=newest)
            self.floors[trust.listed.signer.key] = newest
        for key, seen in self.floors.items():
            floor = trust.floors[key]
            assert (floor.version, floor.issued_at) >= seen

    @invariant()
    def never_open_past_the_staleness(self) -> None:
        trust = self.membership.trust
        if trust.fresh_until(self.now, HOUR) >= self.wall:
            assert trust.listed is not None
            assert self.now.since(trust.heard) <= HOUR + SECOND
            assert trust.heard.wall <= self.wall + 5 * MINUTE
            if trust.missing is not None:
                assert self.now.since(trust.missing.since) <= HOUR + SECOND

    @invariant()
    def never_a_busy_loop(self) -> None:
        step = self.membership.next(self.now)
        if isinstance(step, Wait):
            assert step.until > self.monotonic

    def teardown(self) -> None:
        """Everything is honest again, the thief gone, his keys distrusted, and the clock right: it must come back."""
        self.wall = max(self.wall, START) + 8 * HOUR  # what was dated ahead is past
        self.monotonic += 8 * 3600.0
        self.truth.version = next_version(self.truth.version, self.wall, LISTS_A_SECOND)
        self._publish(distrusting=True)
        self.demanded = self.truth.bundle
        honest = Replica()
        self._catch_up(honest)
        for _ in range(400):
            self._step(honest, "", 0)
            self.never_on_an_older_bundle()
            self.never_on_an_older_list_of_a_signer_that_is_trusted()
            if self._is_well():
                return
        raise AssertionError(f"it did not come back: {self.membership.next(self.now)}, {self.membership.reports[-3:]}")

    def _is_well(self) -> bool:
        trust, listed = self.membership.trust, self.membership.trust.listed
        return (
            trust.bundle is not None
            and (trust.bundle.version, trust.missing) == (self.truth.bundle, None)
            and listed is not None
            and listed.version == self.truth.version
            and trust.fresh_until(self.now, HOUR) > self.wall
            and self.membership.own is not None
            and not self.membership.is_due(self.now)
        )


TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(
    max_examples=int(os.environ.get("MEMBERSHIP_EXAMPLES", "40")),
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # to shrink a schedule takes minutes, and tells little
)
