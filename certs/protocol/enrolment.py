"""Enrolment credentials as text: a one-time token or an enrolment secret. Pure.

``mesh-token.<secret>.<root>`` or ``mesh-secret.<secret>.<root>``. ``<secret>`` is random: 128 bits in a token, which is
valid for five minutes; 256 bits in a secret, which is valid until it is revoked. ``<root>`` is the SHA-256 of the root, so
that the text itself shows which mesh it is for. Both are hexadecimal. The CA stores only a hash (:func:`stored`).
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

Kind = Literal["token", "secret"]
_BYTES: dict[Kind, int] = {"token": 16, "secret": 32}
_TEXT = re.compile(r"mesh-(token|secret)\.([0-9a-f]{32}|[0-9a-f]{64})\.([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class EnrolmentCredential:
    """``root``: the digest of the root under which it was made. The text is secret and never in the ``repr``."""

    kind: Kind
    secret: str
    root: bytes

    def __str__(self) -> str:
        return f"mesh-{self.kind}.{self.secret}.{self.root.hex()}"

    def __repr__(self) -> str:
        return f"<a {self.kind} for enrolment>"


def make(kind: Kind, root: bytes) -> EnrolmentCredential:
    """Makes a new credential."""
    return EnrolmentCredential(kind, secrets.token_hex(_BYTES[kind]), root)


def parse(text: str) -> EnrolmentCredential:
    """Parses a credential. Raises :class:`ValueError`, whose message never contains any of the text."""
    match = _TEXT.fullmatch(text)
    if match is None:
        raise ValueError("not a token or an enrolment secret: these read mesh-token.….… or mesh-secret.….…")
    kind: Kind = "token" if match[1] == "token" else "secret"
    if len(match[2]) != 2 * _BYTES[kind]:
        raise ValueError(f"a {kind} of the wrong length")
    return EnrolmentCredential(kind, match[2], bytes.fromhex(match[3]))


def stored(made: EnrolmentCredential) -> str:
    """What the CA stores. A fast hash is enough: 128 random bits cannot be guessed, however fast the hash is."""
    return sha256(f"mesh-{made.kind}.{made.secret}".encode()).hexdigest()
