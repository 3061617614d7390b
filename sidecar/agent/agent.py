"""The identity of one sidecar that a CA issues: enrolment, renewal, and following the CA's trust bundle and revocations.

How it works. A sidecar starts with two things: the pinned root, and a token or secret for enrolment. Its identity is in one
of four states, and each state decides what is sent to whom:

========================= ==========================================================================================
state                     what the CA gets
========================= ==========================================================================================
no trust bundle           a request for bundles, over TLS that verifies nothing. Each bundle is signed by a root, and is
                          checked against the pinned root. Nothing secret is sent.
bundle, no certificate    enrolment: the token or secret, and a CSR, after the CA has proved its identity under the
                          bundle's roots. The key of the CSR is on the disk before the request leaves, so the CA can
                          repeat an answer that was lost.
certificate in force      renewal: a CSR with a fresh key, over mutual TLS with the present certificate
certificate ended, or     re-enrolment: the old certificate, a CSR, and the old key's signature over the CA's nonce; if
renewal failed            the CA refuses that for good, enrolment with the token or secret, if there is one
========================= ==========================================================================================

:meth:`Agent.enrol` ends with a certificate in force. :meth:`Agent.run` is one loop after that:

* Every five seconds it polls the list of revocations. The answer names the newest bundle's version, and the request names
  the version in force here, which a root rotation waits for. A newer bundle is fetched and taken if a root that is trusted
  already signed it. If the CA cannot be verified, its root may have changed: bundles are then fetched over unverified TLS.
* It renews at half of the certificate's life: by the wall clock, so that a laptop renews after a suspend, or by the
  monotonic clock, so that a clock that was set back delays nothing; at once if the bundle or the list rejects the
  certificate (:func:`sidecar.agent.accept.must_renew`).

Failures. A poll is tried again at the next turn. Enrolment and renewal are tried again after a backoff of half a second to a
minute. :meth:`Agent.enrol` alone gives up, when the CA refuses for good. Each failure is logged once, with the time until
which the values in force are good.

Invariants. A failure leaves the values in force unchanged. Every answer is checked (:mod:`sidecar.agent.accept`), then
written to ``state_dir``, then put in force, so a restart needs no CA. If the write fails, that is logged, and the answer is
put in force all the same. A token or secret is sent to a verified CA only, and not if it is for a root that is not trusted.
It fails closed: without a fresh list no new connection is accepted (:mod:`sidecar.identity.judge`), and every peer refuses
a certificate that has ended.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import Any, TypeVar

import trio
from cryptography.hazmat.primitives.asymmetric import ec

from certs.protocol import enrolment
from certs.protocol.client import CaClient, CaDeniedError, CaError, CaUnverifiedError
from certs.protocol.denial import Denial
from certs.protocol.documents import Bundle, RevocationList
from sidecar.agent import accept, credentials, statedir
from sidecar.agent.accept import AnswerRefusedError
from sidecar.agent.credentials import Credentials
from sidecar.agent.saved_state import SavedState
from sidecar.agent.schedule import backoff, refresh_after, refresh_at
from sidecar.config.sidecar_yaml import CaIdentity
from sidecar.documents.address import ca_address
from sidecar.host.disk import Disk, StalledError
from sidecar.host.follow import ReportOnce
from sidecar.identity.judge import Revocations
from sidecar.identity.keys import certificate_digest, new_key
from sidecar.identity.reasons import MITM_SUSPECTS, Reason, Refused, UsageError
from sidecar.identity.spiffe import SpiffeId
from sidecar.observe.logs import Log
from sidecar.policy.mesh import Mesh

POLL_SECONDS = 5.0

_T = TypeVar("_T")


class Means(StrEnum):
    """How a certificate was obtained; the name of the event that is logged."""

    ENROLLED = "enrolled"
    ENROLLED_AGAIN = "enrolled_again"
    RENEWED = "renewed"
    RE_ENROLLED = "re-enrolled"


Adopt = Callable[[Credentials, Revocations], Awaitable[None]]
"""Called with the credentials and revocations in force, after each change of either or of the bundle."""


@dataclass(frozen=True, slots=True)
class _Renewal:
    """When to renew the certificate in force: the clock that gets there first decides."""

    wall: datetime
    monotonic: float


class Agent:
    """Obtains one sidecar's certificate and keeps it fresh. Reads ``state_dir`` at once; raises :class:`UsageError`."""

    def __init__(
        self, service: str, identity: CaIdentity, mesh: Callable[[], Mesh], log: Log, clock: Callable[[], datetime]
    ) -> None:
        self._service = service
        self._identity = identity
        self._mesh = mesh
        self._log = log
        self._clock = clock
        self._pin = _pin(identity)
        self._trust_domain = mesh().trust_domain
        self._own = SpiffeId(self._trust_domain, (service,))
        self._client = CaClient(ca_address(identity.ca), self._trust_domain, clock, self._alarm_once)
        self._bundle: Bundle | None = None
        self._listed: RevocationList | None = None
        self._etag = ""
        self.credentials: Credentials | None = None
        self._renewal = _Renewal(clock(), 0.0)
        self._failures = 0
        self._retry_at = 0.0
        self._suspected = ""
        self._faults = ReportOnce[str](
            lambda what, message: self._warn(f"{what}_failed", message),
            lambda what: log.info(f"{what}_mended", service=service, message="good again"),
        )
        self._disk = Disk()
        self._saved = SavedState(identity.state_dir, self._own, self._warn)
        try:
            self._instance = self._saved.load_instance(self._pin, clock())
            self._load_saved_state()
        except BaseException:
            self._saved.close()
            raise

    def _load_saved_state(self) -> None:
        """Puts in force the content of ``state_dir``, as far as it is still good."""
        now = self._clock()
        self._bundle = self._saved.bundle(now)
        if self._bundle is None:
            return
        self._listed = self._saved.revocations(self._bundle, now)
        if (found := self._saved.credentials(self._bundle)) is not None:
            self._put_in_force(found)

    def follow(self, mesh: Callable[[], Mesh]) -> None:
        """From now on reads ``max_leaf_ttl`` and ``revocation_staleness`` from this mesh."""
        self._mesh = mesh

    async def close(self) -> None:
        await self._client.close()
        self._saved.close()

    def revocations(self) -> Revocations:
        """The revocations that peers are judged by now. Raises :class:`RuntimeError` while there is no trust bundle."""
        if self._bundle is None:
            raise RuntimeError("not enrolled yet")
        return accept.revocations(self._bundle, self._listed, self._mesh().revocation_staleness)

    def trust(self) -> dict[str, str]:
        """The CA, and the state of bundle, list and renewal, for ``sidecar status``."""
        fields = {"ca": self._identity.ca}
        if self._bundle is not None:
            fields |= {"trust_bundle": str(self._bundle.version), "roots": str(len(self._bundle.roots))}
        if self._listed is not None:
            fields["revocations_as_of"] = f"{self._listed.issued_at:%FT%TZ}"
        return {**fields, "renews_at": f"{self._renewal.wall:%FT%TZ}"}

    # -- enrolment -----------------------------------------------------------------------------------------------------

    async def enrol(self) -> None:
        """Returns once a usable certificate is in force: at once, if ``state_dir`` has one. While the CA cannot be reached,
        it is tried again. Raises :class:`UsageError` if the CA refuses for good."""
        if self._bundle is not None:
            await self._configure_client()
        while self.credentials is None or self._clock() > self.credentials.svid.not_after:
            try:
                await self._try_to_enrol()
            except UsageError:
                raise
            except CaDeniedError as error:
                if not error.passing:
                    raise UsageError(f"{self._identity.ca}: {self._service} cannot enrol: {error}") from error
                await self._wait_to_retry(error)
            except (CaError, AnswerRefusedError, OSError) as error:
                await self._wait_to_retry(error)

    async def _try_to_enrol(self) -> None:
        if self._bundle is None:
            await self._take_bundles(await self._client.bundles(0, unverified=True))
        if self._bundle is None:
            found = "the server there has no trust bundle that the pinned root signed"
            message = f"expected a CA under the pinned root at {self._identity.ca}, but {found}"
            raise CaUnverifiedError(message, Refused(Reason.UNKNOWN_CA, found))
        await self._configure_client()
        try:
            await self._get_certificate()
        except CaUnverifiedError:
            await self._poll()  # takes a newer bundle, if the CA's root has changed; else raises the same error
            await self._get_certificate()
        await self._poll()

    async def _get_certificate(self) -> None:
        await (self._obtain(Means.ENROLLED) if self.credentials is None else self._renew())

    async def _wait_to_retry(self, error: Exception) -> None:
        self._failures += 1
        delay = backoff(self._failures, random.random())  # noqa: S311 (spreads load; not a secret)
        message = f"cannot join the mesh yet: {accept.describe(error)}; trying again"
        if self._faults.report("joining", message) and isinstance(error, CaUnverifiedError):
            self._alarm(error)
        await trio.sleep(delay)

    # -- renewal -------------------------------------------------------------------------------------------------------

    async def run(self, adopt: Adopt) -> None:
        """Keeps certificate, bundle and revocations fresh, until cancelled."""
        while True:
            bundle = self._bundle
            await self._attempt("revocations", self._poll, adopt)
            if self._is_due() and trio.current_time() >= self._retry_at:
                await self._attempt("certificate", self._renew, adopt)
            wait = POLL_SECONDS
            if self._is_due():
                wait = min(wait, max(0.05, self._retry_at - trio.current_time()))
            if self._bundle is not bundle:
                wait = 0.05  # reports the new bundle's version to the CA at once: a root rotation may be waiting for it
            await trio.sleep(wait * random.uniform(0.9, 1.0))  # noqa: S311

    def _is_due(self) -> bool:
        own, bundle = self.credentials, self._bundle
        if own is None or bundle is None:
            return True
        by_clock = self._clock() >= self._renewal.wall or trio.current_time() >= self._renewal.monotonic
        return by_clock or accept.must_renew(own, bundle, self._listed)

    async def _attempt(self, what: str, step: Callable[[], Awaitable[None]], adopt: Adopt) -> None:
        """Runs one step and calls ``adopt`` after a change. A failure is logged, and the values in force stay."""
        before = self.credentials, self._bundle, self._listed
        try:
            await step()
        except (CaError, AnswerRefusedError, OSError) as error:
            if what == "certificate":
                self._failures += 1
                self._retry_at = trio.current_time() + backoff(self._failures, random.random())  # noqa: S311
            self._report_failure(what, error)
        except Exception as error:  # a bug of this program must not end live connections
            if what == "certificate":  # a failed poll must not postpone the renewal
                self._retry_at = trio.current_time() + POLL_SECONDS
            self._log.bug("membership_failed", error, service=self._service)
        else:
            if what == "certificate":
                self._failures = 0
            self._faults.report(what, None)
        if (self.credentials, self._bundle, self._listed) != before and self.credentials is not None:
            await adopt(self.credentials, self.revocations())

    def _report_failure(self, what: str, error: Exception) -> None:
        """Logs what failed, and until when the values in force are good."""
        if what == "certificate" and self.credentials is not None:
            good = f"the certificate in force is good until {self.credentials.svid.not_after:%F %T} UTC"
        elif self._listed is not None:
            until = self._listed.issued_at + self._mesh().revocation_staleness
            good = f"the list of revocations in force lets new connections in until {until:%F %T} UTC"
        else:
            good = "no list of revocations is in force, so no new connection is let in"
        if self._faults.report(what, f"{accept.describe(error)}; {good}; trying again") and isinstance(
            error, CaUnverifiedError
        ):
            self._alarm(error)

    async def _poll(self) -> None:
        """Gets the list of revocations, and a newer bundle if there is one."""
        bundle, own = self._current_bundle(), self.credentials
        if own is not None and self._clock() > own.svid.not_after:
            await self._configure_client()
        try:
            polled = await self._client.revocations(self._etag, self._instance, bundle.version)
        except CaUnverifiedError:
            # The CA's root may have changed; a root that is trusted here signs the bundle that has the new one.
            try:
                learnt = await self._take_bundles(await self._client.bundles(bundle.version, unverified=True))
            except CaError:
                learnt = False
            if not learnt:
                raise
            await self._configure_client()
            polled = await self._client.revocations(self._etag, self._instance, self._current_bundle().version)
        if polled.bundle > bundle.version and await self._take_bundles(await self._client.bundles(bundle.version)):
            await self._configure_client()
        if polled.document is not None:
            listed = await _off_the_loop(
                accept.take_revocations, polled.document, self._listed, self._current_bundle(), self._clock()
            )
            await self._keep(statedir.REVOCATIONS, polled.document)
            self._listed, self._etag = listed, polled.etag

    async def _take_bundles(self, documents: list[bytes]) -> bool:
        """Puts the newest valid bundle in force; returns whether there was one. One fault is reported for an answer, however
        many documents it has: anybody may have sent them."""
        learnt = await _off_the_loop(
            accept.learn, documents, self._bundle, self._pin, self._trust_domain, self._clock()
        )
        if learnt.faults:
            what, last = "a trust bundle from the CA is refused", learnt.faults[-1]
            if len(learnt.faults) > 1:
                what = f"{len(learnt.faults)} trust bundles from the CA are refused; the last"
            self._faults.report("bundle", f"{what}: {last}")
        if learnt.bundle is None:
            return False
        await self._keep(statedir.BUNDLE, learnt.document)
        self._bundle = learnt.bundle
        self._faults.report("bundle", None)
        roots = [root.hex()[:16] for root in sorted(learnt.bundle.anchors)]
        self._log.info("trust_bundle", service=self._service, version=learnt.bundle.version, roots=roots)
        return True

    async def _renew(self) -> None:
        """Renews; re-enrols if the certificate has ended, or if renewal fails and the CA is verified."""
        own, now = self.credentials, self._clock()
        if own is None:
            raise RuntimeError("not enrolled yet")
        if now <= own.svid.not_after:
            try:
                await self._obtain(Means.RENEWED)
                return
            except CaDeniedError as error:
                if error.passing:
                    raise
                reason: CaError = error
            except CaUnverifiedError:
                raise
            except CaError as error:
                reason = error
        else:
            reason = CaError(f"our certificate ended at {own.svid.not_after:%F %T} UTC")
        await self._reenrol(own, reason)

    async def _reenrol(self, own: Credentials, reason: CaError) -> None:
        """Gets a certificate by the old one's key; if the CA refuses that for good, by the token or secret. ``reason``: why
        renewal failed, for the message."""
        bundle = self._current_bundle()
        await self._client.use(bundle.roots, Revocations(keys=bundle.distrusted))
        try:
            try:
                await self._obtain(Means.RE_ENROLLED, own)
            except CaDeniedError as error:
                if error.passing or self._identity.enrolment is None:
                    raise
                try:
                    await self._obtain(Means.ENROLLED_AGAIN)
                except UsageError as unusable:
                    raise CaDeniedError(error.denial, f"{error}; and {unusable}", passing=False) from unusable
                except CaDeniedError as again:
                    raise CaDeniedError(again.denial, f"{error}; and {again}", passing=again.passing) from again
        except CaDeniedError as error:
            raise CaDeniedError(error.denial, f"{reason}; {error}", passing=error.passing) from error
        except CaUnverifiedError:
            raise  # as it is: an attacker may be in the CA's place
        except CaError as error:
            raise CaError(f"{reason}; {error}") from error
        finally:
            await self._configure_client()

    async def _obtain(self, how: Means, own: Credentials | None = None) -> None:
        """Gets one certificate for a fresh key, checks it, keeps it, and puts it in force. ``own``: re-enrol by its key."""
        first = how in (Means.ENROLLED, Means.ENROLLED_AGAIN)
        key = await self._disk.run(self._saved.pending_key) if first else new_key()
        csr = accept.csr_for(key)
        if first:
            text = await self._disk.run(self._read_enrolment)
            await self._disk.run(partial(self._saved.keep_pending_key, key))
            try:
                chain = await self._client.enrol(self._service, text, csr)
            except CaDeniedError as error:
                if error.denial != Denial.KEY_REUSED:
                    raise
                await self._disk.run(self._saved.forget_pending_key)
                raise CaError(f"an earlier answer was lost, and the CA does not repeat it any more; {error}") from error
        elif own is not None:
            old = own.keys.key
            if not isinstance(old, ec.EllipticCurvePrivateKey):
                raise TypeError("our own key must be an elliptic-curve key")
            chain = await self._client.reenrol(own.keys.chain[0], old, csr, key.public_key())
        else:
            chain = await self._client.renew(csr)
        mesh = self._mesh()
        taken = accept.take_certificate(chain, key, self._own, self._current_bundle(), mesh.max_leaf_ttl, self._clock())
        await self._keep(statedir.IDENTITY, accept.identity_pem(taken))
        self._put_in_force(taken)
        await self._forget_pending_key()
        await self._configure_client()
        self._log.info(how, service=self._service, certificate_until=f"{taken.svid.not_after:%FT%TZ}")

    def _put_in_force(self, taken: Credentials) -> None:
        svid, chance = taken.svid, random.random()  # noqa: S311
        self.credentials = taken
        life = svid.not_after - self._clock()
        self._renewal = _Renewal(
            refresh_at(svid.not_before, svid.not_after, chance),
            trio.current_time() + refresh_after(life, chance).total_seconds(),
        )

    async def _configure_client(self) -> None:
        """Makes the CA client use the bundle and the certificate in force; the certificate only until it ends."""
        bundle = self._current_bundle()
        revoked = Revocations(keys=bundle.distrusted)
        own = self.credentials
        if own is None:
            await self._client.use(bundle.roots, revoked)
            return
        if own.keys.roots != bundle.roots:
            own = self.credentials = accept.with_roots(own, bundle)
        usable = self._clock() <= own.svid.not_after
        await self._client.use(own.keys if usable else bundle.roots, revoked)

    def _current_bundle(self) -> Bundle:
        if self._bundle is None:
            raise RuntimeError("not enrolled yet")
        return self._bundle

    # -- files ---------------------------------------------------------------------------------------------------------

    async def _keep(self, name: str, data: bytes) -> None:
        """Writes a file of ``state_dir``. A failure, such as a full disk, is logged and does not keep ``data`` from use."""
        try:
            await self._disk.run(partial(self._saved.keep, name, data))
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
                f"{self._saved.path}: has no usable certificate, and identity.enrolment names no token or secret: "
                f"certs token {self._service}"
            )
        text = credentials.read_file(path, "enrolment token or secret", secret=True).decode("ascii", "replace").strip()
        try:
            parsed = enrolment.parse(text)
        except ValueError as error:
            raise UsageError(f"{path}: {error}") from error
        if parsed.root != self._pin and parsed.root not in self._current_bundle().anchors:
            raise UsageError(
                f"{path}: this {parsed.kind} is of a mesh under another root ({parsed.root.hex()[:16]}…); it is not sent"
            )
        return text

    # -- logging -------------------------------------------------------------------------------------------------------

    def _alarm(self, error: CaUnverifiedError) -> None:
        if error.refusal.reason not in MITM_SUSPECTS:
            return  # a wrong clock, for one
        self._log.alarm(
            f"refused: {self._service} {accept.describe(error)}: something answers in the CA's place",
            service=self._service,
            upstream=self._identity.ca,
            reason=str(error.refusal.reason),
            next="find out what answers there; nothing secret was sent to it",
        )

    def _alarm_once(self, error: CaUnverifiedError) -> None:
        """Something else answered at one of the CA's addresses, and the CA at another."""
        if str(error) != self._suspected:
            self._suspected = str(error)
            self._alarm(error)

    def _warn(self, event: str, message: str) -> None:
        self._log.warning(event, service=self._service, message=message)


async def _off_the_loop(function: Callable[..., _T], *arguments: Any) -> _T:
    """Runs a verification in a thread: a list of revocations may have ten thousand entries, and an impostor's documents
    whatever takes longest. The relay goes on meanwhile."""
    return await trio.to_thread.run_sync(function, *arguments)


def _pin(identity: CaIdentity) -> bytes:
    """The digest of the pinned root. Raises :class:`UsageError`."""
    if identity.root_sha256 is not None:
        return bytes.fromhex(identity.root_sha256)
    path = identity.root
    if path is None:
        raise UsageError("identity: needs root or root_sha256, to verify the CA at first contact")
    roots = credentials.read_certificates(path, "pinned root")
    return certificate_digest(roots[0])
