"""Which lines of strangers' sockets are folded into summaries, so that a flood does not fill the log's disk. Pure.

How this works. A stranger can open thousands of sockets a second, and each would give a line. So of the sockets that
presented no certificate only the first :data:`LINES` a minute are written for each reason and address; the others are
counted, and when the minute ends each count becomes one :class:`Summary`. The address is IPv4's, or IPv6's /64, since one
host has all of those. At most :data:`MAX_ADDRESSES` pairs of reason and address are told apart at a time: further addresses
share one pair a reason, as :data:`OTHERS`.

Invariants:

* Written lines and the counts of the summaries add up to the sockets: :meth:`Folding.fold` either returns False, or counts
  the socket, and each count leaves exactly once, by :meth:`Folding.take_ended` or :meth:`Folding.take_all`.
* What was let in is never folded, and no refusal that is about a certificate: see :func:`is_foldable`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sidecar.observe.record import ConnectionRecord, Direction
from sidecar.transport.strangers import address_key
from sidecar.transport.tls_errors import CERTIFICATE_ALERTS

LINES = 10
"""Lines that are written in :data:`SECONDS` for each reason and address."""

SECONDS = 60.0
MAX_ADDRESSES = 256
OTHERS = "others"


@dataclass(frozen=True, slots=True)
class Listener:
    """Where sockets were accepted. ``upstream``: the target of an outbound listener."""

    direction: Direction
    port: str
    upstream: str | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """``count`` sockets in place of as many lines. ``address``: theirs, the /64 that they share, :data:`OTHERS`, or None if
    it is unknown. ``since``, ``until``: when the first and the last of them ended, in seconds of the caller's clock."""

    listener: Listener
    reason: str
    address: str | None
    count: int
    since: float
    until: float


@dataclass(slots=True)
class _Minute:
    """What one pair of reason and address did since its first socket."""

    ends: float
    written: int = 0
    folded: dict[Listener, Summary] = field(default_factory=dict)


class Folding:
    """The minutes that are running. Times are seconds of a clock that does not go back."""

    def __init__(self) -> None:
        self._minutes: dict[tuple[str, str | None], _Minute] = {}  # in the order in which they end, as all are as long

    def fold(self, listener: Listener, reason: str, address: str | None, now: float) -> bool:
        """Whether the line of a foldable socket is folded: then the socket is counted here, and no line may be written.
        ``address``: ``host:port`` of the caller, None if it is unknown."""
        key = (reason, _prefix(address))
        minute = self._minutes.get(key)
        if minute is None and len(self._minutes) >= MAX_ADDRESSES:
            key = (reason, OTHERS)
            minute = self._minutes.get(key)
        if minute is None:
            minute = self._minutes[key] = _Minute(now + SECONDS)
        if minute.written < LINES:
            minute.written += 1
            return False
        before = minute.folded.get(listener)
        count, since = (0, now) if before is None else (before.count, before.since)
        minute.folded[listener] = Summary(listener, *key, count + 1, since, now)
        return True

    @property
    def next_end(self) -> float | None:
        """When the next minute ends; None if none runs."""
        return next((minute.ends for minute in self._minutes.values()), None)

    def take_ended(self, now: float) -> list[Summary]:
        """The summaries of the minutes that have ended, once."""
        ended = [key for key, minute in self._minutes.items() if minute.ends <= now]
        return [summary for key in ended for summary in self._minutes.pop(key).folded.values()]

    def take_all(self) -> list[Summary]:
        """The summaries of all minutes, once."""
        return self.take_ended(math.inf)


def is_foldable(record: ConnectionRecord) -> bool:
    """Whether a connection's line may be folded: it was refused, and nothing about it concerns a certificate.

    Inbound, the caller presented none. Outbound, the caller is a process of this machine or network that never presents one;
    the line may be folded only if nothing was dialled (our own policy refused, or the limit of connections). Where a peer
    was dialled the line stays: what answers there without a certificate may be an attacker in the middle.
    """
    if record.decision != "deny":
        return False
    if record.direction == "outbound":
        return record.peer_address is None
    return record.peer_id is None and not is_about_certificate(
        record.unverified, record.peer_reason, record.connection_id
    )


def is_about_certificate(unverified: Mapping[str, Any], peer_reason: str | None, connection_id: str | None) -> bool:
    """Whether a refusal is about a certificate: the peer presented one, or refused ours by an alert. An alert before any
    hello (without ``connection_id``) cannot be about one, whatever it says: nothing had been presented."""
    return bool(unverified) or (connection_id is not None and peer_reason in CERTIFICATE_ALERTS)


def _prefix(address: str | None) -> str | None:
    """The part of ``host:port`` that one host cannot change at will."""
    return None if address is None else address_key(address.rpartition(":")[0].strip("[]"))
