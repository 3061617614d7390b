"""The identity of one sidecar that a CA issues: enrolment, renewal, and following the CA's trust bundle and revocations.

How it works. What to do next is decided in :mod:`sidecar.agent.membership`, and what is believed in
:mod:`sidecar.agent.trust`; both are pure. :class:`Agent` does the steps: it sends the requests, checks the answers, writes
``state_dir``, logs, and hands what is in force to the proxy. :meth:`Agent.enrol` ends with a usable certificate;
:meth:`Agent.run` is the same loop for ever.

Invariants. Every answer is checked, then written to ``state_dir``, then put in force, so a restart needs no CA. If the write
fails, that is logged, and the answer is put in force all the same. A token or secret is sent to a verified CA only, and not
if it is for a root that is not trusted. The key that goes with it is on the disk before the request leaves, so the CA can
repeat an answer that was lost. Each failure is logged once, with the time until which the values in force are good. It
fails closed: without a fresh list no new connection is accepted (:mod:`sidecar.identity.judge`), and every peer refuses a
certificate that has ended.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import Any, TypeVar

import trio
from cryptography.hazmat.primitives.asymmetric import ec

from certs.protocol import enrolment, report, wire
from certs.protocol.client import CaClient, CaDeniedError, CaError, CaUnverifiedError
from certs.protocol.denial import Denial
from certs.protocol.documents import UntrustedError
from sidecar.agent import accept, credentials, statedir
from sidecar.agent.accept import AnswerRefusedError
from sidecar.agent.credentials import Credentials
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
from sidecar.agent.saved_state import SavedState
from sidecar.agent.trust import Instant, Trust
from sidecar.agent.twin_watch import TwinWatch
from sidecar.config.sidecar_yaml import CaIdentity
from sidecar.documents.address import ca_address
from sidecar.host.disk import Disk, StalledError
from sidecar.host.follow import ReportOnce
from sidecar.identity.judge import Revocations
from sidecar.identity.keys import certificate_digest, new_key
from sidecar.identity.reasons import MITM_SUSPECTS, Reason, Refused, UsageError
from sidecar.identity.spiffe import SpiffeId
from sidecar.meanings.first_steps import FIND_WHAT
from sidecar.observe.alarm_log import AlarmLog
from sidecar.observe.catalogue import MemberNumbers
from sidecar.observe.logs import Log
from sidecar.policy.mesh import Mesh
from sidecar.transport.tls import KeyPair, Roots

POLL_SECONDS = 5.0

NO_REPORTS_SECONDS = 3600.0  # to a CA that takes none: an older one

_LEAST_WAIT = 0.01
_SAME = timedelta(seconds=1)

_T = TypeVar("_T")


class Means(StrEnum):
    """How a certificate was obtained; the name of the event that is logged."""

    ENROLLED = "enrolled"
    ENROLLED_AGAIN = "enrolled_again"
    RENEWED = "renewed"
    RE_ENROLLED = "re-enrolled"


Adopt = Callable[[Credentials, Revocations], Awaitable[None]]
"""Called with the credentials and revocations in force, after each change of either or of the bundle."""

Describe = Callable[[], Mapping[str, Any]]
"""Makes the report for the CA (:mod:`certs.protocol.report`)."""


class Agent:
    """Obtains one sidecar's certificate and keeps it fresh. Reads ``state_dir`` at once; raises :class:`UsageError`."""

    def __init__(
        self,
        service: str,
        identity: CaIdentity,
        mesh: Callable[[], Mesh],
        log: Log,
        clock: Callable[[], datetime],
        alarms: AlarmLog | None = None,
    ) -> None:
        self._service = service
        self._identity = identity
        self._mesh = mesh
        self._log = log
        self._alarms = alarms or AlarmLog(log, clock)
        self._clock = clock
        pin = pinned(identity)
        trust_domain = mesh().trust_domain
        self._own = SpiffeId(trust_domain, (service,))
        self._client = CaClient(ca_address(identity.ca), trust_domain, clock, self._alarm_once)
        self._etag = ""
        self._shown: KeyPair | Roots = ()
        self.credentials: Credentials | None = None
        self._adopted: tuple[Credentials | None, Revocations] = (None, Revocations())
        self._suspected = ""
        self._describe: Describe | None = None
        self._report_wanted = trio.Event()
        self._no_reports_until = float("-inf")
        self._faults = ReportOnce[str](
            lambda what, message: self._warn(f"{what}_failed", message),
            lambda what: log.info(f"{what}_mended", service=service, message="good again"),
        )
        self._disk = Disk()
        self._saved = SavedState(identity.state_dir, self._own, self._warn)
        try:
            self._membership = Membership(
                self._saved.load(pin, self._now()),
                identity.enrolment is not None,
                POLL_SECONDS,
                lambda: self._mesh().revocation_staleness,
                random.random,
            )
            self._twins = TwinWatch(self._own, self._saved.own(), self._alarms, lambda: self._mesh())
            bundle = self._trust.bundle
            if bundle is not None and (found := self._saved.credentials(bundle.roots)) is not None:
                self._put_in_force(found)
                self._twins.made(found.keys.key)
                self._membership.reports.clear()
        except BaseException:
            self._saved.close()
            raise

    @property
    def _trust(self) -> Trust:
        return self._membership.trust

    def _now(self) -> Instant:
        return Instant(self._clock(), trio.current_time())

    def follow(self, mesh: Callable[[], Mesh]) -> None:
        """From now on reads ``max_leaf_ttl``, ``revocation_staleness`` and ``bundle_at_least`` from this mesh."""
        self._mesh = mesh

    def report(self, describe: Describe) -> None:
        """From now on the CA gets a report with each poll."""
        self._describe = describe

    def report_soon(self) -> None:
        """The CA gets a report at once: there is something in it that a person should know."""
        self._report_wanted.set()

    async def close(self) -> None:
        await self._client.close()
        self._saved.close()

    def revocations(self) -> Revocations:
        """The revocations that peers are judged by now. Raises :class:`RuntimeError` while there is no trust bundle."""
        if self._trust.bundle is None:
            raise RuntimeError("not enrolled yet")
        return self._trust.revocations(self._now(), self._mesh().revocation_staleness)

    def trust(self) -> dict[str, str]:
        """The CA, and the state of bundle, list and renewal, for ``sidecar status``."""
        fields, trust, renewal = {"ca": self._identity.ca}, self._trust, self._membership.renewal
        if trust.bundle is not None:
            fields |= {"trust_bundle": str(trust.bundle.version), "roots": str(len(trust.bundle.roots))}
        if trust.missing is not None:
            fields["trust_bundle_missing"] = str(trust.missing.named.version)
        if trust.listed is not None:
            fields["revocations_as_of"] = f"{trust.listed.issued_at:%FT%TZ}"
        return fields if renewal is None else {**fields, "renews_at": f"{renewal.wall:%FT%TZ}"}

    def numbers(self) -> MemberNumbers:
        """The same in numbers, for the metrics."""
        return self._membership.numbers(self._now())

    # -- the loop ------------------------------------------------------------------------------------------------------

    async def enrol(self) -> None:
        """Returns once a usable certificate is in force: at once, if ``state_dir`` has one. While the CA cannot be reached,
        it is tried again. Raises :class:`UsageError` if the CA refuses for good."""
        was_usable = self._membership.is_usable(self._now())
        while not self._membership.is_usable(self._now()):
            await self._do(self._next())
            self._log_reports()
        self._membership.joined()
        if not was_usable:
            await self._do(Poll())  # the CA hears that this sidecar follows it now: a root rotation waits for that
            self._log_reports()

    async def run(self, adopt: Adopt) -> None:
        """Keeps certificate, bundle and revocations fresh, until cancelled. A fault of this program ends no connection."""
        self._membership.joined()
        self._adopted = self.credentials, self.revocations()
        while True:
            step = self._next()
            try:
                await self._do(step)
            except Exception as error:
                self._log.bug("membership_failed", error, service=self._service)
                self._membership.failed(step, Failure(Why.LOCAL, str(error)), self._now())
                self._membership.reports.clear()
            self._log_reports()
            await self._adopt(adopt)

    def _next(self) -> Step:
        """The next step, by what the mesh file demands now."""
        self._membership.demand(self._mesh().bundle_at_least, self._now())
        return self._membership.next(self._now())

    async def _do(self, step: Step) -> None:
        """One step; what came of it is reported to the membership. Raises :class:`UsageError` at the last one."""
        if isinstance(step, Wait):
            with trio.move_on_at(max(step.until, trio.current_time() + _LEAST_WAIT)):
                await self._report_wanted.wait()
            if self._report_wanted.is_set():
                await self._report()
            return
        if isinstance(step, GiveUp):
            if step.failure.why is Why.UNUSABLE and step.failure.cause is not None:
                raise step.failure.cause
            why = f"{self._identity.ca}: {self._service} cannot enrol: {step.failure.message}"
            raise UsageError(why) from step.failure.cause
        try:
            await self._configure_client()
            if isinstance(step, Poll):
                await self._poll()
                await self._report()
            elif isinstance(step, FetchBundles):
                await self._fetch_bundles(step)
            else:
                await self._obtain(step)
        except (CaError, AnswerRefusedError, UntrustedError, UsageError, OSError) as error:
            failure = Failure(_why(error), accept.describe(error), error)
            self._membership.failed(step, failure, self._now())

    async def _adopt(self, adopt: Adopt) -> None:
        if self.credentials is None:
            return
        own, before = self._adopted
        now = self.revocations()
        is_same_time = abs(_end(now) - _end(before)) < _SAME
        if self.credentials is own and is_same_time and replace(now, fresh_until=before.fresh_until) == before:
            return
        self._adopted = self.credentials, now
        await adopt(self.credentials, now)

    # -- the steps -----------------------------------------------------------------------------------------------------

    async def _poll(self) -> None:
        bundle, trust = self._trust.bundle, self._trust
        if self.credentials is None:
            await self._disk.run(self._read_enrolment)  # if it cannot enrol, it says why before it waits for anything
        version = 0 if bundle is None else bundle.version
        polled = await self._client.revocations(
            self._etag if trust.listed is not None else "", self._saved.instance, version
        )
        if polled.document is not None:
            try:
                trust = await _off_the_loop(trust.take, polled.document, self._now())
            except UntrustedError as error:
                raise UntrustedError(f"the CA's list of revocations is refused: {error}") from error
            await self._keep(statedir.REVOCATIONS, polled.document)
            await self._keep_floors(trust)
            self._etag = polled.etag
        self._membership.polled(trust, self._now())

    async def _report(self) -> None:
        """Sends a report, if somebody makes them. A failure is logged once, and changes nothing else."""
        self._report_wanted = trio.Event()
        if self._describe is None or trio.current_time() < self._no_reports_until:
            return
        try:
            answer = await self._client.report(self._saved.instance, report.encode(self._describe()))
            if self._twins.hear(answer):
                await self._keep_own()
        except CaDeniedError as error:
            if error.denial in wire.UNKNOWN_PATH:
                self._no_reports_until = trio.current_time() + NO_REPORTS_SECONDS
            else:
                self._faults.report("report", f"the CA does not take this sidecar's report: {error}")
        except (CaError, ValueError) as error:
            self._faults.report("report", f"the CA did not get this sidecar's report: {error}")
        except Exception as error:
            self._log.bug("report_failed", error, service=self._service)
        else:
            self._faults.report("report", None)

    async def _fetch_bundles(self, step: FetchBundles) -> None:
        """One fault is reported for an answer, however many documents it has: anybody may have sent them."""
        have = self._trust.bundle
        documents = await self._client.bundles(0 if have is None else have.version, unverified=not step.verified)
        learnt = await _off_the_loop(self._trust.learn, documents, self._now())
        fault = None
        if learnt.faults:
            what = "a trust bundle from the CA is refused"
            if len(learnt.faults) > 1:
                what = f"{len(learnt.faults)} trust bundles from the CA are refused; the last"
            fault = f"{what}: {learnt.faults[-1]}"
        bundle = learnt.trust.bundle
        if bundle is None:
            self._faults.report("bundle", fault)
            found = "the server there has no trust bundle that the pinned root signed"
            message = f"expected a CA under the pinned root at {self._identity.ca}, but {found}"
            raise CaUnverifiedError(message, Refused(Reason.UNKNOWN_CA, found))
        if learnt.document:
            await self._keep(statedir.BUNDLE, learnt.document)
            await self._keep_floors(learnt.trust)
            roots = [root.hex()[:16] for root in sorted(bundle.anchors)]
            self._log.info("trust_bundle", service=self._service, version=bundle.version, roots=roots)
        self._membership.learned(learnt.trust, self._now(), fault)
        await self._configure_client()

    async def _obtain(self, step: Enrol | Renew | Reenrol) -> None:
        """Gets one certificate for a fresh key, checks it, keeps it, and puts it in force."""
        bundle, own = self._trust.bundle, self.credentials
        if bundle is None or (own is None and not isinstance(step, Enrol)):
            raise RuntimeError("not enrolled yet")
        key = await self._disk.run(self._saved.pending_key) if isinstance(step, Enrol) else new_key()
        if self._twins.made(key):
            await self._keep_own()
        csr = accept.csr_for(key)
        if own is None or isinstance(step, Enrol):
            how = Means.ENROLLED if own is None else Means.ENROLLED_AGAIN
            chain = await self._enrol(key, csr)
        elif isinstance(step, Reenrol):
            how, old = Means.RE_ENROLLED, own.keys.key
            if not isinstance(old, ec.EllipticCurvePrivateKey):
                raise TypeError("our own key must be an elliptic-curve key")
            await self._use(bundle.roots)
            chain = await self._client.reenrol(own.keys.chain[0], old, csr, key.public_key())
        else:
            how, chain = Means.RENEWED, await self._client.renew(csr)
        taken = accept.take_certificate(
            chain, key, self._own, bundle.roots, self._trust.distrusted, self._mesh().max_leaf_ttl, self._clock()
        )
        await self._keep(statedir.IDENTITY, accept.identity_pem(taken))
        self._put_in_force(taken)
        await self._forget_pending_key()
        self._log.info(how, service=self._service, certificate_until=f"{taken.svid.not_after:%FT%TZ}")

    async def _enrol(self, key: ec.EllipticCurvePrivateKey, csr: bytes) -> bytes:
        text = await self._disk.run(self._read_enrolment)
        await self._disk.run(partial(self._saved.keep_pending_key, key))
        if self._trust.bundle is not None:
            await self._use(self._trust.bundle.roots)
        try:
            return await self._client.enrol(self._service, text, csr)
        except CaDeniedError as error:
            if error.denial != Denial.KEY_REUSED:
                raise
            await self._disk.run(self._saved.forget_pending_key)
            raise CaError(f"an earlier answer was lost, and the CA does not repeat it any more; {error}") from error

    def _put_in_force(self, taken: Credentials) -> None:
        self.credentials = taken
        self._membership.obtained(Own(taken.svid, taken.keys.chain[1:]), self._now())

    async def _configure_client(self) -> None:
        """Makes the CA client use the bundle, the list and the certificate in force; the certificate only until it ends."""
        trust, own = self._trust, self.credentials
        if trust.bundle is None:
            return
        if own is not None and own.keys.roots != trust.bundle.roots:
            own = self.credentials = accept.with_roots(own, trust.bundle.roots)
        usable = own is not None and self._clock() <= own.svid.not_after
        await self._use(own.keys if own is not None and usable else trust.bundle.roots)

    async def _use(self, keys: KeyPair | Roots) -> None:
        if keys == self._shown:
            await self._client.judge_by(self._trust.of_the_ca())
        else:
            self._shown = keys
            await self._client.use(keys, self._trust.of_the_ca())

    # -- files ---------------------------------------------------------------------------------------------------------

    async def _keep(self, name: str, data: bytes) -> None:
        """Writes a file of ``state_dir``. A failure, such as a full disk, is logged and does not keep ``data`` from use."""
        await self._write(partial(self._saved.keep, name, data))

    async def _keep_own(self) -> None:
        """A failure is not logged: the certificate, which is written next, tells of a full disk."""
        with contextlib.suppress(UsageError, StalledError):
            await self._disk.run(partial(self._saved.keep_own, self._twins.own))

    async def _keep_floors(self, trust: Trust) -> None:
        await self._write(partial(self._saved.keep_floors, trust))

    async def _write(self, write: Callable[[], None]) -> None:
        try:
            await self._disk.run(write)
        except (UsageError, StalledError) as error:
            self._faults.report("state_dir", f"{error}; the new value is in force, but a restart would lose it")
        else:
            self._faults.report("state_dir", None)

    async def _forget_pending_key(self) -> None:
        """A failure has no effect but that the next enrolment asks the CA for this certificate again."""
        with contextlib.suppress(OSError):
            await self._disk.run(self._saved.forget_pending_key)

    def _read_enrolment(self) -> str:
        """The text of the token or secret. Read each time: the file may have been replaced. Raises :class:`UsageError`."""
        path = self._identity.enrolment
        if path is None:
            raise UsageError(
                f"{self._saved.path}: has no usable certificate, and identity.enrolment names no token or secret; make one "
                f"where the CA is: certs token {self._service}"
            )
        text = credentials.read_file(path, "enrolment token or secret", secret=True).decode("ascii", "replace").strip()
        try:
            parsed = enrolment.parse(text)
        except ValueError as error:
            raise UsageError(f"{path}: {error}") from error
        if not self._trust.has_root(parsed.root):
            raise UsageError(
                f"{path}: this {parsed.kind} is of a mesh under another root ({parsed.root.hex()[:16]}…); it is not sent"
            )
        return text

    # -- logging -------------------------------------------------------------------------------------------------------

    def _log_reports(self) -> None:
        """Each fault once; somebody in the CA's place is an alarm besides."""
        reports, self._membership.reports = self._membership.reports, []
        for one in reports:
            is_news = self._faults.report(one.topic, one.message)
            cause = None if one.failure is None else one.failure.cause
            if is_news and isinstance(cause, CaUnverifiedError):
                self._alarm(cause)

    def _alarm(self, error: CaUnverifiedError) -> None:
        if error.refusal.reason not in MITM_SUSPECTS:
            return  # a wrong clock, for one
        self._alarms.report(
            f"refused: {self._service} {accept.describe(error)}: something answers in the CA's place",
            service=self._service,
            upstream=self._identity.ca,
            reason=str(error.refusal.reason),
            next=FIND_WHAT,
        )

    def _alarm_once(self, error: CaUnverifiedError) -> None:
        """Something else answered at one of the CA's addresses, and the CA at another."""
        if str(error) != self._suspected:
            self._suspected = str(error)
            self._alarm(error)

    def _warn(self, event: str, message: str) -> None:
        self._log.warning(event, service=self._service, message=message)


