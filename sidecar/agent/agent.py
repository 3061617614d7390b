"""A sidecar's membership in its mesh: enrol once, then keep certificate, trust and revocations fresh, by itself.

How it works. :meth:`Member.join` makes this sidecar somebody: from ``state_dir``, or with the pinned root, the CA's bundles
and a token or secret, in this order, so that nothing secret leaves before the CA has proved who it is. Then
:meth:`Member.run` is one loop. Every five seconds it asks the CA for the list of revocations (which also tells whether there
is a newer trust bundle, and tells the CA which one we have), and it renews the certificate when that is due: at half of its
life by the wall clock, so that a laptop renews on waking, or by the monotonic one, so that a clock that was set back delays
nothing; at once if the bundle says that our issuer counts no longer.

Whatever goes wrong, the last good stays in force, is said with its end, and is tried again. What is in force is kept on disk
before it is used, so a restart needs no CA. Fails closed: without a fresh list nobody new is let in (``judge.py``), and
after the certificate's end nothing is, since every peer refuses us.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

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
from sidecar.host.follow import ReportOnce
from sidecar.identity.judge import Revocations
from sidecar.identity.keys import certificate_digest, new_key
from sidecar.identity.reasons import MITM_SUSPECTS, Reason, Refused, UsageError
from sidecar.identity.spiffe import SpiffeId
from sidecar.observe.logs import Log
from sidecar.policy.mesh import Mesh

POLL_SECONDS = 5.0


class Means(StrEnum):
    """How a certificate was obtained; the name of the event that is logged."""

    ENROLLED = "enrolled"
    ENROLLED_AGAIN = "enrolled_again"
    RENEWED = "renewed"
    RE_ENROLLED = "re-enrolled"


Adopt = Callable[[Credentials, Revocations], Awaitable[None]]
"""Is told what is in force from now on."""


@dataclass(frozen=True, slots=True)
class _Renewal:
    """When the certificate in force is renewed: by either clock, whichever comes first."""

    wall: datetime
    monotonic: float


class Agent:
    """One sidecar's membership. Its constructor reads ``state_dir`` and raises :class:`UsageError`."""

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
        self._client = CaClient(ca_address(identity.ca), self._trust_domain, clock)
        self._bundle: Bundle | None = None
        self._listed: RevocationList | None = None
        self._etag = ""
        self.credentials: Credentials | None = None
        self._renewal = _Renewal(clock(), 0.0)
        self._failures = 0
        self._retry_at = 0.0
        self._faults = ReportOnce[str](
            lambda what, message: self._say(f"{what}_failed", message),
            lambda what: log.info(f"{what}_mended", service=service, message="good again"),
        )
        self._memory = SavedState(identity.state_dir, self._own, self._say)
        try:
            self._instance = self._memory.introduce(self._pin, clock())
            self._remember()
        except BaseException:
            self._memory.close()
            raise

    def _remember(self) -> None:
        """Takes what ``state_dir`` has, as far as it is still good."""
        now = self._clock()
        self._bundle = self._memory.bundle(now)
        if self._bundle is None:
            return
        self._listed = self._memory.revocations(self._bundle, now)
        if (found := self._memory.credentials(self._bundle)) is not None:
            self._put_in_force(found)

    def follow(self, mesh: Callable[[], Mesh]) -> None:
        """From now on take what the policy file says (how long leaves live, how stale a list may be) from there."""
        self._mesh = mesh

    async def close(self) -> None:
        await self._client.close()
        self._memory.close()

    def revocations(self) -> Revocations:
        """What peers are judged by now. Without a bundle, nobody."""
        if self._bundle is None:
            raise RuntimeError("not a member yet")
        return accept.revocations(self._bundle, self._listed, self._mesh().revocation_staleness)

    def trust(self) -> dict[str, str]:
        """What is known from the CA, for ``sidecar status``."""
        known = {"ca": self._identity.ca}
        if self._bundle is not None:
            known |= {"trust_bundle": str(self._bundle.version), "roots": str(len(self._bundle.roots))}
        if self._listed is not None:
            known["revocations_as_of"] = f"{self._listed.issued_at:%FT%TZ}"
        return {**known, "renews_at": f"{self._renewal.wall:%FT%TZ}"}

    # -- becoming somebody ---------------------------------------------------------------------------------------------

    async def join(self) -> None:
        """Returns once there is a usable certificate: at once, if ``state_dir`` has one. A CA that is not there yet is
        waited for. Raises :class:`UsageError` where the CA says no, which waiting would not change."""
        if self._bundle is not None:
            await self._show()
        while self.credentials is None or self._clock() > self.credentials.svid.not_after:
            try:
                await self._join()
            except UsageError:
                raise
            except CaDeniedError as error:
                if not error.passing:
                    raise UsageError(f"{self._identity.ca}: {self._service} cannot enrol: {error}") from error
                await self._wait(error)
            except (CaError, AnswerRefusedError, OSError) as error:
                await self._wait(error)

    async def _join(self) -> None:
        if self._bundle is None:
            self._take_bundles(await self._client.bundles(0, unverified=True))
        if self._bundle is None:
            found = "what answers there has no trust bundle that the pinned root signed"
            message = f"expected a CA under the pinned root at {self._identity.ca}, and {found}"
            raise CaUnverifiedError(message, Refused(Reason.UNKNOWN_CA, found))
        await self._show()
        try:
            await self._become()
        except CaUnverifiedError:
            await self._poll()  # finds the way to a CA that is under a new root by now, or raises the same
            await self._become()
        await self._poll()

    async def _become(self) -> None:
        await (self._obtain(Means.ENROLLED) if self.credentials is None else self._renew())

    async def _wait(self, error: Exception) -> None:
        self._failures += 1
        delay = backoff(self._failures, random.random())  # noqa: S311 (spreads load; nothing secret hangs on it)
        message = f"cannot join the mesh yet: {accept.describe(error)}; trying again"
        if self._faults.report("joining", message) and isinstance(error, CaUnverifiedError):
            self._alarm(error)
        await trio.sleep(delay)

    # -- staying so ----------------------------------------------------------------------------------------------------

    async def run(self, adopt: Adopt) -> None:
        """Keeps everything fresh, until cancelled."""
        while True:
            bundle = self._bundle
            await self._attempt("revocations", self._poll, adopt)
            if self._is_due() and trio.current_time() >= self._retry_at:
                await self._attempt("certificate", self._renew, adopt)
            wait = POLL_SECONDS
            if self._is_due():
                wait = min(wait, max(0.05, self._retry_at - trio.current_time()))
            if self._bundle is not bundle:
                wait = 0.05  # the CA hears at once that we have it: somebody may be waiting for that
            await trio.sleep(wait * random.uniform(0.9, 1.0))  # noqa: S311

    def _is_due(self) -> bool:
        own, bundle = self.credentials, self._bundle
        if own is None or bundle is None:
            return True
        by_clock = self._clock() >= self._renewal.wall or trio.current_time() >= self._renewal.monotonic
        return by_clock or accept.must_renew(own, bundle, self._listed)

    async def _attempt(self, what: str, step: Callable[[], Awaitable[None]], adopt: Adopt) -> None:
        """One step; its failure is said, and what is in force stays."""
        before = self.credentials, self._bundle, self._listed
        try:
            await step()
        except (CaError, AnswerRefusedError, OSError) as error:
            if what == "certificate":
                self._failures += 1
                self._retry_at = trio.current_time() + backoff(self._failures, random.random())  # noqa: S311
            self._complain(what, error)
        except Exception as error:  # a fault of ours, and no reason to end the connections that live
            if what == "certificate":  # or a poll that always fails would put the renewal off for ever
                self._retry_at = trio.current_time() + POLL_SECONDS
            self._log.bug("membership_failed", error, service=self._service)
        else:
            if what == "certificate":
                self._failures = 0
            self._faults.report(what, None)
        if (self.credentials, self._bundle, self._listed) != before and self.credentials is not None:
            await adopt(self.credentials, self.revocations())

    def _complain(self, what: str, error: Exception) -> None:
        """Says what failed and until when what is in force is good."""
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
        """Asks for revocations, and for a newer bundle if there is one."""
        bundle, own = self._known(), self.credentials
        if own is not None and self._clock() > own.svid.not_after:
            await self._show()
        try:
            polled = await self._client.revocations(self._etag, self._instance, bundle.version)
        except CaUnverifiedError:
            # The CA may be under a new root by now, of which a root that we trust can tell us.
            try:
                is_news = self._take_bundles(await self._client.bundles(bundle.version, unverified=True))
            except CaError:
                is_news = False
            if not is_news:
                raise
            await self._show()
            polled = await self._client.revocations(self._etag, self._instance, self._known().version)
        if polled.bundle > bundle.version and self._take_bundles(await self._client.bundles(bundle.version)):
            await self._show()
        if polled.document is not None:
            listed = accept.take_revocations(polled.document, self._listed, self._known(), self._clock())
            self._keep(statedir.REVOCATIONS, polled.document)
            self._listed, self._etag = listed, polled.etag

    def _take_bundles(self, documents: list[bytes]) -> bool:
        """Puts the newest bundle that counts in force; returns whether there was one."""
        learnt = accept.learn(documents, self._bundle, self._pin, self._trust_domain, self._clock())
        for fault in learnt.faults:
            self._faults.report("bundle", f"a trust bundle of the CA's is not taken: {fault}")
        if learnt.bundle is None:
            return False
        self._keep(statedir.BUNDLE, learnt.document)
        self._bundle = learnt.bundle
        self._faults.report("bundle", None)
        roots = [root.hex()[:16] for root in sorted(learnt.bundle.anchors)]
        self._log.info("trust_bundle", service=self._service, version=learnt.bundle.version, roots=roots)
        return True

    async def _renew(self) -> None:
        own, now = self.credentials, self._clock()
        if own is None:
            raise RuntimeError("not a member yet")
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
        await self._renew_otherwise(own, reason)

    async def _renew_otherwise(self, own: Credentials, reason: CaError) -> None:
        """What shows us does not count with the CA: by its key, then with a token or secret, if there is one."""
        bundle = self._known()
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
            raise  # no matter of ours: somebody may be in the CA's place
        except CaError as error:
            raise CaError(f"{reason}; {error}") from error
        finally:
            await self._show()

    async def _obtain(self, how: Means, own: Credentials | None = None) -> None:
        """One certificate with a fresh key: checked, kept, then in force."""
        first = how in (Means.ENROLLED, Means.ENROLLED_AGAIN)
        key = self._memory.pending_key() if first else new_key()
        csr = accept.csr_for(key)
        if first:
            shown = self._pass()
            self._memory.keep_pending_key(key)
            try:
                chain = await self._client.enrol(self._service, shown, csr)
            except CaDeniedError as error:
                if error.denial != Denial.KEY_REUSED:
                    raise
                self._memory.forget_pending_key()
                raise CaError(f"an answer got lost too long ago to be told again; {error}") from error
        elif own is not None:
            old = own.keys.key
            if not isinstance(old, ec.EllipticCurvePrivateKey):
                raise TypeError("a key of ours is an elliptic-curve key")
            chain = await self._client.reenrol(own.keys.chain[0], old, csr, key.public_key())
        else:
            chain = await self._client.renew(csr)
        mesh = self._mesh()
        taken = accept.take_certificate(chain, key, self._own, self._known(), mesh.max_leaf_ttl, self._clock())
        self._keep(statedir.IDENTITY, accept.identity_pem(taken))
        self._memory.forget_pending_key()
        self._put_in_force(taken)
        await self._show()
        self._log.info(how, service=self._service, certificate_until=f"{taken.svid.not_after:%FT%TZ}")

    def _put_in_force(self, taken: Credentials) -> None:
        svid, chance = taken.svid, random.random()  # noqa: S311
        self.credentials = taken
        life = svid.not_after - self._clock()
        self._renewal = _Renewal(
            refresh_at(svid.not_before, svid.not_after, chance),
            trio.current_time() + refresh_after(life, chance).total_seconds(),
        )

    async def _show(self) -> None:
        """From now on the client shows and trusts what is in force."""
        bundle = self._known()
        revoked = Revocations(keys=bundle.distrusted)
        own = self.credentials
        if own is None:
            await self._client.use(bundle.roots, revoked)
            return
        if own.keys.roots != bundle.roots:
            own = self.credentials = accept.with_roots(own, bundle)
        usable = self._clock() <= own.svid.not_after
        await self._client.use(own.keys if usable else bundle.roots, revoked)

    def _known(self) -> Bundle:
        if self._bundle is None:
            raise RuntimeError("not a member yet")
        return self._bundle

    # -- what is kept and shown ------------------------------------------------------------------------------------------

    def _keep(self, name: str, data: bytes) -> None:
        """Writes; a disk that is full keeps nothing from being in force, but a restart would not know of it."""
        try:
            self._memory.keep(name, data)
        except UsageError as error:
            self._faults.report("state_dir", f"{error}; it is in force all the same, and a restart would not know it")
        else:
            self._faults.report("state_dir", None)

    def _pass(self) -> str:
        """The token or secret, read anew each time: it may have been replaced. Raises :class:`UsageError`."""
        path = self._identity.enrolment
        if path is None:
            raise UsageError(
                f"{self._memory.path}: has no usable certificate, and identity.enrolment names no token or secret: "
                f"certs token {self._service}"
            )
        text = credentials.read_file(path, "enrolment token or secret", secret=True).decode("ascii", "replace").strip()
        try:
            shown = enrolment.parse(text)
        except ValueError as error:
            raise UsageError(f"{path}: {error}") from error
        if shown.root != self._pin and shown.root not in self._known().anchors:
            raise UsageError(
                f"{path}: this {shown.kind} is of a mesh under another root ({shown.root.hex()[:16]}…); it is not sent"
            )
        return text

    # -- saying --------------------------------------------------------------------------------------------------------

    def _alarm(self, error: CaUnverifiedError) -> None:
        if error.refusal.reason not in MITM_SUSPECTS:
            return  # a clock that is wrong, say
        self._log.alarm(
            f"refused: {self._service} {accept.describe(error)}: something answers in the CA's place",
            service=self._service,
            upstream=self._identity.ca,
            reason=str(error.refusal.reason),
            next="find out who answers there; nothing secret was sent to it",
        )

    def _say(self, event: str, message: str) -> None:
        self._log.warning(event, service=self._service, message=message)


def _pin(identity: CaIdentity) -> bytes:
    """The digest of the root that this sidecar was told to trust. Raises :class:`UsageError`."""
    if identity.root_sha256 is not None:
        return bytes.fromhex(identity.root_sha256)
    path = identity.root
    if path is None:
        raise UsageError("identity: needs root or root_sha256: whom to trust at first contact")
    roots = credentials.read_certificates(path, "pinned root")
    return certificate_digest(roots[0])
