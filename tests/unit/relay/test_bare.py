"""A stream without TLS as a channel: every byte in its order, and the end behind the last one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sidecar.relay.bare import BareChannel
from sidecar.relay.duplex import Buffer


def filled(data: bytes) -> Buffer:
    return Buffer(bytearray(data))


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=10), st.integers(1, 70))
def test_what_is_fed_is_read_and_what_is_written_is_taken(pieces: list[bytes], size: int) -> None:
    ends: list[str] = []
    channel = BareChannel(lambda: ends.append("end"))
    for piece in pieces:
        channel.feed(filled(piece), len(piece))
        channel.write(filled(piece), len(piece))
    channel.close()
    buffer = Buffer(bytearray(size))
    read = taken = b""
    while channel.unread:
        read += bytes(buffer.view[: channel.read(buffer)])
    while channel.pending():
        assert not ends
        taken += bytes(buffer.view[: channel.take(buffer)])
    assert read == taken == b"".join(pieces)
    assert (channel.read(buffer), channel.take(buffer), channel.take(buffer), ends) == (0, 0, 0, ["end"])


def test_nothing_is_ended_that_was_not_closed() -> None:
    ends: list[str] = []
    channel = BareChannel(lambda: ends.append("end"))
    assert channel.take(Buffer(bytearray(10))) == 0
    channel.rest()
    assert (ends, channel.dataless, channel.ended, channel.unread) == ([], 0, False, False)
