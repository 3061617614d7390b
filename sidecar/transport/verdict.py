"""The verdict frame of ``mesh/1``: the callee's one answer after it has verified the caller and reached its app. Pure.

The frame is one byte with the length of a word, then the word in ASCII: ``ok``, or the reason of the refusal
(``reasons.Reason``). It is needed because a TLS 1.3 client's handshake ends before the server has verified the client (RFC
8446 2), and no alert means "denied by policy". Without it a caller could not distinguish a refusal from a lost connection,
and fail-over would not be safe.
"""

from __future__ import annotations

from sidecar.identity.reasons import Reason, Refused
from sidecar.identity.spiffe import shown

MAX_WORD = 32
RETRY_ELSEWHERE = frozenset({Reason.CONNECT_FAILED.value, Reason.OVERLOADED.value, Reason.DRAINED.value})
"""Refusals that concern that callee, not us: another peer may accept."""


def encode(reason: Reason) -> bytes:
    """The frame for ``reason``; ``Reason.OK`` accepts the caller."""
    return bytes([len(reason.value)]) + reason.value.encode("ascii")


def word_length(header: bytes) -> int:
    """How many bytes follow the first one. Raises :class:`Refused` if no verdict begins with this byte."""
    if not 0 < header[0] <= MAX_WORD:
        raise Refused(Reason.PEER_REFUSED, f"received 0x{header[0]:02x} in place of the peer's verdict")
    return header[0]


def admit(word: bytes) -> None:
    """Returns if the peer accepted us; otherwise raises :class:`Refused` with the peer's reason."""
    if word == b"ok":
        return
    try:
        answer = Reason(word.decode("ascii")).value
    except ValueError:
        answer = shown(word.decode("latin-1"))
    raise Refused(Reason.PEER_REFUSED, f"was refused by the peer: {answer}", peer_reason=answer)
