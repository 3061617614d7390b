"""Probes that this sidecar was told of beforehand, over its own Unix socket (:mod:`sidecar.proxy.probing`). Pure.

How this works. `sidecar verify` has sidecars call each other, and plays the stranger itself. What it does must raise no
alarm and teach nobody whom to allow. What a caller says of itself cannot decide that: an attacker would say it too. So each
callee is told the fingerprints of the certificates that will call, by whoever may use its socket: its own user, or root.

* A *caller* is a sidecar of the mesh, whose apps call at the same time. Its stream is a probe only if it says so as well.
* A *stranger* is a certificate of `sidecar verify` itself. All that is done with it is a probe.

Nothing is let in by this: policy and trust decide before, about a probe as about everybody else. A probe's stream ends
where another one would have reached the app.

Invariants: at most :data:`MAX_SECONDS`, :data:`MAX_FINGERPRINTS` and :data:`MAX_RECORDS`; without an announcement in force
nothing is a probe, and nothing is kept.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from typing import Any

from sidecar.observe.record import ConnectionRecord

MAX_SECONDS = 600.0
MAX_FINGERPRINTS = 512
MAX_RECORDS = 1024
"""How many of the last inbound connections are kept while an announcement is in force, each with its reason. Strangers may
push ours out; then `sidecar verify` does not find its own, and proves nothing."""

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


class Announced:
    """What was announced last; a further announcement adds to it. Times are seconds of a clock that does not go back."""

    def __init__(self) -> None:
        self._callers: set[str] = set()
        self._strangers: set[str] = set()
        self._until = 0.0
        self._records: deque[dict[str, Any]] = deque(maxlen=MAX_RECORDS)

    def announce(self, callers: Iterable[str], strangers: Iterable[str], seconds: float, now: float) -> None:
        """Expects these for ``seconds``. ``callers``, ``strangers``: SHA-256 of certificates (DER), as 64 hex digits.
        Raises :class:`ValueError` if that is not what they are, or too much."""
        callers, strangers = set(callers), set(strangers)
        if not self.is_open(now):
            self._callers, self._strangers, self._until = set(), set(), 0.0
            self._records.clear()
        if wrong := [one for one in callers | strangers if not _FINGERPRINT.fullmatch(one)]:
            raise ValueError(f"a fingerprint is 64 hex digits in lower case, not {wrong[0]!r:.80}")
        if len(self._callers | self._strangers | callers | strangers) > MAX_FINGERPRINTS:
            raise ValueError(f"at most {MAX_FINGERPRINTS} fingerprints are expected at a time")
        if not 0 < seconds <= MAX_SECONDS:
            raise ValueError(f"probes are expected for up to {MAX_SECONDS:g} seconds, not for {seconds:g}")
        self._callers |= callers
        self._strangers |= strangers
        self._until = max(self._until, now + seconds)

    def is_open(self, now: float) -> bool:
        """Whether an announcement is in force."""
        return now < self._until

    def is_stranger(self, fingerprint: str, now: float) -> bool:
        """Whether all that is done with this certificate is a probe."""
        return self.is_open(now) and fingerprint in self._strangers

    def is_caller(self, fingerprint: str, now: float) -> bool:
        """Whether a stream that says it is a probe is one, if its peer was judged by this certificate."""
        return self.is_open(now) and (fingerprint in self._callers or fingerprint in self._strangers)

    def note(self, record: ConnectionRecord, now: float) -> None:
        """Keeps what became of an inbound connection, if an announcement is in force."""
        if record.direction == "inbound" and self.is_open(now):
            self._records.append(
                {
                    "port": record.port,
                    "peer_address": record.peer_address,
                    "peer_id": record.peer_id,
                    "decision": record.decision,
                    "rule": record.rule,
                    "reason": str(record.outcome),
                    "probe": record.probe,
                    "connection_id": record.connection_id,
                    "message": (record.message or "")[:500],
                }
            )

    def records(self, now: float) -> list[dict[str, Any]]:
        """The inbound connections that ended since the announcement, the oldest first; none once it is over."""
        return list(self._records) if self.is_open(now) else []
