"""How a sidecar becomes a member of its mesh and stays one: what to do next, as a state machine. Pure.

How this works. :meth:`Membership.next` returns the next step. The shell (:mod:`sidecar.agent.agent`) does it and reports the
outcome: :meth:`~Membership.polled`, :meth:`~Membership.learned`, :meth:`~Membership.obtained` or
:meth:`~Membership.failed`. Time is an argument, by both clocks. What is logged collects in ``reports``.

================== =====================================================================================================
step               what the CA gets, and when
================== =====================================================================================================
`FetchBundles`     a request for bundles newer than ours. Unverified (over TLS that verifies nothing; a root signed each
                   bundle, and nothing secret is sent): without a bundle, and if the CA did not prove its identity, since
                   its root may have changed. Verified: if a list names a bundle that is missing, or cannot be verified
`Poll`             a request for the list of revocations, and the version of our bundle, which a root rotation waits for:
                   before anything else that a bundle is needed for, then every five seconds, and after a new bundle
`Enrol`            the token or secret, and a CSR: without a certificate, and if the CA refuses the old key for good. Only
                   if :meth:`~sidecar.agent.trust.Trust.why_no_secret` knows no reason against it
`Renew`            a CSR with a fresh key, over mutual TLS: at half of the certificate's life by either clock, so that a
                   laptop renews after a suspend and a clock that was set back delays nothing; at once if the bundle or the
                   list rejects the certificate
`Reenrol`          the old certificate, a CSR, and the old key's signature: when it has ended, or renewal fails
`Wait`             nothing, until a time of the monotonic clock
`GiveUp`           nothing any more: it never joined, and the CA refused for good
================== =====================================================================================================

Failures. A failed poll or fetch is tried again at the next turn. An *attempt* at a certificate goes from `Renew` to
`Reenrol` to `Enrol` as far as the refusals allow; when it fails, the next begins after a backoff of half a second to a
minute. Before the first certificate everything waits for that backoff. A failure changes no value that is in force. While a
bundle is missing there is no attempt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from cryptography import x509

from sidecar.agent.schedule import backoff, refresh_after, refresh_at
from sidecar.agent.trust import Instant, Trust
from sidecar.identity.judge import revoked
from sidecar.identity.keys import certificate_digest, key_digest
from sidecar.identity.spiffe import Svid
from sidecar.observe.catalogue import MemberNumbers


@dataclass(frozen=True, slots=True)
class FetchBundles:
    verified: bool


@dataclass(frozen=True, slots=True)
class Poll:
    pass


@dataclass(frozen=True, slots=True)
class Enrol:
    pass


@dataclass(frozen=True, slots=True)
class Renew:
    pass


@dataclass(frozen=True, slots=True)
class Reenrol:
    pass


@dataclass(frozen=True, slots=True)
class Wait:
    until: float


class Why(StrEnum):
    """Why a step failed."""

    UNVERIFIED = "the peer did not prove that it is the CA"
    DENIED = "the CA refused for good"
    PASSING = "the CA refused, and may not the next time"
    INVALID = "an answer that is not accepted"
    UNUSABLE = "no usable token or secret"
    LOCAL = "this machine, or this program"
    OTHER = "no answer, or one that makes no sense"


@dataclass(frozen=True, slots=True)
class Failure:
    """``cause``: the error itself, for the shell."""

    why: Why
    message: str
    cause: Exception | None = None


@dataclass(frozen=True, slots=True)
class GiveUp:
    """``failure``: as it is, if nothing else was tried before."""

    failure: Failure


Step = FetchBundles | Poll | Enrol | Renew | Reenrol | Wait | GiveUp


@dataclass(frozen=True, slots=True)
class Report:
    """What is known about a topic: a fault, or None if it is well."""

    topic: str
    message: str | None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Own:
    """Our certificate: the leaf, parsed, and the certificates above it that are sent along."""

    svid: Svid
    issuers: tuple[x509.Certificate, ...]

    def must_be_replaced(self, trust: Trust) -> bool:
        """Whether it must be replaced whatever its age: it is not under the active root, its issuer is distrusted, or it is
        revoked (the operator may have made a new secret since)."""
        if trust.bundle is None or revoked(self.svid, (), trust.of_the_ca()) is not None:
            return True
        bundle = trust.bundle
        root = next((root for root in bundle.roots if certificate_digest(root) == bundle.active), None)
        under_active = root is not None and self.issuers[-1].issuer == root.subject
        return not under_active or any(key_digest(issuer) in trust.distrusted for issuer in self.issuers)


class Membership:
    """One sidecar's. ``has_secret``: whether a token or secret is configured. ``staleness``: how old a list may be.
    ``chance``: a random number from 0 to 1. ``joining``: until :meth:`joined`. ``certificates``: how many were obtained.
    ``failed_attempts``: how many attempts at one failed."""

    def __init__(
        self,
        trust: Trust,
        has_secret: bool,
        poll_seconds: float,
        staleness: Callable[[], timedelta],
        chance: Callable[[], float],
    ) -> None:
        self.trust = trust
        self.own: Own | None = None
        self.has_secret = has_secret
        self.renewal: Instant | None = None
        self.reports: list[Report] = []
        self.joining = True
        self.certificates = self.failed_attempts = 0
        self._poll_seconds = poll_seconds
        self._staleness = staleness
        self._chance = chance
        self._poll_at = float("-inf")
        self._retry_at = float("-inf")
        self._failures = 0
        self._fetch: FetchBundles | None = None
        self._poll_failure: Failure | None = None
        """Why the last poll failed, while a newer bundle is fetched that may help."""
        self._refused: list[str] = []
        """What was tried in this attempt, and why it failed."""
        self._means: Enrol | Renew | Reenrol | None = None
        """What this attempt tries next."""
        self._given_up: GiveUp | None = None

    # -- the next step -------------------------------------------------------------------------------------------------

    def is_usable(self, now: Instant) -> bool:
        """Whether there is a certificate that has not ended."""
        return self.own is not None and now.wall <= self.own.svid.not_after

    @property
    def is_failing(self) -> bool:
        """Whether the last attempt at a certificate failed."""
        return self._failures > 0

    def numbers(self, now: Instant) -> MemberNumbers:
        """What is known, in numbers, for the metrics."""
        bundle, listed, renewal = self.trust.bundle, self.trust.listed, self.renewal
        return MemberNumbers(
            renews_at=None if renewal is None else renewal.wall.timestamp(),
            obtained=self.certificates,
            failed=self.failed_attempts,
            failing=self.is_failing,
            bundle=None if bundle is None else bundle.version,
            list_version=None if listed is None else listed.version,
            listed_at=None if listed is None else listed.issued_at.timestamp(),
            fresh_until=None if listed is None else self.trust.fresh_until(now, self._staleness()).timestamp(),
        )

    def joined(self) -> None:
        """From now on failures are those of a member."""
        self.joining = False

    def demand(self, version: int, now: Instant) -> None:
        """The operator demands a trust bundle of at least this version. If it is missing, the CA is asked for it."""
        demanded = self.trust.demand(version, now)
        if demanded is not self.trust:
            self.trust = demanded
            if demanded.bundle is not None and demanded.missing is not None:
                self._fetch = FetchBundles(verified=True)

    def next(self, now: Instant) -> Step:
        if (given_up := self._given_up) is not None:
            self._given_up = None
            return given_up
        if self.joining and now.monotonic < self._retry_at:
            return Wait(self._retry_at)
        if self._fetch is not None:
            return self._fetch
        if self.trust.bundle is None:
            return FetchBundles(verified=False)
        if now.monotonic >= self._poll_at:
            return Poll()
        if self._means is None and self.is_due(now) and now.monotonic >= self._retry_at and not self.trust.missing:
            self._begin_attempt(now)
        if self._means is not None:
            trust, is_secret = self.trust, isinstance(self._means, Enrol)
            if (why := trust.why_no_secret(now) if is_secret else trust.why_incomplete()) is None:
                return self._means
            what = "no token or secret is sent" if is_secret else "no certificate is taken"
            self._attempt_failed(Failure(Why.INVALID, f"{what}: {why}"), now)
        return self._wait(now)

    def is_due(self, now: Instant) -> bool:
        """Whether another certificate is needed."""
        own, renewal = self.own, self.renewal
        if own is None or renewal is None:
            return True
        by_clock = now.wall >= renewal.wall or now.monotonic >= renewal.monotonic
        return by_clock or own.must_be_replaced(self.trust)

    def _begin_attempt(self, now: Instant) -> None:
        if self.own is None:
            self._means = Enrol()
        elif self.is_usable(now):
            self._means = Renew()
        else:
            self._means = Reenrol()
            self._refused = [f"our certificate ended at {self.own.svid.not_after:%F %T} UTC"]

    def _wait(self, now: Instant) -> Wait:
        """Until something is due, or the list is no longer fresh."""
        times = [self._poll_at]
        fresh = (self.trust.fresh_until(now, self._staleness()) - now.wall).total_seconds()
        if fresh > 0:
            times.append(now.monotonic + fresh)
        if self.renewal is not None and not self.is_due(now):
            times += [self.renewal.monotonic, now.monotonic + (self.renewal.wall - now.wall).total_seconds()]
        elif not self.trust.missing:
            times.append(self._retry_at)
        return Wait(min(times))

    # -- what came of it -----------------------------------------------------------------------------------------------

    def polled(self, trust: Trust, now: Instant) -> None:
        """The CA was verified. ``trust``: with its list, if there was a new one."""
        self.trust = trust
        self._poll_at = self._turn(now)
        self._poll_failure = None
        self._report("revocations")
        if trust.missing is not None:
            self._fetch = FetchBundles(verified=True)
        else:
            self._report("bundle")

    def learned(self, trust: Trust, now: Instant, fault: str | None = None) -> None:
        """Bundles came. ``fault``: why some of them are refused."""
        is_news = trust.bundle is not self.trust.bundle
        failure, self._poll_failure = self._poll_failure, None
        self.trust, self._fetch = trust, None
        if is_news:
            self._poll_at = now.monotonic  # the CA hears what we have, and a list that was refused may be good now
        if trust.missing is None:
            self._report("bundle", fault)
        elif not is_news:
            self._bundle_missing(fault or "the CA sent none that is newer", now)
        if failure is not None and not is_news:
            self._poll_failed(failure, now)

    def obtained(self, own: Own, now: Instant) -> None:
        """A new certificate is in force."""
        svid, chance = own.svid, self._chance()
        self.own = own
        self.certificates += 1
        self.renewal = Instant(
            refresh_at(svid.not_before, svid.not_after, chance),
            now.monotonic + refresh_after(svid.not_after - now.wall, chance).total_seconds(),
        )
        self._means, self._refused, self._failures = None, [], 0
        self._poll_at = now.monotonic  # a root rotation waits for what the CA hears now
        # A CA that goes on issuing what must be replaced is not asked without end.
        self._retry_at = now.monotonic + (self._poll_seconds if own.must_be_replaced(self.trust) else 0.0)
        self._report("certificate")

    def failed(self, step: Step, failure: Failure, now: Instant) -> None:
        if isinstance(step, FetchBundles):
            self._fetch_failed(failure, now)
        elif not isinstance(step, Poll):
            self._means_failed(step, failure, now)
        elif failure.why in (Why.UNVERIFIED, Why.INVALID):
            # The CA's root or delegate may have changed; a root that is trusted here signs the bundle that has the new one.
            self._poll_failure, self._fetch = failure, FetchBundles(verified=failure.why is Why.INVALID)
            self._poll_at = self._turn(now)
        else:
            self._poll_failed(failure, now)

    def _fetch_failed(self, failure: Failure, now: Instant) -> None:
        poll, self._poll_failure, self._fetch = self._poll_failure, None, None
        if poll is not None:
            self._poll_failed(poll, now)
        elif self.trust.bundle is None:
            self._attempt_failed(failure, now)
        else:
            self._bundle_missing(failure.message, now, failure)

    def _bundle_missing(self, message: str, now: Instant, failure: Failure | None = None) -> None:
        until = self.trust.fresh_until(now, self._staleness())
        why = f"{self.trust.why_incomplete()}: {message}"
        self._report(
            "bundle",
            f"{why}; until it is here no secret is sent and no certificate is taken, and new connections are let in until "
            f"{until:%F %T} UTC; trying again",
            failure,
        )
        if self.joining:
            self._attempt_failed(failure or Failure(Why.INVALID, why), now)

    def _poll_failed(self, failure: Failure, now: Instant) -> None:
        self._poll_at = self._turn(now)
        if not self.joining:
            if self.trust.listed is None:
                good = "no list of revocations is in force, so no new connection is let in"
            else:
                until = self.trust.fresh_until(now, self._staleness())
                good = f"the list of revocations in force lets new connections in until {until:%F %T} UTC"
            self._report("revocations", f"{failure.message}; {good}; trying again", failure)
        elif self.own is None:
            self._attempt_failed(failure, now)

    def _means_failed(self, step: Step, failure: Failure, now: Instant) -> None:
        is_denied = failure.why is Why.DENIED
        if isinstance(step, Renew) and (is_denied or failure.why is Why.OTHER):
            self._means = Reenrol()
        elif isinstance(step, Reenrol) and is_denied and self.has_secret:
            self._means = Enrol()
        else:
            self._attempt_failed(failure, now)
            return
        self._refused.append(failure.message)

    def _attempt_failed(self, failure: Failure, now: Instant) -> None:
        refused, self._refused, self._means = self._refused, [], None
        if refused and failure.why is not Why.UNVERIFIED:
            why = Why.DENIED if failure.why is Why.UNUSABLE else failure.why
            failure = Failure(why, "; ".join([*refused, failure.message]), failure.cause)
        self._failures += 1
        self.failed_attempts += 1
        self._retry_at = now.monotonic + backoff(self._failures, self._chance())
        if self.joining:
            self._poll_at = self._retry_at
            if failure.why in (Why.DENIED, Why.UNUSABLE):
                self._given_up = GiveUp(failure)
            else:
                self._report("joining", f"cannot join the mesh yet: {failure.message}; trying again", failure)
        elif self.own is not None:
            until = f"the certificate in force is good until {self.own.svid.not_after:%F %T} UTC"
            self._report("certificate", f"{failure.message}; {until}; trying again", failure)

    def _turn(self, now: Instant) -> float:
        return now.monotonic + self._poll_seconds * (0.9 + self._chance() / 10)

    def _report(self, topic: str, message: str | None = None, failure: Failure | None = None) -> None:
        self.reports.append(Report(topic, message, failure))
