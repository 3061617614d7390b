"""What lets a service enrol: a one-time token or an enrolment secret, as text. Pure.

``mesh-token.<secret>.<root>`` and ``mesh-secret.<secret>.<root>``: a random part, of 128 bits for a token that lives five
minutes and of 256 for a secret that lives until it is revoked, and the SHA-256 of the root beside it, so that the text
itself says which mesh it is for. The CA keeps only its hash (:func:`stored`).
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
    """``root``: the digest of the root under which it was made. Its text is secret, and kept out of any ``repr``."""

    kind: Kind
    secret: str
    root: bytes

    def __str__(self) -> str:
        return f"mesh-{self.kind}.{self.secret}.{self.root.hex()}"

    def __repr__(self) -> str:
        return f"<a {self.kind} for enrolment>"


def make(kind: Kind, root: bytes) -> EnrolmentCredential:
    """A new one."""
    return EnrolmentCredential(kind, secrets.token_hex(_BYTES[kind]), root)


def parse(text: str) -> EnrolmentCredential:
    """Reads one. Raises :class:`ValueError`, whose message has nothing of the text in it."""
    match = _TEXT.fullmatch(text)
    if match is None:
        raise ValueError("no token and no enrolment secret: it reads mesh-token.….… or mesh-secret.….…")
    kind: Kind = "token" if match[1] == "token" else "secret"
    if len(match[2]) != 2 * _BYTES[kind]:
        raise ValueError(f"a {kind} of a wrong length")
    return EnrolmentCredential(kind, match[2], bytes.fromhex(match[3]))


def stored(made: EnrolmentCredential) -> str:
    """What the CA keeps of it. A plain hash: there is nothing to guess in 128 random bits, however fast one hashes."""
    return sha256(f"mesh-{made.kind}.{made.secret}".encode()).hexdigest()