def _end(revocations: Revocations) -> datetime:
    return revocations.fresh_until or datetime.min.replace(tzinfo=UTC)


def _why(error: Exception) -> Why:
    if isinstance(error, CaUnverifiedError):
        return Why.UNVERIFIED
    if isinstance(error, CaDeniedError):
        return Why.PASSING if error.passing else Why.DENIED
    if isinstance(error, CaError):
        return Why.OTHER
    if isinstance(error, UsageError):
        return Why.UNUSABLE
    return Why.LOCAL if isinstance(error, OSError) else Why.INVALID


async def _off_the_loop(function: Callable[..., _T], *arguments: object) -> _T:
    """Runs a verification in a thread: a list of revocations may have ten thousand entries, and an impostor's documents
    whatever takes longest. The relay goes on meanwhile."""
    return await trio.to_thread.run_sync(function, *arguments)


def pinned(identity: CaIdentity) -> bytes:
    """The digest of the pinned root. Raises :class:`UsageError`."""
    if identity.root_sha256 is not None:
        return bytes.fromhex(identity.root_sha256)
    path = identity.root
    if path is None:
        raise UsageError("identity: needs root or root_sha256, to verify the CA at first contact")
    roots = credentials.read_certificates(path, "pinned root")
    return certificate_digest(roots[0])
