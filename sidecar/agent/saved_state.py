"""The state that a sidecar keeps between two starts, parsed and checked. I/O: ``state_dir``.

:mod:`sidecar.agent.statedir` keeps bytes; this module parses them. The disk gets the same checks as the CA
(:mod:`sidecar.agent.trust`, :mod:`sidecar.agent.accept`): what is damaged, foreign or no longer trusted is logged, ignored,
and requested again.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from certs.protocol import wire
from certs.protocol.documents import Bundle, UntrustedError, read_kept_bundle
from sidecar.agent import accept
from sidecar.agent.accept import AnswerRefusedError
from sidecar.agent.credentials import Credentials
from sidecar.agent.statedir import BUNDLE, IDENTITY, MEMBER, OWN, PENDING, REVOCATIONS, StateDir
from sidecar.agent.trust import Floor, Instant, Trust
from sidecar.agent.twins import Own
from sidecar.identity.keys import new_key
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import SpiffeId
from sidecar.transport.tls import Roots

Warn = Callable[[str, str], None]
"""Logs a warning: the event's name, and a sentence."""


class SavedState:
    """An open ``state_dir``, of the sidecar ``own``. The constructor and the readers raise :class:`UsageError` where the
    sidecar must not start; a file that it can do without is ignored, with a warning."""

    def __init__(self, path: Path, own: SpiffeId, warn: Warn) -> None:
        self.path = path
        self._own = own
        self._warn = warn
        self._state = StateDir(path)
        self.instance = ""

    def close(self) -> None:
        self._state.close()

    def load(self, pin: bytes, now: Instant) -> Trust:
        """What is trusted, and ``instance``: the random name of this replica of the service, made at the first start. State
        of a mesh under another root than the pinned one (``pin``: its digest) is removed first."""
        trust = Trust(self._own.trust_domain, pin)
        member, bundle = self._member(), self._bundle(now.wall)
        if bundle is not None and member.get("pin") != pin.hex() and pin not in bundle.anchors:
            self._warn(
                "state_forgotten",
                f"{self.path}: was of a mesh under another root than the one that is pinned now; its files were removed",
            )
            self._state.remove(BUNDLE, REVOCATIONS, IDENTITY, PENDING, OWN)
            member, bundle = {"instance": member.get("instance")}, None
        instance = str(member.get("instance", ""))
        self.instance = instance if wire.INSTANCE.fullmatch(instance) else secrets.token_hex(16)
        if bundle is not None:
            trust = self._restored(trust, bundle, self._floors(member, now), now)
        self.keep_floors(trust)
        return trust

    def learn(self, document: bytes, pin: bytes, now: Instant) -> Bundle:
        """Keeps a trust bundle that the operator brought: for what the CA is not asked, since a thief may answer. It must be
        signed by a root that is trusted here, and be newer, as any. Raises :class:`UsageError`."""
        learnt = self.load(pin, now).learn([document], now)
        if learnt.trust.bundle is None or not learnt.document:
            raise UsageError(f"the trust bundle is refused: {'; '.join(learnt.faults)}")
        self.keep(BUNDLE, learnt.document)
        self.keep_floors(learnt.trust)
        return learnt.trust.bundle

    def _member(self) -> dict[str, Any]:
        try:
            fields = json.loads(self._state.read(MEMBER) or b"{}")
        except ValueError:
            return {}
        return fields if isinstance(fields, dict) else {}

    def _floors(self, member: Mapping[str, Any], now: Instant) -> dict[bytes, Floor]:
        try:
            floors = dict(member.get("floors", {}))
            return {bytes.fromhex(key): Floor.from_json(said, now) for key, said in floors.items()}
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            self._warn(
                "state_ignored", f"{self.path / MEMBER}: the floors of revocation lists in it are damaged: {error}"
            )
            return {}

    def _bundle(self, now: datetime) -> Bundle | None:
        """The newest bundle that was put in force; None before the first."""
        kept = self._state.read(BUNDLE)
        if kept is None:
            return None
        try:
            return read_kept_bundle(kept, self._own.trust_domain, now)
        except UntrustedError as error:
            raise UsageError(
                f"{self.path / BUNDLE}: {error}; so no CA can be verified. To start again from the "
                f"pinned root, remove {self.path}"
            ) from error

    def _restored(self, trust: Trust, bundle: Bundle, floors: Mapping[bytes, Floor], now: Instant) -> Trust:
        """With the newest list, if it is valid under this bundle."""
        try:
            return trust.restored(bundle, floors, self._state.read(REVOCATIONS), now)
        except UntrustedError as error:
            self._warn("state_ignored", f"{self.path / REVOCATIONS}: the list of revocations is refused: {error}")
            return trust.restored(bundle, floors, None, now)

    def keep_floors(self, trust: Trust) -> None:
        """Raises :class:`UsageError`; then the old file stays."""
        floors = {key.hex(): floor.as_json() for key, floor in trust.floors.items()}
        fields = {"instance": self.instance, "pin": trust.pin.hex(), "floors": floors}
        self.keep(MEMBER, json.dumps(fields).encode())

    def credentials(self, roots: Roots) -> Credentials | None:
        """The certificate and its key. It may have ended."""
        kept = self._state.read(IDENTITY)
        if kept is None:
            return None
        try:
            return accept.kept_certificate(kept, self._own, roots)
        except AnswerRefusedError as error:
            self._warn("state_ignored", f"{self.path / IDENTITY}: {error}; enrolling again")
            return None

    def own(self) -> Own:
        """What it knows of the certificates that are ours."""
        try:
            return Own.from_dict(json.loads(kept)) if (kept := self._state.read(OWN)) is not None else Own()
        except ValueError as error:
            self._warn("state_ignored", f"{self.path / OWN}: {error}; what it knew of our earlier certificates is lost")
            return Own()

    def keep_own(self, own: Own) -> None:
        """Raises :class:`UsageError`; then the old file stays."""
        self.keep(OWN, json.dumps(own.to_dict()).encode())

    def pending_key(self) -> ec.EllipticCurvePrivateKey:
        """The key of an enrolment without an answer; a new one, if there is none. The CA repeats a lost answer to a request
        with the same key, so the key is written (:meth:`keep_pending_key`) before the request."""
        kept = self._state.read(PENDING)
        if kept is not None:
            try:
                return accept.read_key(kept)
            except AnswerRefusedError:
                self.forget_pending_key()
        return new_key()

    def keep_pending_key(self, key: ec.EllipticCurvePrivateKey) -> None:
        """Raises :class:`OSError`: then the key must not be sent to the CA."""
        self._state.write(PENDING, accept.key_pem(key))

    def forget_pending_key(self) -> None:
        self._state.remove(PENDING)

    def keep(self, name: str, data: bytes) -> None:
        """Replaces one of :mod:`sidecar.agent.statedir`'s files. Raises :class:`UsageError`; then the old file stays."""
        try:
            self._state.write(name, data)
        except OSError as error:
            raise UsageError(f"{self.path / name}: cannot be written: {error.strerror}") from error
