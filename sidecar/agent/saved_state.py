"""The state that a sidecar keeps between two starts, parsed and checked. I/O: ``state_dir``.

:mod:`sidecar.agent.statedir` keeps bytes; this module parses them. The disk gets the same checks as the CA
(:mod:`sidecar.agent.accept`): what is damaged, foreign or no longer trusted is logged, ignored, and requested again.
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

    def close(self) -> None:
        self._state.close()

    def load_instance(self, pin: bytes, now: datetime) -> str:
        """The random name of this replica of the service, made at the first start. State of a mesh under another root than
        the pinned one (``pin``: its digest) is removed first."""
        kept = self._state.read(MEMBER)
        try:
            fields = {} if kept is None else json.loads(kept)
            instance, kept_pin = str(fields.get("instance", "")), str(fields.get("pin", ""))
        except (ValueError, AttributeError):
            instance, kept_pin = "", ""
        bundle = self.bundle(now)
        if bundle is not None and kept_pin != pin.hex() and pin not in bundle.anchors:
            self._warn(
                "state_forgotten",
                f"{self.path}: was of a mesh under another root than the one that is pinned now; its files were removed",
            )
            self._state.remove(BUNDLE, REVOCATIONS, IDENTITY, PENDING)
        if not wire.INSTANCE.fullmatch(instance):
            instance = secrets.token_hex(16)
        self.keep(MEMBER, json.dumps({"instance": instance, "pin": pin.hex()}).encode())
        return instance

    def bundle(self, now: datetime) -> Bundle | None:
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

    def revocations(self, bundle: Bundle, now: datetime) -> RevocationList | None:
        """The newest list, if it is valid under this bundle."""
        kept = self._state.read(REVOCATIONS)
        if kept is None:
            return None
        try:
            return accept.take_revocations(kept, None, bundle, now)
        except AnswerRefusedError as error:
            self._warn("state_ignored", f"{self.path / REVOCATIONS}: {error}")
            return None

    def credentials(self, bundle: Bundle) -> Credentials | None:
        """The certificate and its key. It may have ended."""
        kept = self._state.read(IDENTITY)
        if kept is None:
            return None
        try:
            return accept.kept_certificate(kept, self._own, bundle)
        except AnswerRefusedError as error:
            self._warn("state_ignored", f"{self.path / IDENTITY}: {error}; enrolling again")
            return None

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
