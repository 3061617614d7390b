"""The verdict frame of ``mesh/1``: what the callee says once, after it has judged the caller and reached its app. Pure.

One byte that counts the bytes of a word, then the word in ASCII: ``ok``, or the reason of the refusal (``reasons.Reason``).
A TLS 1.3 client's handshake is over before the server has judged it, and no alert can say "denied by policy" afterwards;
so without this frame a caller could not tell a refusal from a lost connection, and fail-over would not be safe.
"""

from __future__ import annotations

from sidecar.identity.reasons import Reason, Refused
from sidecar.identity.spiffe import shown

MAX_WORD = 32
RETRY_ELSEWHERE = frozenset({Reason.CONNECT_FAILED.value, Reason.OVERLOADED.value})
"""Refusals that are about that callee, not about us: another peer may say yes."""


def encode(reason: Reason) -> bytes:
    """The frame that says ``reason``; ``Reason.OK`` lets the caller in."""
    return bytes([len(reason.value)]) + reason.value.encode("ascii")


def word_length(header: bytes) -> int:
    """How many bytes follow the first one. Raises :class:`Refused` if no verdict begins so."""
    if not 0 < header[0] <= MAX_WORD:
        raise Refused(Reason.PEER_REFUSED, f"heard 0x{header[0]:02x} where the peer's verdict was due")
    return header[0]


def admit(word: bytes) -> None:
    """Returns if the peer let us in; else raises :class:`Refused`, quoting the peer's reason."""
    if word == b"ok":
        return
    try:
        said = Reason(word.decode("ascii")).value
    except ValueError:
        said = shown(word.decode("latin-1"))
    raise Refused(Reason.PEER_REFUSED, f"was refused by the peer: {said}", peer_reason=said)
