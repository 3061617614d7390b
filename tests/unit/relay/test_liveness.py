"""Who acknowledges is alive, however long ago the last acknowledgement was needed."""

from __future__ import annotations

import socket
import struct

import pytest

from sidecar.relay.liveness import INFO_BYTES, waiting_since
from tests.beds.relay import fill, tcp_pair


def info(*, probes: int = 0, unacked: int = 0, since_ack: float = 0.0) -> bytes:
    """What the kernel would report: ``since_ack`` in seconds."""
    written = bytearray(INFO_BYTES)
    written[3] = probes
    struct.pack_into("=I", written, 24, unacked)
    struct.pack_into("=I", written, 56, int(since_ack * 1000))
    return bytes(written)


def test_with_nothing_outstanding_nobody_waits() -> None:
    assert waiting_since(info(since_ack=3600.0), None, 100.0) is None
    assert waiting_since(info(since_ack=3600.0), 50.0, 100.0) is None


@pytest.mark.parametrize("outstanding", [{"probes": 1}, {"unacked": 1}])
def test_it_waits_since_the_first_look_that_found_something_outstanding(outstanding: dict[str, int]) -> None:
    """Not since the last acknowledgement: that may be as old as the last exchange, or as the last window probe."""
    since = waiting_since(info(**outstanding, since_ack=3600.0), None, 100.0)
    assert since == 100.0
    assert waiting_since(info(**outstanding, since_ack=3605.0), since, 105.0) == 100.0
    assert waiting_since(info(**outstanding, since_ack=3629.0), since, 129.0) == 100.0


@pytest.mark.parametrize("outstanding", [{"probes": 1}, {"unacked": 1}])
def test_the_twin_an_acknowledgement_in_between_begins_it_anew(outstanding: dict[str, int]) -> None:
    assert waiting_since(info(**outstanding, since_ack=2.0), 100.0, 129.0) == 127.0


def reported(sock: socket.socket) -> bytes:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, INFO_BYTES)


def test_what_the_kernel_itself_reports_of_a_host_that_does_not_answer() -> None:
    """A SYN to a listener whose queue is full is outstanding, and nothing was ever acknowledged."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        callers = [socket.socket() for _ in range(4)]
        try:
            for caller in callers:
                caller.setblocking(False)
                caller.connect_ex(listener.getsockname())
            assert waiting_since(reported(callers[-1]), None, 100.0) == 100.0
        finally:
            for caller in callers:
                caller.close()


def test_the_twin_what_it_reports_of_a_program_that_does_not_read() -> None:
    with tcp_pair(16 * 1024) as (here, _):
        fill(here)
        info_bytes = reported(here)
        assert len(info_bytes) == INFO_BYTES
        assert struct.unpack_from("=I", info_bytes, 56)[0] < 10_000, "its kernel has acknowledged just now"
