"""What a sidecar remembers of its membership between two starts, and what of that still counts. I/O: ``state_dir``.

:mod:`sidecar.agent.statedir` keeps bytes; this says what they mean. Nothing is taken from the disk that would not be taken from
the CA (:mod:`sidecar.agent.accept`): whatever is damaged, foreign or no longer trusted is said, left, and asked for anew.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from certs.protocol import wire
from certs.protocol.documents import Bundle, RevocationList, UntrustedError, read_kept_bundle
from sidecar.agent import accept
from sidecar.agent.accept import AnswerRefusedError
from sidecar.agent.credentials import Credentials
from sidecar.agent.statedir import BUNDLE, IDENTITY, MEMBER, PENDING, REVOCATIONS, StateDir
from sidecar.identity.keys import new_key
from sidecar.identity.reasons import UsageError
from sidecar.identity.spiffe import SpiffeId

Say = Callable[[str, str], None]
"""Is told an event's name and a sentence."""


class SavedState:
    """An open ``state_dir``, of the sidecar ``own``. The constructor raises :class:`UsageError`, as does every reading where
    going on would be wrong; a sentence goes to ``say`` where it is merely less comfortable."""

    def __init__(self, path: Path, own: SpiffeId, say: Say) -> None:
        self.path = path
        self._own = own
        self._say = say
        self._state = StateDir(path)

    def close(self) -> None:
        self._state.close()

    def introduce(self, pin: bytes, now: datetime) -> str:
        """Who we are among the replicas of our service. If this is of a mesh under another root than the one that is pinned
        now, all of it is forgotten first."""
        kept = self._state.read(MEMBER)
        try:
            said = {} if kept is None else json.loads(kept)
            instance, known_pin = str(said.get("instance", "")), str(said.get("pin", ""))
        except (ValueError, AttributeError):
            instance, known_pin = "", ""
        bundle = self.bundle(now)
        if bundle is not None and known_pin != pin.hex() and pin not in bundle.anchors:
            self._say(
                "state_forgotten",
                f"{self.path}: was of a mesh under another root than the one that is pinned now; starting anew",
            )
            self._state.remove(BUNDLE, REVOCATIONS, IDENTITY, PENDING)
        if not wire.INSTANCE.fullmatch(instance):
            instance = secrets.token_hex(16)
        self.keep(MEMBER, json.dumps({"instance": instance, "pin": pin.hex()}).encode())
        return instance

    def bundle(self, now: datetime) -> Bundle | None:
        """The newest that was taken; None before the first."""
        kept = self._state.read(BUNDLE)
        if kept is None:
            return None
        try:
            return read_kept_bundle(kept, self._own.trust_domain, now)
        except UntrustedError as error:
            raise UsageError(
                f"{self.path / BUNDLE}: {error}; so it is not known whom to trust. To start anew from the "
                f"pinned root, remove {self.path}"
            ) from error

    def revocations(self, bundle: Bundle, now: datetime) -> RevocationList | None:
        """The newest list that counts under this bundle."""
        kept = self._state.read(REVOCATIONS)
        if kept is None:
            return None
        try:
            return accept.take_revocations(kept, None, bundle, now)
        except AnswerRefusedError as error:
            self._say("state_ignored", f"{self.path / REVOCATIONS}: {error}")
            return None

    def credentials(self, bundle: Bundle) -> Credentials | None:
        """The certificate and its key. It may have ended."""
        kept = self._state.read(IDENTITY)
        if kept is None:
            return None
        try:
            return accept.kept_certificate(kept, self._own, bundle)
        except AnswerRefusedError as error:
            self._say("state_ignored", f"{self.path / IDENTITY}: {error}; enrolling anew")
            return None

    def pending_key(self) -> ec.EllipticCurvePrivateKey:
        """The key that was last asked to be certified and is not yet; a new one, if there is none. It is on the disk before
        it is asked for: with the same key again, an answer that got lost is told again."""
        kept = self._state.read(PENDING)
        if kept is not None:
            try:
                return accept.read_key(kept)
            except AnswerRefusedError:
                self.forget_pending_key()
        return new_key()

    def keep_pending_key(self, key: ec.EllipticCurvePrivateKey) -> None:
        """Raises :class:`OSError`: then it must not be asked for."""
        self._state.write(PENDING, accept.key_pem(key))

    def forget_pending_key(self) -> None:
        self._state.remove(PENDING)

    def keep(self, name: str, data: bytes) -> None:
        """Replaces one of :mod:`sidecar.agent.statedir`'s files. Raises :class:`UsageError`; the old one is there then."""
        try:
            self._state.write(name, data)
        except OSError as error:
            raise UsageError(f"{self.path / name}: cannot be written: {error.strerror}") from error
