"""What a connection holds up while its sidecar drains: nothing, a request, or an answer. Pure: time is an argument.

How this works. A proxy of TCP does not know requests, but their directions: bytes that went to the callee are a request that
is in flight until bytes come back. So each connection is looked at again and again:

* Its last bytes went to the callee: a request is in flight. It has the whole drain time.
* Its last bytes went to the caller, lately or not all of them yet: an answer, or a stream that never ends. It has
  :data:`STREAM_SECONDS` from the first of these looks.
* The same and :data:`IDLE_SECONDS` are over, or as long without any byte: idle. It is ended: pools must not hold a drain.
* It does not carry bytes yet or any more (handshake, dial, close): as an answer.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

IDLE_SECONDS = 0.5
STREAM_SECONDS = 2.0


class Carried(Protocol):
    """What a connection has carried: :class:`sidecar.relay.duplex.Duplex`."""

    to_app: int
    from_app: int
    app_was_last: bool

    @property
    def is_stuck(self) -> bool: ...


class Phase(Enum):
    IN_FLIGHT = "a request is in flight"
    ANSWERING = "an answer, or what comes before the first byte or after the last"
    STREAMING = "the same, for too long to be waited for"
    IDLE = "nothing is under way"


class Look:
    """One connection as the looks before have found it. ``callee_is_app``: it is inbound, so the app is what is called."""

    def __init__(self, *, callee_is_app: bool) -> None:
        self._callee_is_app = callee_is_app
        self._moved: int | None = None
        self._quiet_since = 0.0
        self._answering_since: float | None = None

    def again(self, carried: Carried | None, now: float) -> Phase:
        """Its phase now. ``carried`` is None while it carries nothing."""
        if carried is None:
            return self._answering(now)
        moved = carried.to_app + carried.from_app
        if moved != self._moved:
            self._moved, self._quiet_since = moved, now
        if moved and carried.app_was_last is not self._callee_is_app:
            self._answering_since = None
            return Phase.IN_FLIGHT
        if now - self._quiet_since >= IDLE_SECONDS and not carried.is_stuck:
            return Phase.IDLE
        return self._answering(now)

    def _answering(self, now: float) -> Phase:
        if self._answering_since is None:
            self._answering_since = now
        return Phase.STREAMING if now - self._answering_since >= STREAM_SECONDS else Phase.ANSWERING
