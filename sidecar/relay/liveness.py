"""Whether a socket's other host still acknowledges what it is sent. Pure: what the kernel reports is an argument.

How this works. Linux reports the state of a TCP connection as ``struct tcp_info`` (tcp(7)). A host that is alive
acknowledges data, keepalive probes and window probes, also for a program that does not read. So a host that has acknowledged
nothing for :data:`SILENCE_SECONDS` while something was outstanding is gone, or the network is. TCP_USER_TIMEOUT would not
do: it also ends a connection to a living host whose program merely pauses reading.

The time is counted from the first look that found something outstanding, since window probes may be two minutes apart: then
the last acknowledgement is old although nothing is wrong.
"""

from __future__ import annotations

import struct

SILENCE_SECONDS = 30.0

INFO_BYTES = 60
"""How much of ``struct tcp_info`` is needed: up to ``tcpi_last_ack_recv``."""

_INFO = struct.Struct("=3xB20xI28xI")  # tcpi_probes, tcpi_unacked, tcpi_last_ack_recv of linux/tcp.h


def waiting_since(info: bytes, before: float | None, now: float) -> float | None:
    """Since when the socket waits for an acknowledgement; None while nothing is outstanding.

    ``info``: the first :data:`INFO_BYTES` of ``struct tcp_info``. ``before``: what the look before this one returned.
    ``now``: a clock that runs as the kernel's does, in seconds."""
    probes, unacked, since_ack = _INFO.unpack(info)
    if not (probes or unacked):
        return None
    return now if before is None else max(before, now - since_ack / 1000)
